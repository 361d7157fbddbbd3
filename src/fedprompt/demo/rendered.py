"""An image source that renders: image `row` is a pure function of the seed and the row's address, so none is stored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from PIL import Image
from torch import Tensor

from fedprompt.demo.render import Draws
from fedprompt.errors import UserError
from fedprompt.seeding import stream


@dataclass(frozen=True)
class Address:
    """What one image is drawn from, together with the seed."""

    dataset: str
    split: str
    domain: str
    concept: str  # the class of single-label images, empty otherwise
    number: int

    def draws(self, seed: int) -> Draws:
        """The random numbers of this image alone."""
        return Draws(stream(seed, self.dataset, self.split, self.domain, self.concept, self.number), 1)

    def __str__(self) -> str:
        return "/".join(word for word in (self.split, self.domain, self.concept, str(self.number)) if word)


@dataclass(frozen=True, eq=False)
class RenderedImages:
    """An `ImageSource` that renders; `render` gives uint8 [1, 3, 64, 64]."""

    seed: int
    addresses: tuple[Address, ...]
    render: Callable[[int, Address], Tensor]
    drawn: ClassVar[bool] = True  # no files that could be unreadable

    def __len__(self) -> int:
        return len(self.addresses)

    def open(self, row: int) -> Image.Image:
        """Render one image of 64 x 64 pixels."""
        return Image.fromarray(self.render(self.seed, self.addresses[row])[0].permute(1, 2, 0).numpy())

    def take(self, rows: Sequence[int]) -> RenderedImages:
        """A source of these images alone."""
        return replace(self, addresses=tuple(self.addresses[row] for row in rows))

    def describe(self, row: int) -> str:
        """The row's address, e.g. `test/noto/anchor/3`."""
        return str(self.addresses[row])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the addresses and of some images, so that changed drawings, rules or libraries change it too."""
        digest = hashlib.sha256(repr((self.seed, self.addresses)).encode())
        for row in range(0, len(self), max(1, len(self) // 16)):
            digest.update(self.open(row).tobytes())
        return digest.hexdigest()[:16]


def check_counts(name: str, train: int, test: int) -> None:
    """UserError if nothing would be left to test on."""
    if train < 0 or test < 1:
        raise UserError(f"{name} needs train >= 0 and test >= 1 images of a kind, not train = {train}, test = {test}.")
