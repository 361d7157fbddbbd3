"""Reading a data set's folder: lists, tables and image files, and a record of what was read for the index."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from fedprompt.data.labels import INVISIBLE
from fedprompt.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

OnStep = Callable[[int, int], None]  # progress: called with (done, total), as far as the total is known
JsonObject = Mapping[str, object]
MatlabArray = np.ndarray[tuple[int, ...], np.dtype[np.object_]]

# File names that Windows reserves for devices.
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def nfc(name: str) -> str:
    """A name in Unicode NFC: macOS returns decomposed names, other systems composed ones."""
    return unicodedata.normalize("NFC", name)


def visible(name: str) -> bool:
    """Whether a file or folder is neither hidden nor left behind by macOS archives."""
    return not name.startswith(".") and name != "__MACOSX"


def is_image(name: str) -> bool:
    """Whether a file has the suffix of an image format."""
    return name.lower().endswith(SUFFIXES)


def path_inside(folder: Path, path: str, *, origin: str, links: bool = False) -> str:
    """A path from a table, relative to the folder and with "/" between parts; UserError if it leads out of the folder.

    With `links`, symbolic links in the folder may lead out of it. `origin` names the table and line in messages.
    """
    own = path.replace("\\", "/").removeprefix(f"{folder.absolute().as_posix()}/")
    parts = own.split("/")
    if own.startswith("/") or ".." in parts or re.match("[A-Za-z]:", own):
        raise UserError(f"{origin}: {path!r} is not below {folder}; correct it, or set `images` to a folder above it.")
    if INVISIBLE.search(own) or any(map(RESERVED.fullmatch, parts)):
        raise UserError(f"{origin}: {path!r} is not a portable file name; rename the file.")
    # Resolving links is slow and tables are long: only where there is one.
    linked = not links and any((folder / "/".join(parts[: number + 1])).is_symlink() for number in range(len(parts)))
    if linked and not (folder / own).resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{origin}: a link leads {path!r} out of {folder}; set `links = true` if that is meant.")
    return own


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
        return (self.path / name).exists()

    def find(self, names: Iterable[str], what: str) -> str:
        """The first of several paths that exists; UserError naming all of them."""
        tried = list(names)
        for name in tried:
            if self.has(name):
                return name
        raise UserError(f"{what} is not in {self.path}: looked for {' and '.join(tried)}.")

    def text(self, name: str) -> str:
        """A text file's content."""
        self._read[name] = None
        try:
            return (self.path / name).read_text(encoding="utf-8-sig")
        except FileNotFoundError as error:
            raise UserError(f"The file {self.path / name} is missing; the download is incomplete.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"The file {self.path / name} cannot be read ({error}); download it again.") from error

    def lines(self, name: str) -> list[str]:
        """The non-empty lines of a text file."""
        return [line.rstrip() for line in self.text(name).splitlines() if line.strip()]

    def json(self, name: str) -> JsonValue:
        """A JSON file's content."""
        try:
            value: JsonValue = json.loads(self.text(name))
        except ValueError as error:
            raise UserError(
                f"The file {self.path / name} is not valid JSON ({error}); it is damaged, or a web page saved under "
                "its name: download it again."
            ) from error
        return value

    def matrix(self, name: str, variable: str) -> MatlabArray:
        """A variable of a MATLAB file, squeezed but never 0-dimensional: a file with one row stays a row."""
        from scipy.io import loadmat

        self._read[name] = None
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
        found = (entry.name for entry in self._scan(name) if is_image(entry.name))
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
            present = set(os.listdir(self.path / name)) if self.has(name) and (self.path / name).is_dir() else set()
            missing |= {row for row in rows if files[row].rpartition("/")[2] not in present}
            if self.on_step is not None:
                self.on_step(number, len(rows_by_folder))
        return missing

    def _scan(self, name: str) -> list[os.DirEntry[str]]:
        self._read[name] = None
        try:
            with os.scandir(self.path / name) as entries:
                return [entry for entry in entries if visible(entry.name)]
        except FileNotFoundError as error:
            raise UserError(f"The folder {self.path / name} is missing; the download is incomplete.") from error
        except OSError as error:
            raise UserError(f"The folder {self.path / name} cannot be read ({error.strerror}).") from error
