"""Image sources and lazy references to their rows: nothing is decoded until it is needed."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from typing import Protocol

import torch
from PIL import Image, ImageOps
from torch import Tensor

from fedprompt.errors import plural

OnStep = Callable[[int, int], None]  # progress: called with (done, total), as far as the total is known


class ImageSource(Protocol):
    """Where images come from: files, an archive, a table, or a renderer."""

    @property
    def fingerprint(self) -> str:
        """A short hash that changes whenever any image changes."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def open(self, row: int) -> Image.Image:
        """Decode one image to RGB."""
        ...

    def take(self, rows: Sequence[int]) -> ImageSource:
        """A source of these images alone, in this order, small enough to send to another process."""
        ...

    def describe(self, row: int) -> str:
        """A path or an address for messages and reports."""
        ...


@dataclass(frozen=True)
class JoinedSource:
    """The images of several sources, one after another."""

    sources: tuple[ImageSource, ...]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of those of the sources."""
        return hashlib.sha256("".join(source.fingerprint for source in self.sources).encode()).hexdigest()[:32]

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def open(self, row: int) -> Image.Image:
        """Decode one image to RGB."""
        source, own = self.find(row)
        return source.open(own)

    def take(self, rows: Sequence[int]) -> JoinedSource:
        """A source of these images alone: consecutive rows of one source are taken from it together."""
        found = groupby(map(self.find, rows), key=lambda pair: id(pair[0]))
        runs = [list(run) for _, run in found]
        return JoinedSource(tuple(run[0][0].take([own for _, own in run]) for run in runs))

    def describe(self, row: int) -> str:
        """The address in its own source."""
        source, own = self.find(row)
        return source.describe(own)

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        """The first row of each source."""
        return tuple(accumulate((len(source) for source in self.sources[:-1]), initial=0))

    def find(self, row: int) -> tuple[ImageSource, int]:
        """The source a row belongs to, and its row number there."""
        place = bisect_right(self._starts, row) - 1
        return self.sources[place], row - self._starts[place]


@dataclass(frozen=True)
class Images:
    """Rows of one source, each as stored or mirrored left to right. Iterating decodes them one by one, to RGB.

    `mirrored` is empty, which mirrors none, or has a value per row. Decoding raises UserError naming the image.
    """

    source: ImageSource
    rows: tuple[int, ...]
    mirrored: tuple[bool, ...] = ()  # empty: none is

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"{plural(len(self), 'image')} of {len(self.source):,}"

    def __iter__(self) -> Iterator[Image.Image]:
        return (self.decode(position) for position in range(len(self)))

    @property
    def keys(self) -> Tensor:
        """[B] int64, unique within a source for each (row, mirrored) pair: the key of cached features."""
        rows = torch.tensor(self.rows, dtype=torch.int64)
        return 2 * rows + torch.tensor(self.mirrored, dtype=torch.int64) if self.mirrored else 2 * rows

    def take(self, positions: Sequence[int] | Tensor) -> Images:
        """Return the images at these positions, in this order."""
        chosen = positions.tolist() if isinstance(positions, Tensor) else positions
        rows = tuple(self.rows[position] for position in chosen)
        return Images(self.source, rows, tuple(self.mirrored[position] for position in chosen) if self.mirrored else ())

    def flipped(self, where: Tensor | None = None) -> Images:
        """Mirror every image, or those where the [B] mask is true."""
        mask = torch.ones(len(self), dtype=torch.bool) if where is None else where.bool()
        before = torch.tensor(self.mirrored or (False,) * len(self), dtype=torch.bool)
        return Images(self.source, self.rows, tuple((before ^ mask).tolist()))

    def decode(self, position: int) -> Image.Image:
        """Open one image as RGB, mirrored where `mirrored` says so."""
        image = self.source.open(self.rows[position])
        return ImageOps.mirror(image) if self.mirrored and self.mirrored[position] else image

    def describe(self, position: int) -> str:
        """A path or an address of one image, for messages and reports."""
        return self.source.describe(self.rows[position])
