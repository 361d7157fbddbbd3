"""Images that a user names to have them classified: files, folders, patterns and tables of paths."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from fedprompt.data.intake.image_files import find_images, has_image_name, looks_like_image
from fedprompt.data.intake.path_tables import is_path_table, read_paths
from fedprompt.errors import UserError
from fedprompt.file_system import is_file, obstacle


@dataclass(frozen=True)
class Unreadable:
    """A file or another place that gives no image: its name in results, its path, and a sentence with that path."""

    name: str
    path: str
    reason: str

    @property
    def error(self) -> str:
        """The sentence with the name in place of the path, for files that are passed on."""
        return self.reason.replace(self.path, self.name)


@dataclass(frozen=True)
class GivenImages:
    """The files that were named, each once; what was named and cannot be used; and what is left out.

    `names` are the unique names that results call the files by: paths as the user typed them, never absolute.
    `unusable` are the places that are no image, folder, pattern or table. Whether the files hold images is not known
    before they are opened.
    """

    files: tuple[Path, ...]
    names: tuple[str, ...] = ()
    unusable: tuple[Unreadable, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)  # by reason, as in `ImageFiles`


def require_one(places: Sequence[str | Path]) -> None:
    """Raise UserError if none of the files, folders, patterns and tables is there; nothing is opened."""
    wrong = [_missing(Path(place).expanduser()) for place in places]
    if all(wrong):
        raise UserError("\n".join(wrong))


def _missing(path: Path) -> str:
    """A sentence on a place that is no file, no folder and no pattern; "" for one that is."""
    what = obstacle(path, "file")
    if not what or not obstacle(path, "folder") or (what == "does not exist" and glob.has_magic(str(path))):
        return ""
    return f"{path} {what}; give an image, a folder of images, a table of paths or a pattern such as '*.jpg'."


def find_given(places: Sequence[str | Path]) -> GivenImages:
    """Files as they are named, the images of folders and of those in them, what patterns (`*.jpg`) match, and the paths
    in tables.

    What lies in a folder, or matches a pattern, and is no image by its name is counted as left out.
    """
    files: dict[str, tuple[Path, str]] = {}  # by absolute path
    unusable: dict[str, Unreadable] = {}
    left_out: Counter[str] = Counter()
    for place in places:
        path = Path(place).expanduser()
        try:
            own = list(_of_place(path, left_out))
        except UserError as error:
            unusable[str(path.absolute())] = Unreadable(_short(path, path.parent), str(path), str(error))
            continue
        for file, name in own:
            key = str(file.absolute())
            left_out["given more than once"] += key in files
            files.setdefault(key, (file, name))
    named = {path: one.name for path, one in unusable.items()} | {path: name for path, (_, name) in files.items()}
    names = _unique(named)
    return GivenImages(
        tuple(file for file, _ in files.values()),
        tuple(names[path] for path in files),
        tuple(replace(one, name=names[path]) for path, one in unusable.items() if path not in files),
        {why: count for why, count in left_out.items() if count},
    )


def _short(file: Path, folder: Path) -> str:
    """A path as it is, "/" between its parts; an absolute one from the name of `folder`, in which it lies, on."""
    if not file.is_absolute():
        return file.as_posix()
    known = file.is_relative_to(folder) and folder.name
    return file.relative_to(folder.parent if known else file.parent.parent).as_posix()


def _unique(names: Mapping[str, str]) -> dict[str, str]:
    """The names of absolute paths; those that several paths have begin one folder earlier, until they differ."""
    found = dict(names)
    while shared := {name for name, count in Counter(found.values()).items() if count > 1}:
        found = {path: _longer(path, name) if name in shared else name for path, name in found.items()}
    return found


def _longer(path: str, name: str) -> str:
    return PurePath(*PurePath(path).parts[-1 - len(PurePath(name).parts) :]).as_posix()


def _of_place(path: Path, left_out: Counter[str]) -> Iterator[tuple[Path, str]]:
    """The files of a place with their names."""
    if wrong := _missing(path):
        raise UserError(wrong)
    if is_file(path) and is_path_table(path):
        yield from ((file, _short(Path(cell), file.parent)) for file, cell in read_paths(path))
    elif is_file(path):
        yield path, _short(path, path.parent)
    elif not obstacle(path, "folder"):
        yield from ((file, _short(file, path)) for file in _of_folder(path, left_out))
    else:
        plain = next(one for one in path.parents if not glob.has_magic(str(one)))
        yield from ((file, _short(file, plain)) for file in _of_pattern(path, left_out))


def _of_folder(path: Path, left_out: Counter[str]) -> Iterator[Path]:
    found = find_images(path, links=True)
    left_out.update(found.left_out)
    if not found.files:
        raise UserError(f"The folder {path} holds no images; give another.")
    yield from (path.joinpath(*parts) for parts in sorted(found.files, key=natural_order))


def _of_pattern(pattern: Path, left_out: Counter[str]) -> Iterator[Path]:
    matches = sorted(map(Path, glob.glob(str(pattern), recursive=True)), key=lambda path: natural_order(path.parts))
    files = [path for path in matches if is_file(path)]
    images = [path for path in files if has_image_name(path.name) or (not path.suffix and looks_like_image(path))]
    left_out.update(path.suffix.lower() or "without suffix" for path in files if path not in images)
    if not images:
        raise UserError(f"The pattern {str(pattern)!r} matches no images; give another.")
    yield from images


def natural_order(parts: Sequence[str]) -> list[list[tuple[int, str]]]:
    """A key that sorts names as people count: 2.jpg before 10.jpg."""
    return [
        [(int(piece), "") if piece.isdecimal() else (-1, piece.casefold()) for piece in re.split(r"(\d+)", part)]
        for part in parts
    ]
