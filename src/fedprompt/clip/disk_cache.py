"""The disk part of the feature cache: per table two append-only files, the rows and their keys with checksums.

One process writes to a folder, and any number of others read at the same time what it has written so far. Torn or
deleted files do no harm. Rows are read by position, not through a memory-mapped file: a mapping kills the
process when the file is truncated, and a cache must never end a run.
"""

from __future__ import annotations

import hashlib
import logging
import math
import zlib
from io import FileIO
from pathlib import Path
from typing import Any, cast

import filelock
import numpy as np
import torch
from torch import Tensor

from fedprompt.text_files import json_text, load_json

HEADER_BYTES = 128
ENTRY = np.dtype([("key", "<i8"), ("check", "<u8")])
DTYPES = {str(one).removeprefix("torch."): one for one in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}
log = logging.getLogger(__name__)


class RowFile:
    """The rows of one table. A row is written before its key and checked when read, so torn rows are ignored.

    A file that is missing or has a damaged header has no rows; if `writable`, the first write then creates it. Where
    another process writes, rows that it has added meanwhile are found when a key is missing.
    """

    def __init__(self, stem: Path, *, writable: bool) -> None:
        self.stem = stem
        self.writable = writable
        self.index: dict[int, int] = {}
        self.checks: list[int] = []
        self.shape: tuple[int, ...] = ()
        self.dtype = torch.float32
        self.files: tuple[FileIO, FileIO] | None = None  # rows, keys
        self._open_existing()

    def read(self, keys: list[int]) -> tuple[list[int], Tensor | None]:
        """Return the positions in `keys` whose rows are on disk and intact, and the rows; damaged ones are dropped."""
        if not self.writable and not all(key in self.index for key in keys):
            self._find_added()
        places = [(position, self.index[key]) for position, key in enumerate(keys) if key in self.index]
        if not places or self.files is None:
            return [], None
        rows = torch.empty((len(places), *self.shape), dtype=self.dtype)
        view = _bytes(rows)
        sound = []
        for number, (position, row) in enumerate(places):
            self.files[0].seek(row * view.shape[1])
            whole = self.files[0].readinto(memoryview(view[number])) == view.shape[1]
            if whole and _check(keys[position], memoryview(view[number])) == self.checks[row]:
                sound.append(number)
            else:
                del self.index[keys[position]]
        return [places[number][0] for number in sound], rows[torch.tensor(sound)] if sound else None

    def write(self, keys: list[int], rows: Tensor) -> int:
        """Append rows under new keys and return the bytes written; raises OSError when there is no room."""
        fresh = [position for position, key in enumerate(keys) if key not in self.index]
        if not fresh:
            return 0
        rows_file, keys_file = self.files or self._create(rows)
        values = _bytes(rows[torch.tensor(fresh)])
        new = [keys[position] for position in fresh]
        entries = np.array([(key, _check(key, memoryview(row))) for key, row in zip(new, values, strict=True)], ENTRY)
        _write_at(rows_file, len(self.checks) * values.shape[1], values.tobytes())
        _write_at(keys_file, HEADER_BYTES + len(self.checks) * ENTRY.itemsize, entries.tobytes())
        self._count(entries)
        return values.nbytes + entries.nbytes

    def close(self) -> None:
        """Close both files."""
        for file in self.files or ():
            file.close()
        self.files = None

    def _count(self, entries: np.ndarray[tuple[int], np.dtype[np.void]]) -> None:
        start = len(self.checks)
        self.index.update((key, start + offset) for offset, key in enumerate(entries["key"].tolist()))
        self.checks.extend(entries["check"].tolist())

    def _open_existing(self) -> None:
        if self.stem.with_suffix(".keys").exists() and self.stem.with_suffix(".rows").exists():
            self._open("r+" if self.writable else "r")

    def _find_added(self) -> None:
        """Find the rows that the process that writes has added."""
        if self.files is None:
            self._open_existing()
            return
        start = HEADER_BYTES + len(self.checks) * ENTRY.itemsize
        if self.files[1].seek(0, 2) >= start + ENTRY.itemsize:
            self.files[1].seek(start)
            self._count_written(self.files[1].readall())

    def _open(self, mode: str) -> None:
        self.files = FileIO(self.stem.with_suffix(".rows"), mode), FileIO(self.stem.with_suffix(".keys"), mode)
        text = self.files[1].readall()
        try:
            check, header = cast("tuple[int, dict[str, Any]]", load_json(text[:HEADER_BYTES]))
            if zlib.crc32(json_text(header).encode()) != check:
                raise ValueError("a damaged header")
            self.dtype, self.shape = DTYPES[header["dtype"]], tuple(header["shape"])
        except (ValueError, TypeError, KeyError):
            self.close()
            return
        self._count_written(text[HEADER_BYTES:])

    def _count_written(self, text: bytes) -> None:
        """Count the entries in bytes of the keys' file, without those whose rows are not there yet."""
        assert self.files is not None
        whole = self.files[0].seek(0, 2) // (math.prod(self.shape) * self.dtype.itemsize)
        entries = np.frombuffer(text, ENTRY, len(text) // ENTRY.itemsize)
        self._count(entries[: max(0, whole - len(self.checks))])

    def _create(self, like: Tensor) -> tuple[FileIO, FileIO]:
        self.shape, self.dtype = tuple(like.shape[1:]), like.dtype
        header = {"dtype": str(like.dtype).removeprefix("torch."), "shape": list(self.shape)}
        self.files = FileIO(self.stem.with_suffix(".rows"), "w+"), FileIO(self.stem.with_suffix(".keys"), "w+")
        signed = json_text([zlib.crc32(json_text(header).encode()), header])
        _write_at(self.files[1], 0, signed.ljust(HEADER_BYTES).encode())
        return self.files


class RowFolder:
    """A folder of row files that one process writes and others may read; if writing fails, it stops writing."""

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder = folder
        self.files: dict[tuple[str, str], RowFile | None] = {}
        self.room = 0
        self.lock = filelock.FileLock(folder / "writer.lock")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(timeout=0)
            self.room = budget - sum(file.stat().st_size for file in folder.iterdir())
        except filelock.Timeout:
            log.info("Another process writes to %s; its rows are read and none are added.", folder)
        except OSError as error:
            log.warning("Features are not kept in %s: %s.", folder, error)

    def read(self, name: tuple[str, str], keys: list[int]) -> tuple[list[int], Tensor | None]:
        """Return the positions in `keys` that are on disk, and their rows."""
        file = self._file(name)
        try:
            return file.read(keys) if file else ([], None)
        except OSError as error:
            self._give_up(error)
            return [], None

    def write(self, name: tuple[str, str], keys: list[int], rows: Tensor) -> None:
        """Append rows [n, ...] under their keys; rows beyond the disk budget are dropped."""
        file = self._file(name)
        if file is None or rows.nbytes > self.room:
            return
        try:
            self.room -= file.write(keys, rows)
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the files and let another process write."""
        for file in self.files.values():
            if file is not None:
                file.close()
        self.files.clear()
        self.room = 0
        self.lock.release()

    def _file(self, name: tuple[str, str]) -> RowFile | None:
        if name not in self.files:
            stem = f"{name[0]}-{hashlib.sha256(name[1].encode()).hexdigest()[:32]}"
            try:
                self.files[name] = RowFile(self.folder / stem, writable=self.lock.is_locked)
            except OSError as error:
                self.files[name] = None
                self._give_up(error)
        return self.files[name]

    def _give_up(self, error: OSError) -> None:
        self.room = 0
        log.warning("Features are no longer kept in %s: %s.", self.folder, error)


def _bytes(rows: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The memory of rows [M, ...] as [M, bytes of a row]; NumPy itself has no bfloat16."""
    return rows.view(len(rows), -1).view(torch.uint8).numpy()


def _check(key: int, row: memoryview) -> int:
    """Checksum of a row together with its key, so that damage to either is detected."""
    return zlib.crc32(row, zlib.crc32(key.to_bytes(8, "little", signed=True)))


def _write_at(file: FileIO, offset: int, content: bytes) -> None:
    file.seek(offset)
    if file.write(content) != len(content):
        raise OSError("the disk is full")
