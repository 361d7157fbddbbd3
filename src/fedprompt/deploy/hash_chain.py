"""Append-only files of JSON lines in a hash chain: a changed, removed or inserted line is found; imports nothing heavy.

A line holds its number, the hash of the line before it and, last, the SHA-256 hash of all of that. Removing the last
lines leaves a valid chain: keep the newest hash elsewhere to notice that.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from fedprompt.errors import UserError
from fedprompt.text_files import load_json_object

START = "0" * 64  # the hash before the first line
LOCK_TIMEOUT = 60.0  # seconds to wait for another process of the site
_HEAD, _END = b',"hash":"', b'"}\n'
_TAIL = len(_HEAD) + 64 + len(_END)  # bytes after a line's content


class DamagedError(UserError):
    """A line that is not what was written there."""


@dataclass(frozen=True)
class Entry:
    """A verified line: its number from 1, its fields, its hash, and where it ends in the file."""

    number: int
    fields: Mapping[str, Any]
    hash: str
    end: int


class HashChain:
    """A chain that one process appends to at a time; every line is verified before anything is appended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_TIMEOUT)
        self._last = Entry(0, {}, START, 0)

    @property
    def last(self) -> Entry:
        """The newest line that was read or appended; number 0 if there is none."""
        return self._last

    @contextmanager
    def locked(self) -> Iterator[Iterator[Entry]]:
        """Keep other processes out; yields the lines that were appended since the last call.

        The iterator must be exhausted before `append`. Raises DamagedError naming a line that was changed.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except (OSError, filelock.Timeout) as error:
            raise UserError(
                f"{self.path} cannot be locked ({error}); check that the disk is writable and no process hangs."
            ) from error
        try:
            yield self._new_lines()
        finally:
            self._lock.release()

    def append(self, fields: Mapping[str, object]) -> Entry:
        """Append a line, whole or not at all; it is on the disk when this returns. To be called when locked."""
        last = self._last
        content = {"number": last.number + 1, "previous": last.hash, **fields}
        body = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
        digest = hashlib.sha256(body).hexdigest()
        line = body[:-1] + _HEAD + digest.encode() + _END
        try:
            _write(self.path, last.end, line)
        except OSError as error:
            raise UserError(
                f"Cannot write to {self.path} ({error.strerror}); free some space. Nothing written before is lost."
            ) from error
        self._last = Entry(last.number + 1, content, digest, last.end + len(line))
        return self._last

    def _new_lines(self) -> Iterator[Entry]:
        for entry in read_chain(self.path, after=self._last):
            self._last = entry
            yield entry


def read_chain(path: Path, *, after: Entry | None = None) -> Iterator[Entry]:
    """Yield the verified lines of a chain, those after a known one; DamagedError naming a line that was changed.

    A last line that was cut short while it was written is left out.
    """
    last = after or Entry(0, {}, START, 0)
    if not path.exists():
        if last.end:
            raise DamagedError(f"{path} is gone; restore it from a copy.")
        return
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        if file.tell() < last.end:
            raise DamagedError(f"{path} has lost lines after line {last.number}; restore it from a copy.")
        file.seek(last.end)
        for line in file:
            if not line.endswith(b"\n") and _is_cut_short(line):
                return
            last = _verified(path, line, last)
            yield last


def _verified(path: Path, line: bytes, last: Entry) -> Entry:
    body, tail = line[:-_TAIL] + b"}", line[-_TAIL:]
    digest = hashlib.sha256(body).hexdigest()
    fields = load_json_object(body) if tail == _HEAD + digest.encode() + _END else {}
    if fields.get("number") != last.number + 1 or fields.get("previous") != last.hash:
        raise DamagedError(
            f"Line {last.number + 1} of {path} was changed after it was written; restore the file from a copy."
        )
    return Entry(last.number + 1, fields, digest, last.end + len(line))


def _is_cut_short(line: bytes) -> bool:
    """Whether a line without its end was interrupted while it was written; a whole one was changed afterwards."""
    return not any(
        line[start : start + len(_HEAD)] == _HEAD and len(line) - start >= _TAIL - 1
        for start in range(max(len(line) - _TAIL, 0), len(line))
    )


def _write(path: Path, end: int, line: bytes) -> None:
    """Write a line at the end of the verified ones, over what an interrupted write may have left there."""
    new = not path.exists()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.ftruncate(handle, end)
        os.lseek(handle, end, os.SEEK_SET)
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, end)
            raise
    finally:
        os.close(handle)
    if new and os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
