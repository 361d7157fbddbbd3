"""Opening what a path leads to: regular files, read to a limit, and folders; anything else is refused in a sentence."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Literal, NoReturn

from fedprompt.errors import UserError

Wanted = Literal["file", "folder"]
LARGEST_FILE = 1 << 30  # bytes that are read into memory at once, unless a reader states another limit
# A pipe is not waited for. Neither flag changes how a regular file is read; only POSIX has the first.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
KINDS = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def obstacle(path: Path, wanted: Wanted) -> str:
    """Why a path is no regular file, or no folder, in words that follow its name; "" if it is one.

    Nothing is opened: opening a pipe would wait for ever.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        return "is a link to a file that does not exist" if path.is_symlink() else "does not exist"
    except NotADirectoryError:
        return "does not exist, since a part of this path is a file"
    except (OSError, ValueError) as error:  # a ValueError for a name with a NUL in it
        return _unreadable(error)
    if kind == (stat.S_IFREG if wanted == "file" else stat.S_IFDIR):
        return ""
    regular = "" if wanted == "folder" or kind == stat.S_IFDIR else ", not a regular file"
    return f"is {KINDS.get(kind, 'a device')}{regular}"


def _unreadable(error: OSError | ValueError) -> str:
    if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
        return f"is not a path ({getattr(error, 'strerror', '') or error})"
    if error.errno == errno.ELOOP:
        return "is a link that leads back to itself"
    return f"cannot be read ({error.strerror})"


def _refuse(place: str, what: str, fix: str) -> NoReturn:
    raise UserError(f"{place} {what}; {'check its permissions' if what.startswith('cannot be read') else fix}.")


def is_file(path: Path) -> bool:
    """Whether a path is a regular file; False also where `Path.is_file` raises, in a folder that cannot be read."""
    return not obstacle(path, "file")


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; False also where `Path.is_dir` raises, for a name that is too long."""
    return not obstacle(path, "folder")


def require_file(path: Path, fix: str = "give the path of a file") -> None:
    """UserError unless the path is a regular file."""
    if what := obstacle(path, "file"):
        _refuse(str(path), what, fix)


def require_folder(path: Path, fix: str = "give the path of a folder") -> None:
    """UserError unless the path is a folder."""
    if what := obstacle(path, "folder"):
        _refuse(f"The folder {path}", what, fix)


def open_file(path: Path, fix: str = "give the path of a file") -> BufferedReader:
    """A regular file opened for reading; UserError for anything else, and for one that cannot be read.

    The kind is checked before opening, since opening a device may act on it, and again after it, since the file may
    have been replaced in between.
    """
    require_file(path, fix)
    try:
        file = open(path, "rb", opener=lambda name, _: os.open(name, _FLAGS))  # noqa: SIM115  (callers close it)
    except (OSError, ValueError) as error:
        _refuse(str(path), _unreadable(error), fix)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        _refuse(str(path), "is not a regular file any more", fix)
    return file


def read_bytes(path: Path, fix: str = "give the path of a file", *, most: int = LARGEST_FILE) -> bytes:
    """The content of a regular file of at most `most` bytes; UserError for anything else, as `open_file`."""
    with open_file(path, fix) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            content = b"" if size > most else file.read(size + 1)
            if size < len(content) <= most:  # it has grown since, or its size is unknown, as in /proc
                content += file.read(most + 1 - len(content))
        except OSError as error:
            _refuse(str(path), _unreadable(error), fix)
    if max(size, len(content)) > most:
        raise UserError(too_large(path, most, fix))
    return content


def too_large(path: Path, most: int, fix: str) -> str:
    """The sentence about a file of more than `most` bytes."""
    return f"{path} is larger than {most / 1e6:,.0f} MB, more than such a file may have; {fix}."


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, sorted by name; UserError for one that cannot be listed."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        _refuse(f"The folder {folder}", _unreadable(error), "move it away")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` when the block ends, or vanishes if it raises.

    UserError if there is something already, or it cannot be made.
    """
    if not obstacle(folder, "folder"):
        if entries(folder):
            raise UserError(f"The folder {folder} is not empty; give a new one.")
    elif os.path.lexists(folder):
        raise UserError(f"{folder} {obstacle(folder, 'folder')}; give a new folder.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be made ({error.strerror}); give another.") from error
    try:
        yield part
        part.chmod(0o755)  # a temporary folder is for its owner alone
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


class TemporaryFolder:
    """A new folder `path` that is deleted with this object, or at the end of the program, without a warning."""

    def __init__(self, prefix: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def files_below(root: Path, *, depth: int) -> Iterator[Path]:
    """Regular files of a folder and of those in it, `depth` folders deep, in order; hidden folders are left alone.

    Unlike `Path.glob`, which passes over it in silence, a folder that cannot be listed raises UserError.
    """
    inner = []
    for entry in entries(root):
        path = root / entry.name
        if not obstacle(path, "folder"):
            inner.append(path)
        elif is_file(path):
            yield path
    for path in inner if depth else ():
        to_above = path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())
        if not path.name.startswith(".") and not to_above:
            yield from files_below(path, depth=depth - 1)
