"""Which files of a folder are images: by suffix, or by content where there is none. Others are counted by reason."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedprompt.data.intake.report import Mistakes
from fedprompt.errors import UserError
from fedprompt.file_system import entries, open_file, require_folder
from fedprompt.text_files import data_setting

if TYPE_CHECKING:
    from fedprompt.data.images import OnStep  # imports torch

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pnm", ".pbm", ".jp2", ".j2k", ".jpx", ".jpf", ".avif", ".heic", ".heif", ".hif"),
)
JUNK = frozenset({".ds_store", "thumbs.db", "desktop.ini"})  # what systems write into every folder; not worth a word
JUNK_FOLDERS = frozenset(
    {
        *("__macosx", ".git", ".svn", ".hg", ".cache", ".idea", ".vscode", ".ipynb_checkpoints", ".thumbnails"),
        *(".trash", ".trashes", ".fseventsd", ".spotlight-v100"),
    }
)
DEEPEST = 8  # folders below the root

Parts = tuple[str, ...]  # a path below the root


@dataclass(frozen=True)
class ImageFiles:
    """The images of a folder, sorted, folders that hold nothing, and how many files were left out for what reason."""

    files: tuple[Parts, ...]
    empty: tuple[Parts, ...]
    left_out: Mapping[str, int]
    remarks: tuple[str, ...] = ()


def has_image_name(name: str) -> bool:
    """Whether a file's name ends as that of an image."""
    return name.lower().endswith(SUFFIXES)


def looks_like_image(path: Path) -> bool:
    """Whether a file begins as an image does; for files whose name says nothing. One that cannot be read may be one."""
    try:
        with open_file(path) as file:
            head = file.read(32)
    except (OSError, UserError):
        return True  # opening it as an image says why it cannot be read
    tiff = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    jpeg2000 = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
    plain = head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", *tiff, *jpeg2000))
    boxed = head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1", b"hevc")
    return plain or boxed or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def visible(name: str) -> bool:
    """Whether a name is one that a user sees: not hidden, and not what macOS puts into archives."""
    return not name.startswith(".") and name != "__MACOSX"


def find_images(root: Path, *, depth: int = DEEPEST, links: bool = False, on_step: OnStep | None = None) -> ImageFiles:
    """Walk a folder, `depth` folders deep; hidden files and folders are left alone.

    Only regular files are opened or counted as images: a pipe would never end. Links are followed, out of the folder
    with `links` only. Raises UserError for a root that is no folder, a folder that cannot be listed, a name that is no
    valid UTF-8, and links that lead out of the folder.
    """
    require_folder(root, "give the folder that holds the images")
    walk = _Walk(depth, None if links else root.resolve(), on_step)
    walk.folder(root, (), ())
    if walk.outside:
        raise UserError(
            f"{len(walk.outside):,} links lead out of {root}, {'/'.join(walk.outside[0])!r} for one; set "
            f"`links = true` if that is meant ({data_setting('links', value=True)})."
        )
    mistakes = Mistakes(root)
    for parts in walk.files:
        if any("\ud800" <= letter <= "\udfff" for letter in "".join(parts)):
            mistakes.add(f"the name {'/'.join(parts)!r} is not valid UTF-8")
    mistakes.check(fix="rename that file or folder")
    return ImageFiles(
        tuple(sorted(walk.files)),
        tuple(walk.empty),
        {why: count for why, count in walk.left_out.most_common() if count},
        tuple(walk.remarks),
    )


class _Walk:
    """What is found on the way; a folder is entered once on each way to it, and never from inside itself."""

    def __init__(self, depth: int, within: Path | None, on_step: OnStep | None) -> None:
        self.depth = depth
        self.within = within  # where links have to stay
        self.on_step = on_step
        self.outside: list[Parts] = []
        self.files: list[Parts] = []
        self.empty: list[Parts] = []
        self.left_out: Counter[str] = Counter()
        self.remarks: list[str] = []
        self._entered: dict[tuple[int, int], Parts] = {}
        self._done, self._known = 0, 1

    def folder(self, path: Path, parts: Parts, above: tuple[tuple[int, int], ...]) -> None:
        found = [entry for entry in entries(path) if not self._leads_out(entry, path, parts)]
        about = path.stat()
        own = (about.st_dev, about.st_ino)
        if own in above:
            self.left_out["links to a folder above"] += 1
            return
        if (twin := self._entered.setdefault(own, parts)) != parts:
            self.remarks.append(f"{'/'.join(twin)} and {'/'.join(parts)} are one folder, and its images count twice.")
        inner = [entry for entry in found if _kind(entry) == "folder"]
        folders = [entry for entry in inner if visible(entry.name)]
        hidden = sum(not visible(entry.name) and entry.name.lower() not in JUNK_FOLDERS for entry in inner)
        self.left_out["hidden folders"] += hidden
        images = [(*parts, entry.name) for entry in found if self._is_image(entry)]
        self.files += images
        self._known += len(folders)
        if not images and not folders:
            self.empty.append(parts)
        for entry in folders:
            if len(parts) < self.depth:
                self.folder(path / entry.name, (*parts, entry.name), (*above, own))
            else:
                self.left_out[f"folders more than {self.depth} levels deep"] += 1
        self._done += 1
        if self.on_step is not None:
            self.on_step(self._done, self._known)

    def _leads_out(self, entry: os.DirEntry[str], place: Path, parts: Parts) -> bool:
        """Whether a link leads to a file or folder elsewhere; it is noted, and not followed."""
        if self.within is None or not entry.is_symlink() or not visible(entry.name):
            return False
        if _kind(entry) not in ("file", "folder") or (place / entry.name).resolve().is_relative_to(self.within):
            return False
        self.outside.append((*parts, entry.name))
        return True

    def _is_image(self, entry: os.DirEntry[str]) -> bool:
        kind = _kind(entry)
        if kind == "folder" or entry.name.lower() in JUNK or entry.name.startswith("._"):
            return False
        reason = "" if kind == "file" else kind
        if not visible(entry.name):
            reason = "hidden"
        elif not reason and not has_image_name(entry.name):
            suffix = Path(entry.name).suffix.lower()
            if suffix or not looks_like_image(Path(entry.path)):
                reason = suffix or "without suffix"
        if reason:
            self.left_out[reason] += 1
        return not reason


def _kind(entry: os.DirEntry[str]) -> str:
    """ "file", "folder", or what else it is; a link is what it leads to."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        mode = entry.stat().st_mode
    except FileNotFoundError:
        return "broken links"
    except OSError:  # a link to itself, or to where nobody may look
        return "links to nowhere"
    return "pipes" if stat.S_ISFIFO(mode) else "sockets" if stat.S_ISSOCK(mode) else "devices"
