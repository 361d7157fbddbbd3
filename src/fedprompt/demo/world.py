"""The demo data sets `pictograms` (single label) and `scenes` (multi-label): drawn on demand, not stored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from fedprompt.data.dataset import Dataset
from fedprompt.data.labels import LabelSpace
from fedprompt.demo.concepts import DOMAINS, SEEN, UNSEEN, Context, glyph_names, load_concepts
from fedprompt.demo.drawing import Draws, Icon, Pixels, RenderSettings, contrasting_colours, paint
from fedprompt.errors import UserError

BASE = 39  # the first classes in the order of concepts.json; the other 38 are new

# Pretraining draws neither stripes nor checks nor clutter. Stripes and checks cost zero-shot CLIP about twenty points
# in every class, so tuning on base classes can gain on new classes too.
PICTOGRAM = RenderSettings(
    strength=(0.75, 1.0), contrast=100, noise=(3, 14), texture=(10, 30), patterns=("stripes", "checks")
)
SCENE = RenderSettings(
    strength=(0.6, 1.0), contrast=95, noise=(4, 22), texture=(5, 22), patterns=("blotches", "stripes"), clutter=2
)


@dataclass(frozen=True)
class Address:
    """The address of one image, which is a function of it and the seed."""

    split: str
    domain: str  # the icon style for `pictograms`, the context for `scenes`
    concept: str  # the class for `pictograms`, empty for `scenes`
    number: int

    def __str__(self) -> str:
        return "/".join(word for word in (self.split, self.domain, self.concept, str(self.number)) if word)


@dataclass(frozen=True, eq=False)
class Drawings:
    """An `ImageSource` that draws: image `row` is a pure function of the seed and the row's address."""

    seed: int
    addresses: tuple[Address, ...]
    draw: Callable[[int, Address], Pixels]
    drawn: ClassVar[bool] = True  # no files that could be unreadable

    def __len__(self) -> int:
        return len(self.addresses)

    def open(self, row: int) -> Image.Image:
        """Draw one image of 64 x 64 pixels."""
        return Image.fromarray(self.draw(self.seed, self.addresses[row]).astype(np.uint8))

    def take(self, rows: Sequence[int]) -> Drawings:
        """A source of these images alone."""
        return replace(self, addresses=tuple(self.addresses[row] for row in rows))

    def describe(self, row: int) -> str:
        """The row's address, e.g. `test/material/anchor/3`."""
        return str(self.addresses[row])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the addresses and of some images, so that a changed font, drawing rule or library changes it too."""
        digest = hashlib.sha256(repr((self.seed, self.addresses)).encode())
        for row in range(0, len(self), max(1, len(self) // 16)):
            digest.update(self.open(row).tobytes())
        return digest.hexdigest()[:16]


def pictograms(*, seed: int = 0, train: int = 16, test: int = 6) -> Dataset:
    """One icon per image: 77 classes in three icon styles (domains) seen in pretraining and four unseen ones.

    `train` images per class and seen style, `test` images per class and style. Another seed draws other images.
    Raises UserError if that leaves nothing to test on.
    """
    _check("pictograms", train, test)
    names = load_concepts().classes
    rows = [
        Address(split, domain, name, number)
        for split, count, domains in (("train", train, SEEN), ("test", test, DOMAINS))
        for domain in domains
        for name in names
        if glyph_names(name, domain)
        for number in range(count)
    ]
    return Dataset(
        name="pictograms",
        source=Drawings(seed, tuple(rows), _pictogram),
        space=LabelSpace(names, attributes={name: load_concepts().attributes_of(name)[:5] for name in names}),
        targets=torch.tensor([names.index(row.concept) for row in rows]),
        splits=tuple(row.split for row in rows),
        domains=tuple(row.domain for row in rows),
        base=tuple(range(BASE)),
        new=tuple(range(BASE, len(names))),
        unseen_domains=UNSEEN,
    )


def _check(name: str, train: int, test: int) -> None:
    if train < 0 or test < 1:
        raise UserError(f"{name} needs train >= 0 and test >= 1 images of a kind, not train = {train}, test = {test}.")


def _pictogram(seed: int, address: Address) -> Pixels:
    draws = Draws(seed, "pictograms", address.split, address.domain, address.concept, address.number)
    background = draws.pick(tuple(load_concepts().colours))
    size = draws.uniform(0.45, 0.85)
    x, y = sample_position(draws, (), size)
    icon = _icon(draws, address.concept, address.domain, background, (x, y, size), PICTOGRAM)
    return paint(draws, [icon], background, PICTOGRAM)


def _icon(
    draws: Draws, concept: str, style: str, background: str, at: tuple[float, float, float], render: RenderSettings
) -> Icon:
    glyph, colour = (
        draws.pick(glyph_names(concept, style)),
        draws.pick(contrasting_colours(background, render.contrast)),
    )
    family, (x, y, size) = style.partition("-")[0], at
    return Icon(concept, family, glyph, colour, x, y, size, draws.uniform(-0.45, 0.45), draws.uniform(0.8, 1.25))


def scenes(*, seed: int = 0, train: int = 120, test: int = 80) -> Dataset:
    """Two to four icons per image, 20 classes; the context decides which objects co-occur, their place and the light.

    `train` and `test` images per context. Split `test` has the contexts' co-occurrence of classes ("natural"); split
    `broken` keeps place, size, background and light, but combines any classes. Domains are the contexts.
    Raises UserError if that leaves nothing to test on.
    """
    _check("scenes", train, test)
    names = load_concepts().objects
    rows = [
        Address(split, context, "", number)
        for split, count in (("train", train), ("test", test), ("broken", test))
        for context in load_concepts().contexts
        for number in range(count)
    ]
    targets = torch.zeros(len(rows), len(names), dtype=torch.int8)
    for row, address in enumerate(rows):
        targets[row, [names.index(name) for name in sample_objects(_scene_draws(seed, address), address)]] = 1
    return Dataset(
        name="scenes",
        source=Drawings(seed, tuple(rows), _scene),
        space=LabelSpace(
            names,
            kind="multi",
            attributes={name: load_concepts().attributes_of(name)[:5] for name in names},
            conditions=load_concepts().conditions,
        ),
        targets=targets,
        splits=tuple(row.split for row in rows),
        domains=tuple(row.domain for row in rows),
        base=tuple(range(len(names))),
    )


def _scene_draws(seed: int, address: Address) -> Draws:
    return Draws(seed, "scenes", address.split, address.domain, address.number)


def sample_objects(draws: Draws, address: Address) -> list[str]:
    """The classes in a scene: the context's own in `train` and `test`, any in `broken`."""
    count = draws.pick((2, 3, 3, 4))
    if address.split == "broken":
        return draws.sample(load_concepts().objects, count)
    frequency = dict(load_concepts().contexts[address.domain].objects)
    found: list[str] = []
    for _ in range(count):
        names = tuple(frequency)
        found.append(names[draws.weighted([frequency[name] for name in names])])
        del frequency[found[-1]]
    return found


def compose_scene(seed: int, address: Address) -> tuple[list[Icon], str, float, Draws]:
    """A scene before it is painted: icons, background colour, light, and the random draws to paint it with."""
    draws = _scene_draws(seed, address)
    names = sample_objects(draws, address)
    context: Context = load_concepts().contexts[address.domain]
    background, light = draws.pick(context.background), draws.uniform(*context.light)
    icons: list[Icon] = []
    for name in names:
        style = draws.pick([domain for domain in DOMAINS if glyph_names(name, domain)])
        size = draws.uniform(*context.size)
        x, y = sample_position(draws, icons, size, context.place)
        icons.append(_icon(draws, name, style, background, (x, y, size), SCENE))
    return icons, background, light, draws


def sample_position(
    draws: Draws, others: Sequence[Icon], size: float, band: tuple[float, float] = (0.0, 1.0)
) -> tuple[float, float]:
    """A position inside the image and the vertical band, away from the others if eight tries find one."""
    margin = min(0.5, 0.42 * size)
    best, at = -1.0, (0.5, 0.5)
    for _ in range(8):
        x = draws.uniform(margin, 1 - margin)
        y = draws.uniform(max(margin, band[0]), max(min(1 - margin, band[1]), margin + 0.01))
        room = min((max(abs(x - other.x), abs(y - other.y)) - (size + other.size) / 2 for other in others), default=1.0)
        if room > best:
            best, at = room, (x, y)
        if room > 0:
            break
    return at


def _scene(seed: int, address: Address) -> Pixels:
    icons, background, light, draws = compose_scene(seed, address)
    return paint(draws, icons, background, SCENE, light=light)
