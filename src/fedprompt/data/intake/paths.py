"""Paths of somebody's table or annotation file: one rule for all readers of what they may be and where they lead."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize
from urllib.parse import unquote

from fedprompt.data.intake.report import Mistakes
from fedprompt.data.labels import INVISIBLE
from fedprompt.file_system import entries, obstacle
from fedprompt.text_files import data_setting

if TYPE_CHECKING:
    from fedprompt.data.images import OnStep  # imports torch

DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # what no file can be called on Windows


def below(root: Path, path: str, *, links: bool = False) -> tuple[str, str]:
    """A path as one below the folder `root`, "/" between its parts, and why it is none, if it is none.

    Backslashes, a `./` in front, doubled separators and the absolute path of the folder itself are understood. With
    `links`, links in the folder may lead out of it.
    """
    plain = re.sub("/+", "/", path.strip().replace("\\", "/"))
    own = plain.removeprefix(f"{root.absolute().as_posix()}/")
    own = re.sub(r"^(\./)+", "", own)
    parts = own.split("/")
    if re.match("[A-Za-z][A-Za-z0-9+.-]+://", path):
        return own, f"{path!r} is an address in a network; fetch the files and give their paths"
    if own.startswith(("/", "~")) or ".." in parts or re.match("[A-Za-z]:", own):
        return own, f"{path!r} is not below {root}; correct it, or give a folder above it"
    if not own or INVISIBLE.search(own) or any(map(DEVICES.fullmatch, parts)) or "." in parts:
        return own, f"{path!r} is not a portable file name; rename it"
    # Following links of a path is slow, and tables are long: only where there is one.
    # `os.path` answers where `Path` raises: names that are too long, links that lead back to themselves.
    linked = not links and any(os.path.islink(root / "/".join(parts[: number + 1])) for number in range(len(parts)))
    if linked and not Path(os.path.realpath(root / own)).is_relative_to(os.path.realpath(root)):
        allow = f"set `links = true` if that is meant ({data_setting('links', value=True)})"
        return own, f"a link leads {path!r} out of {root}; {allow}"
    return own, ""


@dataclass(frozen=True)
class Located:
    """Files below a folder; `origin` says in words which one it is."""

    root: Path
    files: tuple[str, ...]
    origin: str


def locate(
    paths: Sequence[str],
    *,
    folders: Sequence[Path],
    mistakes: Mistakes,
    lines: Sequence[int] | None = None,
    links: bool = False,
    on_step: OnStep | None = None,
) -> Located:
    """The files that paths of a table name, in the first of the folders that has any of them.

    Paths that lead elsewhere and files that are not there are noted in `mistakes`, the latter with what is there under
    a like name.
    """
    found = []
    for root in folders:
        checked = [below(root, path, links=links) for path in paths]
        missing = missing_files(root, [file for file, _ in checked], on_step=on_step)
        found.append((root, checked, missing))
        if len(missing) < len(paths):
            break
    else:
        found = found[:1]
    root, checked, missing = found[-1]
    files = [file for file, _ in checked]
    for row, (file, wrong) in enumerate(checked):
        line = None if lines is None else lines[row]
        if wrong:
            mistakes.add(wrong, line=line, column="image")
        elif row in missing and (twin := _composed_twin(root, file)):
            files[row] = twin
        elif row in missing:
            mistakes.add(f"there is no file {root / file}{_like(root, file)}", line=line, column="image")
    return Located(root, tuple(files), f"files below {root}")


def _composed_twin(root: Path, file: str) -> str:
    """The file that differs in the form of composed letters alone (macOS decomposes them), or ""."""
    place, slash, name = file.rpartition("/")
    own = normalize("NFC", name)
    twin = next((one for one in sorted(regular_files(root / place)) if normalize("NFC", one) == own), "")
    return f"{place}{slash}{twin}" if twin else ""


def missing_files(root: Path, files: Sequence[str], *, on_step: OnStep | None = None) -> set[int]:
    """Rows of files that are not there or are no regular files; each folder is listed once, and no file is opened."""
    rows = defaultdict(list)
    for row, file in enumerate(files):
        rows[file.rpartition("/")[0]].append(row)
    lost: set[int] = set()
    for number, (place, own) in enumerate(rows.items(), start=1):
        there = regular_files(root / place)
        lost |= {row for row in own if files[row].rpartition("/")[2] not in there}
        if on_step is not None:
            on_step(number, len(rows))
    return lost


def regular_files(folder: Path) -> set[str]:
    """Names of the regular files of a folder, and of links to such; none of a folder that is not there.

    Raises UserError for a folder that is there and cannot be listed: its files are not missing.
    """
    what = obstacle(folder, "folder")
    if what and not what.startswith("cannot be read"):
        return set()
    return {entry.name for entry in entries(folder) if _is_file(entry)}


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def _like(root: Path, file: str) -> str:
    place, _, name = file.rpartition("/")
    there = sorted(regular_files(root / place))
    if (plain := unquote(name)) != name and plain in there:
        return f", but {plain!r}, of which this is the form in an address"
    folded, stem = name.casefold(), name.rpartition(".")[0]
    close = next((one for one in there if one.casefold() == folded), "") or next(
        (one for one in there if one.rpartition(".")[0] in {name, stem} - {""}), ""
    )
    return f", but {close!r}" if close else ""
