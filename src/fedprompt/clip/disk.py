"""Rows on disk: two append-only files a table (the rows, and their keys with check sums), safe to tear and to delete.

Rows are read by position rather than through a mapping of the file: a mapping kills the process when the file is cut
under it or the disk is full, and a memory of features must never end a run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from io import FileIO
from pathlib import Path

import filelock
import numpy as np
import torch
from torch import Tensor

HEADER_BYTES = 128
ENTRY = np.dtype([("key", "<i8"), ("check", "<u8")])
log = logging.getLogger(__name__)


class RowFile:
    """The rows of one table. Rows go to disk before their keys, so a key whose row is torn never counts."""

    def __init__(self, stem: Path) -> None:
        self.stem = stem
        self.index: dict[int, int] = {}
        self.checks: list[int] = []
        self.shape: tuple[int, ...] = ()
        self.dtype = torch.float32
        self.files: tuple[FileIO, FileIO] | None = None  # rows, keys
        if stem.with_suffix(".keys").exists() and stem.with_suffix(".rows").exists():
            self._open()

    def read(self, keys: list[int]) -> tuple[list[int], Tensor | None]:
        """Return the positions in `keys` whose rows are on disk and intact, and the rows."""
        places = [(position, self.index[key]) for position, key in enumerate(keys) if key in self.index]
        if not places or self.files is None:
            return [], None
        rows = torch.empty((len(places), *self.shape), dtype=self.dtype)
        view = rows.view(len(places), -1).numpy().view(np.uint8)
        sound = []
        for number, (_, row) in enumerate(places):
            self.files[0].seek(row * view.shape[1])
            whole = self.files[0].readinto(memoryview(view[number])) == view.shape[1]
            if whole and zlib.crc32(view[number]) == self.checks[row]:
                sound.append(number)
        return [places[number][0] for number in sound], rows[torch.tensor(sound, dtype=torch.int64)] if sound else None

    def write(self, keys: list[int], rows: Tensor) -> int:
        """Append rows under new keys and return the bytes written; raises OSError when there is no room."""
        fresh = [position for position, key in enumerate(keys) if key not in self.index]
        if not fresh:
            return 0
        if self.files is None:
            self._create(rows)
        assert self.files is not None
        values = rows[torch.tensor(fresh)].contiguous().view(len(fresh), -1).numpy().view(np.uint8)
        checks = [zlib.crc32(row) for row in values]
        entries = np.array([(keys[position], check) for position, check in zip(fresh, checks, strict=True)], ENTRY)
        _write_at(self.files[0], len(self.checks) * values.shape[1], values.tobytes())
        _write_at(self.files[1], HEADER_BYTES + len(self.checks) * ENTRY.itemsize, entries.tobytes())
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

    def _open(self) -> None:
        files = FileIO(self.stem.with_suffix(".rows"), "r+"), FileIO(self.stem.with_suffix(".keys"), "r+")
        text = files[1].readall()
        try:
            header = json.loads(text[:HEADER_BYTES])
            self.dtype, self.shape = getattr(torch, header["dtype"]), tuple(header["shape"])
        except (ValueError, KeyError, AttributeError):
            return  # torn while it was being created: written anew by the first row
        row_bytes = torch.empty(self.shape, dtype=self.dtype).nbytes
        entries = np.frombuffer(text, ENTRY, (len(text) - HEADER_BYTES) // ENTRY.itemsize, HEADER_BYTES)
        self.files = files
        self._count(entries[: files[0].seek(0, 2) // row_bytes])

    def _create(self, like: Tensor) -> None:
        self.shape, self.dtype = tuple(like.shape[1:]), like.dtype
        header = json.dumps({"dtype": str(like.dtype).removeprefix("torch."), "shape": list(self.shape)})
        self.files = FileIO(self.stem.with_suffix(".rows"), "w+"), FileIO(self.stem.with_suffix(".keys"), "w+")
        _write_at(self.files[1], 0, header.ljust(HEADER_BYTES).encode())


class RowFolder:
    """A folder of row files that one process writes and others may read; it falls silent when it cannot write."""

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
            return self._give_up(error)

    def write(self, name: tuple[str, str], keys: list[int], rows: Tensor) -> None:
        """Keep rows while the budget lasts."""
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
                self.files[name] = RowFile(self.folder / stem)
            except OSError as error:
                self._give_up(error)
                self.files[name] = None
        return self.files[name]

    def _give_up(self, error: OSError) -> tuple[list[int], None]:
        self.room = 0
        log.warning("Features are no longer kept in %s: %s.", self.folder, error)
        return [], None


def _write_at(file: FileIO, offset: int, content: bytes) -> None:
    file.seek(offset)
    if file.write(content) != len(content):
        raise OSError("the disk is full")
