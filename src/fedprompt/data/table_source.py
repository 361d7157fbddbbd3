"""Images in a column of a Hugging Face table, as an image source."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from PIL import Image

from fedprompt.data.copies import same_content
from fedprompt.data.image_formats import Bands, Window, decode
from fedprompt.data.intake.paths import below
from fedprompt.errors import UserError
from fedprompt.file_system import read_bytes
from fedprompt.text_files import json_text

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class TableSource:
    """Images in a column of an Arrow table, as bytes or paths."""

    table: datasets.Dataset = field(repr=False)
    column: str
    window: Window | None = None
    bands: Bands | None = None
    root: Path | None = None  # paths in the table lead to files below it
    links: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the library's own fingerprint of the table, which changes with its content."""
        return hashlib.sha256(json_text([self.table._fingerprint, self.window, self.bands]).encode()).hexdigest()[:32]

    @cached_property
    def contents(self) -> tuple[int, ...]:
        """For each row the first row whose image has the same bytes."""
        return same_content(len(self), (self.digest,))

    def digest(self, row: int) -> str:
        """A hash of an image's bytes; its row where they cannot be had."""
        try:
            path, content = self._image(row)
            return hashlib.sha256(read_bytes(Path(path)) if content is None else content).hexdigest()
        except (OSError, UserError):  # opening it as an image says why it cannot be read
            return self.describe(row)

    def __len__(self) -> int:
        return len(self.table)

    def open(self, row: int) -> Image.Image:
        """Decode one image to RGB, with the same decoder as all other sources."""
        path, content = self._image(row)
        return decode(path, content=content, window=self.window, bands=self.bands)

    def _image(self, row: int) -> tuple[str, bytes | None]:
        """The path of an image, or the row's number and its bytes."""
        cell = cast("Mapping[str, object] | None", self.table[row][self.column])
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise UserError(f"The image of {self.describe(row)} is empty; remove that row.")
        content = cast("bytes | None", cell["bytes"])
        return self.describe(row) if content is not None else self._path(str(cell["path"]), row), content

    def _path(self, path: str, row: int) -> str:
        if self.root is None:  # the library has put the file where it is
            return path
        own, wrong = below(self.root, path, links=self.links)
        if wrong:
            raise UserError(f"{self.describe(row)}: {wrong}.")
        return str(self.root / own)

    def take(self, rows: Sequence[int]) -> TableSource:
        """A source of these images alone."""
        return replace(self, table=self.table.select(rows))

    def describe(self, row: int) -> str:
        """The row's number."""
        return f"row {row}"
