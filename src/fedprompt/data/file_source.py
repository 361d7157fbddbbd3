"""Images in files below a folder, as an image source."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from PIL import Image

from fedprompt.data.copies import TAIL, same_content
from fedprompt.data.image_formats import Bands, Window, decode
from fedprompt.errors import UserError
from fedprompt.file_system import open_file
from fedprompt.text_files import json_text

HASHED_BYTES = 1 << 28  # the content of data sets up to this size is hashed: a second, once per process


@dataclass(frozen=True)
class FileSource:
    """Image files below a folder, decoded by `decode` with these `window` and `bands`."""

    root: Path
    files: Sequence[str]  # relative, "/" between folders
    window: Window | None = None
    index: str = ""  # fingerprint of the index that lists these files with their sizes; it then stands for them
    bands: Bands | None = None  # of TIFFs that have more than three
    names: Sequence[str] = ()  # that messages and reports call the files by, if not by `files`

    @cached_property
    def fingerprint(self) -> str:
        """A hash of relative paths, sizes and contents; above `HASHED_BYTES` in all, of times instead of contents.

        A large data set restored with other times has another fingerprint, and a change that keeps a large data set's
        sizes and times is not noticed. Raises UserError for a missing file.
        """
        if self.index:
            return hashlib.sha256(self.index.encode() + self._decode_options()).hexdigest()[:32]
        try:
            paths = [os.path.join(self.root, file) for file in self.files]  # a Path per file would double the time
            stats = [os.stat(path) for path in paths]
            total = sum(stat.st_size for stat in stats)
            digest = hashlib.sha256(self._decode_options())
            for file, path, stat in zip(self.files, paths, stats, strict=True):
                content = _digest(Path(path)) if total <= HASHED_BYTES else ""
                digest.update(json_text([file, stat.st_size, content or stat.st_mtime_ns]).encode())
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read ({error.strerror}); restore or remove it.") from error
        return digest.hexdigest()[:32]

    @cached_property
    def contents(self) -> tuple[int, ...]:
        """For each row the first row whose file has the same bytes; most files are told apart by their sizes."""
        return same_content(len(self), (self._size, self._tail, self._content))

    def _size(self, row: int) -> Hashable:
        try:
            return os.stat(os.path.join(self.root, self.files[row])).st_size
        except OSError:  # opening it as an image says why it cannot be read
            return None, row

    def _tail(self, row: int) -> Hashable:
        try:
            with open_file(self.root / self.files[row]) as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
                return file.read()
        except (OSError, UserError):
            return None, row

    def _content(self, row: int) -> Hashable:
        try:
            return _digest(self.root / self.files[row])
        except (OSError, UserError):
            return None, row

    def _decode_options(self) -> bytes:
        return json_text([self.window, self.bands] if self.bands else self.window).encode()

    def __len__(self) -> int:
        return len(self.files)

    def open(self, row: int) -> Image.Image:
        """Decode one file to RGB; UserError naming it if that fails."""
        return decode(self.root / self.files[row], window=self.window, bands=self.bands)

    def take(self, rows: Sequence[int]) -> FileSource:
        """A source of these images alone, small enough to send to another process."""
        names = tuple(self.names[row] for row in rows) if self.names else ()
        return replace(self, files=tuple(self.files[row] for row in rows), names=names, index="")

    def describe(self, row: int) -> str:
        """The file's name in messages: its path below the folder, if no other was given."""
        return self.names[row] if self.names else self.files[row]


def _digest(path: Path) -> str:
    with open_file(path, "restore or remove it") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
