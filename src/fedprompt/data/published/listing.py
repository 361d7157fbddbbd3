"""A data set's folder as its reader sees it: lists, tables and pictures, and a memory of everything looked at."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import JsonValue
from torch import Tensor

from fedprompt.data.labels import HIDDEN
from fedprompt.data.sources.image_folder import SUFFIXES, OnStep
from fedprompt.errors import UserError

Cells = np.ndarray[tuple[int, ...], np.dtype[np.object_]]


@dataclass(frozen=True, eq=False)
class Listing:
    """What a reader found: class names in label order and, for every picture, its file, target, split and domain.

    `stamps` are the folders and lists it was read from; when one of them changes the listing is out of date.
    """

    names: tuple[str, ...]
    files: Sequence[str]  # below the data set's folder, "/" between folders
    targets: Tensor  # [N] int64, or [N, C] int8 in {1, 0, -1 unknown}
    splits: Sequence[str]
    domains: Sequence[str]
    stamps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what was left out or is odd, in sentences
    walked: bool = False  # the files were seen in their folders, not read from a list
    tests: Mapping[str, tuple[int, ...]] | None = None  # further test splits with their candidates
    base: tuple[int, ...] | None = None  # where the data set itself says which classes are seen in training


# What no file can be called on Windows.
DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def inside(folder: Path, path: str, *, origin: str, links: bool = False) -> str:
    """A path of somebody's table as one below the folder, "/" between parts; UserError if it leads anywhere else.

    With `links`, links in the folder may lead out of it.
    """
    own = path.replace("\\", "/").removeprefix(f"{folder.absolute().as_posix()}/")
    parts = own.split("/")
    if own.startswith("/") or ".." in parts or re.match("[A-Za-z]:", own):
        raise UserError(f"{origin}: {path!r} is not below {folder}; correct it, or set `images` to a folder above it.")
    if HIDDEN.search(own) or any(map(DEVICES.fullmatch, parts)):
        raise UserError(f"{origin}: {path!r} is no name that a file can have everywhere; rename it.")
    # Following links of a path is slow, and tables are long: only where there is one.
    linked = not links and any((folder / "/".join(parts[: number + 1])).is_symlink() for number in range(len(parts)))
    if linked and not (folder / own).resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{origin}: a link leads {path!r} out of {folder}; set `links = true` if that is meant.")
    return own


class Folder:
    """The root of one data set; paths are relative to it, and errors name the file and say what it is."""

    def __init__(self, path: Path, *, on_step: OnStep | None = None) -> None:
        self.path = path
        self.on_step = on_step
        self.notes: list[str] = []
        self._seen: dict[str, None] = {}

    @property
    def stamps(self) -> tuple[str, ...]:
        """Every list and folder that was read, in order."""
        return tuple(self._seen)

    def has(self, name: str) -> bool:
        """Whether a file or folder is there; being asked for makes it part of what the listing depends on."""
        self._seen[name] = None
        return (self.path / name).exists()

    def find(self, names: Iterable[str], what: str) -> str:
        """The first of several places that is there; UserError naming all of them."""
        tried = list(names)
        for name in tried:
            if self.has(name):
                return name
        raise UserError(f"{what} is not in {self.path}: looked for {' and '.join(tried)}.")

    def text(self, name: str) -> str:
        """A text file's content."""
        self._seen[name] = None
        try:
            return (self.path / name).read_text(encoding="utf-8-sig")
        except FileNotFoundError as error:
            raise UserError(f"The file {self.path / name} is missing; the download is incomplete.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"The file {self.path / name} cannot be read ({error}); download it again.") from error

    def lines(self, name: str) -> list[str]:
        """The lines of a list that are not empty."""
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

    def matrix(self, name: str, variable: str) -> Cells:
        """A variable of a MATLAB file, squeezed, never 0-dimensional: a one-row file stays a row."""
        from scipy.io import loadmat

        self._seen[name] = None
        try:
            return np.atleast_1d(loadmat(self.path / name, squeeze_me=True)[variable])
        except (OSError, ValueError, KeyError, NotImplementedError) as error:
            raise UserError(
                f"{self.path / name} is not a MATLAB file with {variable!r} ({error!r}); download it again."
            ) from error

    def folders(self, name: str = ".") -> list[str]:
        """Names of the visible folders in a folder, in bytewise order."""
        return sorted(entry.name for entry in self._scan(name) if entry.is_dir())

    def pictures(self, name: str) -> list[str]:
        """Paths of the visible files with a picture's suffix in a folder, in bytewise order."""
        found = (entry.name for entry in self._scan(name) if entry.name.lower().endswith(SUFFIXES))
        return [file if name == "." else f"{name}/{file}" for file in sorted(found)]

    def pictures_of(self, folders: Sequence[str]) -> list[list[str]]:
        """The pictures of many folders; whoever waits is told how many are done."""
        found = []
        for number, folder in enumerate(folders, start=1):
            found.append(self.pictures(folder))
            if self.on_step is not None:
                self.on_step(number, len(folders))
        return found

    def _scan(self, name: str) -> list[os.DirEntry[str]]:
        self._seen[name] = None
        try:
            with os.scandir(self.path / name) as entries:
                return [entry for entry in entries if not entry.name.startswith(".") and entry.name != "__MACOSX"]
        except FileNotFoundError as error:
            raise UserError(f"The folder {self.path / name} is missing; the download is incomplete.") from error
        except OSError as error:
            raise UserError(f"The folder {self.path / name} cannot be read ({error.strerror}).") from error


def absent(folder: Folder, files: Sequence[str]) -> set[int]:
    """Positions of the files that are not there; each folder is listed once, no file is opened."""
    places: dict[str, list[int]] = {}
    for row, file in enumerate(files):
        places.setdefault(file.rpartition("/")[0] or ".", []).append(row)
    lost: set[int] = set()
    for number, (place, rows) in enumerate(places.items(), start=1):
        there = set(os.listdir(folder.path / place)) if folder.has(place) and (folder.path / place).is_dir() else set()
        lost |= {row for row in rows if files[row].rpartition("/")[2] not in there}
        if folder.on_step is not None:
            folder.on_step(number, len(places))
    return lost
