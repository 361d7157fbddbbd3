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
from typing import Any, BinaryIO

import filelock

from fedprompt.errors import UserError
from fedprompt.text_files import load_json_object

START = "0" * 64  # the hash before the first line
LOCK_TIMEOUT = 60.0  # seconds to wait for another process of the site
CHUNK = 1 << 20  # bytes that are read at once
Stamp = tuple[int, int, int, int]  # inode, size, and the times of the last change of content and of the file itself
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


class ChainReader:
    """Reads a chain, and from then on what is new in it; notices when a line that it has read is no longer the same.

    An untouched file costs one `stat`. One that was touched is hashed up to the last line that was read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = Entry(0, {}, START, 0)
        self._content = hashlib.sha256()  # of all lines up to the last
        self._stamp: Stamp | None = None

    @property
    def last(self) -> Entry:
        """The newest line that was read or appended; number 0 if there is none."""
        return self._last

    def new(self) -> Iterator[Entry]:
        """Yield the lines that were appended since the last call; DamagedError naming what was changed.

        A last line that was cut short while it was written is left out.
        """
        stamp = _stamp(self.path)
        if stamp == self._stamp:
            return
        if stamp is None:
            raise DamagedError(f"{self.path} is gone; restore it from a copy.")
        with self.path.open("rb") as file:
            self._check_known(file)
            for line in file:
                if not line.endswith(b"\n") and _is_cut_short(line):
                    break
                self._advance(_verified(self.path, line, self._last), line)
                yield self._last
        self._stamp = stamp

    def _check_known(self, file: BinaryIO) -> None:
        """Read the lines that are known and compare them with what they were."""
        found, left = hashlib.sha256(), self._last.end
        while left and (part := file.read(min(left, CHUNK))):
            found.update(part)
            left -= len(part)
        if left:
            raise DamagedError(
                f"{self.path} has lost lines: line {self._last.number} was its last; restore the newest copy."
            )
        if found.digest() != self._content.digest():
            for _ in read_chain(self.path):  # names the line, unless the whole file was written anew
                pass
            raise DamagedError(f"{self.path} is not the file that it was; restore it from a copy.")

    def _advance(self, entry: Entry, line: bytes) -> None:
        self._last = entry
        self._content.update(line)


class HashChain(ChainReader):
    """A chain that one process appends to at a time; every line is verified before anything is appended."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_TIMEOUT)

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
            yield self.new()
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
        self._advance(Entry(last.number + 1, content, digest, last.end + len(line)), line)
        self._stamp = _stamp(self.path)
        return self._last


def read_chain(path: Path) -> Iterator[Entry]:
    """Yield the verified lines of a chain, as `ChainReader.new`; none if there is no file."""
    return ChainReader(path).new()


def _stamp(path: Path) -> Stamp | None:
    """What changes with every change of a file; None if there is none."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


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
