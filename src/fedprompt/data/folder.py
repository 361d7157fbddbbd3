"""Reading a data set's folder: lists, tables and image files, and a record of what was read for the index."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from pydantic import JsonValue

from fedprompt.data.images import OnStep
from fedprompt.data.intake.image_files import has_image_name, visible
from fedprompt.data.intake.paths import regular_files
from fedprompt.errors import UserError, series
from fedprompt.file_system import entries, read_bytes, require_file
from fedprompt.text_files import LINE_ENDS, load_json

LARGEST_LIST = 8 << 30  # bytes; the annotations of Objects365 take 6
JsonObject = Mapping[str, object]
MatlabArray = np.ndarray[tuple[int, ...], np.dtype[np.object_]]


class DatasetFolder:
    """The root folder of one data set; paths are relative to it, and errors name the file and what it is for.

    `notes` are remarks for the user that a reader adds.
    """

    def __init__(self, path: Path, *, on_step: OnStep | None = None) -> None:
        self.path = path
        self.on_step = on_step
        self.notes: list[str] = []
        self._read: dict[str, None] = {}

    @property
    def dependencies(self) -> tuple[str, ...]:
        """Every file and folder that was read or looked for, in order."""
        return tuple(self._read)

    def has(self, name: str) -> bool:
        """Whether a file or folder exists; the listing then depends on it, existing or not."""
        self._read[name] = None
        return os.path.exists(self.path / name)  # unlike that of a Path, also where a folder cannot be read

    def find(self, names: Iterable[str], what: str) -> str:
        """The first of several paths that exists; UserError naming all of them."""
        tried = list(names)
        for name in tried:
            if self.has(name):
                return name
        raise UserError(f"{what} is not in {self.path}: looked for {series(tried)}.")

    def content(self, name: str) -> bytes:
        """A file's bytes."""
        self._read[name] = None
        if not os.path.lexists(self.path / name):
            raise UserError(f"The file {self.path / name} is missing; the download is incomplete.")
        return read_bytes(self.path / name, "replace it by the file", most=LARGEST_LIST)

    def text(self, name: str) -> str:
        """A text file's content."""
        try:
            return self.content(name).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError as error:
            raise UserError(f"The file {self.path / name} cannot be read ({error}); download it again.") from error

    def lines(self, name: str) -> list[str]:
        """The non-empty lines of a text file."""
        return [line.rstrip() for line in LINE_ENDS.split(self.text(name)) if line.strip()]

    def json(self, name: str) -> JsonValue:
        """A JSON file's content."""
        try:
            return cast("JsonValue", load_json(self.text(name)))
        except ValueError as error:
            raise UserError(
                f"The file {self.path / name} is not valid JSON ({error}); it is damaged, or a web page saved under "
                "its name: download it again."
            ) from error

    def matrix(self, name: str, variable: str) -> MatlabArray:
        """A variable of a MATLAB file, squeezed but never 0-dimensional: a file with one row stays a row."""
        from scipy.io import loadmat

        self._read[name] = None
        require_file(self.path / name, "download it again")
        try:
            return np.atleast_1d(loadmat(self.path / name, squeeze_me=True)[variable])
        except (OSError, ValueError, KeyError, NotImplementedError) as error:
            raise UserError(
                f"{self.path / name} is not a MATLAB file with {variable!r} ({error!r}); download it again."
            ) from error

    def folders(self, name: str = ".") -> list[str]:
        """Names of the visible folders in a folder, in bytewise order."""
        return sorted(entry.name for entry in self._scan(name) if entry.is_dir())

    def images(self, name: str) -> list[str]:
        """Paths of the visible image files in a folder, in bytewise order."""
        found = (entry.name for entry in self._scan(name) if has_image_name(entry.name))
        return [file if name == "." else f"{name}/{file}" for file in sorted(found)]

    def images_of(self, folders: Sequence[str]) -> list[list[str]]:
        """The image files of many folders, folder by folder, with progress."""
        found = []
        for number, folder in enumerate(folders, start=1):
            found.append(self.images(folder))
            if self.on_step is not None:
                self.on_step(number, len(folders))
        return found

    def missing(self, files: Sequence[str]) -> set[int]:
        """Positions of the files that do not exist; each folder is listed once, no file is opened."""
        rows_by_folder: dict[str, list[int]] = {}
        for row, file in enumerate(files):
            rows_by_folder.setdefault(file.rpartition("/")[0] or ".", []).append(row)
        missing: set[int] = set()
        for number, (name, rows) in enumerate(rows_by_folder.items(), start=1):
            present = regular_files(self.path / name) if self.has(name) else set()
            missing |= {row for row in rows if files[row].rpartition("/")[2] not in present}
            if self.on_step is not None:
                self.on_step(number, len(rows_by_folder))
        return missing

    def _scan(self, name: str) -> list[os.DirEntry[str]]:
        self._read[name] = None
        if not os.path.lexists(self.path / name):
            raise UserError(f"The folder {self.path / name} is missing; the download is incomplete.")
        return [entry for entry in entries(self.path / name) if visible(entry.name)]
