"""Images that a user names to have them classified: files, folders, patterns and tables of paths."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedprompt.data.intake.image_files import find_images, has_image_name, looks_like_image
from fedprompt.data.intake.path_tables import is_path_table, read_paths
from fedprompt.errors import UserError
from fedprompt.file_system import is_file, obstacle


@dataclass(frozen=True)
class GivenImages:
    """The files that were named, each once; what was named and cannot be used, a sentence each; and what is left out.

    Whether the files hold images is not known before they are opened.
    """

    files: tuple[Path, ...]
    unusable: tuple[str, ...] = ()
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
    files: dict[Path, None] = {}
    unusable: list[str] = []
    left_out: Counter[str] = Counter()
    for place in places:
        path = Path(place).expanduser()
        try:
            own = list(_of_place(path, left_out))
        except UserError as error:
            unusable.append(str(error))
            continue
        left_out["given more than once"] += sum(file in files for file in own)
        files |= dict.fromkeys(own)
    return GivenImages(tuple(files), tuple(unusable), {why: count for why, count in left_out.items() if count})


def _of_place(path: Path, left_out: Counter[str]) -> Iterator[Path]:
    if wrong := _missing(path):
        raise UserError(wrong)
    if is_file(path):
        yield from read_paths(path) if is_path_table(path) else [path]
    elif not obstacle(path, "folder"):
        yield from _of_folder(path, left_out)
    else:
        yield from _of_pattern(path, left_out)


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
