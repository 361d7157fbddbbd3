"""Images as they are given to an adapter: in memory, as files, or as a folder, a pattern or a table of paths."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fedprompt.arguments import shown
from fedprompt.data.file_source import FileSource
from fedprompt.data.images import ImageSource
from fedprompt.data.in_memory import image_source
from fedprompt.data.intake.given_images import Unreadable, find_given
from fedprompt.data.intake.path_tables import is_path_table
from fedprompt.data.problems import find_unreadable
from fedprompt.errors import UserError
from fedprompt.file_system import is_file


@dataclass(frozen=True)
class NamedImages:
    """Images with their names, and those that were left out."""

    source: ImageSource
    names: tuple[str, ...]
    unreadable: tuple[Unreadable, ...] = ()

    def readable(self) -> NamedImages:
        """The images that can be read; the same if all can, or if they lie in memory."""
        if not isinstance(self.source, FileSource):
            return self
        found = find_unreadable(self.source, range(len(self.source)))
        if not found:
            return self
        rows = [row for row in range(len(self.source)) if row not in found]
        names = tuple(self.names[row] for row in rows)
        return NamedImages(self.source.take(rows), names, (*self.unreadable, *found.values()))


def given_images(images: Any, *, skips: bool) -> NamedImages:
    """The images of a sequence, of one image, or of a folder, a pattern or a table of paths."""
    if isinstance(images, str | os.PathLike):
        found = find_given([Path(os.fsdecode(images))])
        if not found.files:
            raise UserError("\n".join(one.reason for one in found.unusable))
        absolute = tuple(str(file.absolute()) for file in found.files)
        return NamedImages(FileSource(Path(), absolute, names=found.names), found.names)
    if isinstance(images, Image.Image) or getattr(images, "ndim", 4) != 4:
        return given_images([images], skips=skips)
    if not isinstance(images, Iterable) or isinstance(images, Mapping):
        raise UserError(f"`images` is {shown(images)}; give an image, a list of them, or a folder.")
    listed_images = list(images)
    if not listed_images:
        raise UserError("`images` is empty; give at least one image.")
    if skips and all(isinstance(one, str | os.PathLike) for one in listed_images):
        names = tuple(map(os.fsdecode, listed_images))
        absolute = tuple(str(Path(name).expanduser().absolute()) for name in names)
        return NamedImages(FileSource(Path(), absolute, names=names), names)
    source = image_source(listed_images)
    return NamedImages(source, tuple(_name(image, source, row) for row, image in enumerate(listed_images)))


def _name(image: object, source: ImageSource, row: int) -> str:
    """A path as it was given, or what the source calls an image in memory."""
    return os.fsdecode(image) if isinstance(image, str | os.PathLike) else source.describe(row)


def skips_unreadable(on_error: object, images: object) -> bool:
    """Whether images that cannot be read are left out: by default those of a folder, a pattern or a table."""
    if on_error not in (None, "skip", "raise"):
        raise UserError(f'`on_error` is {shown(on_error)}; give "skip" or "raise", or leave it out.')
    if on_error is not None:
        return on_error == "skip"
    if not isinstance(images, str | os.PathLike):
        return False
    path = Path(os.fsdecode(images)).expanduser()
    return not is_file(path) or is_path_table(path)
