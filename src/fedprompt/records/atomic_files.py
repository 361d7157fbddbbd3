"""Writing files whole or not at all, also where the disk is full or the process is killed; lock files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from fedprompt.errors import UserError

_FIXES = {
    errno.ENOSPC: "the disk is full; free some space and resume the run",
    errno.EDQUOT: "your disk quota is used up; free some space and resume the run",
    errno.EACCES: "you may not write there; choose another folder",
    errno.EROFS: "the disk is read-only; choose another folder",
}


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn an OSError of the block into a UserError that names the folder and what to do."""
    try:
        yield
    except OSError as error:
        fix = _FIXES.get(error.errno or 0, f"the system says '{error.strerror or error}'; choose another folder")
        raise UserError(f"Cannot write to {folder}: {fix}. Nothing written before is lost.") from error


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file atomically: readers see the old file or the whole new one, also after a crash.

    Raises UserError naming the folder when it cannot be written, for instance because the disk is full.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened, and a rename needs no help to last
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def append_line(path: Path, line: bytes) -> None:
    """Add a line to a file, whole or not at all; it is on the disk when this returns. UserError as `write_atomic`."""
    with writing(path.parent), path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def acquire_lock(lock: Path, *, busy: str) -> filelock.FileLock:
    """Acquire a lock file for this process and create its folder; UserError with the text `busy` if another has it."""
    with writing(lock.parent):
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(lock)
        try:
            held.acquire(timeout=0)
        except filelock.Timeout as error:
            raise UserError(busy) from error
    return held
