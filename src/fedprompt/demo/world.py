"""The demo world's data sets, `pictograms` (single label) and `scenes` (multi label): drawn when asked, not stored."""

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
from fedprompt.demo.concepts import DOMAINS, SEEN, UNSEEN, Context, drawings, lexicon
from fedprompt.demo.drawing import Dice, Look, Pixels, Thing, paint, readable
from fedprompt.demo.pretraining.samples import place
from fedprompt.errors import UserError

BASE = 39  # the first classes in the lexicon's order; the other 38 are new

# Pretraining draws neither stripes nor checks nor clutter. Stripes and checks cost zero-shot CLIP about twenty points
# whatever the class, so what tuning learns against them on base classes holds for new ones: the room that tuning has.
PICTOGRAM = Look(strength=(0.75, 1.0), contrast=100, noise=(3, 14), texture=(10, 30), patterns=("stripes", "checks"))
SCENE = Look(
    strength=(0.6, 1.0), contrast=95, noise=(4, 22), texture=(5, 22), patterns=("blotches", "stripes"), clutter=2
)


@dataclass(frozen=True)
class Address:
    """What one picture is a function of, beside the seed."""

    split: str
    domain: str  # hand for `pictograms`, context for `scenes`
    concept: str  # the class for `pictograms`, empty for `scenes`
    number: int

    def __str__(self) -> str:
        return "/".join(word for word in (self.split, self.domain, self.concept, str(self.number)) if word)


@dataclass(frozen=True, eq=False)
class Drawings:
    """An `ImageSource` that draws: picture `row` is a pure function of the seed and the row's address."""

    seed: int
    addresses: tuple[Address, ...]
    draw: Callable[[int, Address], Pixels]
    drawn: ClassVar[bool] = True  # nothing is read that could be damaged

    def __len__(self) -> int:
        return len(self.addresses)

    def open(self, row: int) -> Image.Image:
        """Draw one picture, 64 x 64."""
        return Image.fromarray(self.draw(self.seed, self.addresses[row]).astype(np.uint8))

    def take(self, rows: Sequence[int]) -> Drawings:
        """A source of these pictures alone."""
        return replace(self, addresses=tuple(self.addresses[row] for row in rows))

    def describe(self, row: int) -> str:
        """The row's address, e.g. `test/material/anchor/3`."""
        return str(self.addresses[row])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the addresses and of some pictures: a changed font, drawing rule or library changes it too."""
        digest = hashlib.sha256(repr((self.seed, self.addresses)).encode())
        for row in range(0, len(self), max(1, len(self) // 16)):
            digest.update(self.open(row).tobytes())
        return digest.hexdigest()[:16]


def pictograms(*, seed: int = 0, train: int = 16, test: int = 6) -> Dataset:
    """One icon a picture: 77 classes in three hands that pretraining saw and four that it did not.

    `train` pictures per class and seen hand, `test` per class and hand. Another seed draws other pictures.
    Raises UserError if that leaves nothing to test on.
    """
    _check("pictograms", train, test)
    names = lexicon().classes
    rows = [
        Address(split, domain, name, number)
        for split, count, domains in (("train", train, SEEN), ("test", test, DOMAINS))
        for domain in domains
        for name in names
        if drawings(name, domain)
        for number in range(count)
    ]
    return Dataset(
        name="pictograms",
        source=Drawings(seed, tuple(rows), _pictogram),
        space=LabelSpace(names, attributes={name: lexicon().attributes_of(name)[:5] for name in names}),
        targets=torch.tensor([names.index(row.concept) for row in rows]),
        splits=tuple(row.split for row in rows),
        domains=tuple(row.domain for row in rows),
        base=tuple(range(BASE)),
        new=tuple(range(BASE, len(names))),
        unseen_domains=UNSEEN,
    )


def _check(name: str, train: int, test: int) -> None:
    if train < 0 or test < 1:
        raise UserError(
            f"{name} needs train >= 0 and test >= 1 pictures of a kind, not train = {train}, test = {test}."
        )


def _pictogram(seed: int, address: Address) -> Pixels:
    dice = Dice(seed, "pictograms", address.split, address.domain, address.concept, address.number)
    ground = dice.pick(tuple(lexicon().colours))
    size = dice.uniform(0.45, 0.85)
    x, y = place(dice, (), size)
    icon = _icon(dice, address.concept, address.domain, ground, (x, y, size), PICTOGRAM)
    return paint(dice, [icon], ground, PICTOGRAM)


def _icon(dice: Dice, concept: str, hand: str, ground: str, at: tuple[float, float, float], look: Look) -> Thing:
    glyph, colour = dice.pick(drawings(concept, hand)), dice.pick(readable(ground, look.contrast))
    family, (x, y, size) = hand.partition("-")[0], at
    return Thing(concept, family, glyph, colour, x, y, size, dice.uniform(-0.45, 0.45), dice.uniform(0.8, 1.25))


def scenes(*, seed: int = 0, train: int = 120, test: int = 80) -> Dataset:
    """Two to four icons a picture, 20 classes; a context decides company, place, size, ground and light.

    `train` and `test` pictures per context. Split `test` keeps the contexts' company ("natural"); split `broken` keeps
    place, size, ground and light, but puts anything with anything. Domains are the contexts. Raises
    UserError if that leaves nothing to test on.
    """
    _check("scenes", train, test)
    names = lexicon().things
    rows = [
        Address(split, context, "", number)
        for split, count in (("train", train), ("test", test), ("broken", test))
        for context in lexicon().contexts
        for number in range(count)
    ]
    targets = torch.zeros(len(rows), len(names), dtype=torch.int8)
    for row, address in enumerate(rows):
        targets[row, [names.index(name) for name in company(_scene_dice(seed, address), address)]] = 1
    return Dataset(
        name="scenes",
        source=Drawings(seed, tuple(rows), _scene),
        space=LabelSpace(
            names,
            kind="multi",
            attributes={name: lexicon().attributes_of(name)[:5] for name in names},
            conditions=lexicon().conditions,
        ),
        targets=targets,
        splits=tuple(row.split for row in rows),
        domains=tuple(row.domain for row in rows),
        base=tuple(range(len(names))),
    )


def _scene_dice(seed: int, address: Address) -> Dice:
    return Dice(seed, "scenes", address.split, address.domain, address.number)


def company(dice: Dice, address: Address) -> list[str]:
    """Which classes a scene shows: the context's own in `train` and `test`, any in `broken`."""
    count = dice.pick((2, 3, 3, 4))
    if address.split == "broken":
        return dice.sample(lexicon().things, count)
    frequency = dict(lexicon().contexts[address.domain].things)
    found: list[str] = []
    for _ in range(count):
        names = tuple(frequency)
        found.append(names[dice.weighted([frequency[name] for name in names])])
        del frequency[found[-1]]
    return found


def arrangement(seed: int, address: Address) -> tuple[list[Thing], str, float, Dice]:
    """A scene before it is painted: the icons in it, the ground's colour, the light, and the dice to paint it with."""
    dice = _scene_dice(seed, address)
    names = company(dice, address)
    context: Context = lexicon().contexts[address.domain]
    ground, light = dice.pick(context.background), dice.uniform(*context.light)
    icons: list[Thing] = []
    for name in names:
        hand = dice.pick([domain for domain in DOMAINS if drawings(name, domain)])
        size = dice.uniform(*context.size)
        x, y = place(dice, icons, size, context.place)
        icons.append(_icon(dice, name, hand, ground, (x, y, size), SCENE))
    return icons, ground, light, dice


def _scene(seed: int, address: Address) -> Pixels:
    icons, ground, light, dice = arrangement(seed, address)
    return paint(dice, icons, ground, SCENE, light=light)
