"""Pretraining pictures: icons of every concept in seen hands, with captions and what covers each patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprompt.demo.concepts import SEEN, Context, drawings, lexicon
from fedprompt.demo.drawing import PLAIN, SIZE, Dice, Thing, coverage, paint, readable
from fedprompt.demo.pretraining import captions

PATCH = 8
MIRROR_FROM = 0.72  # icons are mirrored late, as it nearly doubles what there is to learn
BACKGROUND, UNSURE = -1, -2  # patch labels beside the concept numbers


@dataclass(frozen=True)
class Lesson:
    """One picture of pretraining and everything that can be said about it."""

    pixels: NDArray[np.uint8]  # [3, 64, 64]
    cells: NDArray[np.int64]  # [64] concept number of what covers the patch, BACKGROUND or UNSURE
    things: tuple[Thing, ...]
    ground: str
    light: float
    context: str

    def caption(self, dice: Dice) -> str:
        """One of many captions of this picture."""
        phrases = [captions.noun_phrase(dice, thing.concept, thing.colour, thing.size) for thing in self.things]
        if len(self.things) == 2 and dice.uniform() < 0.5:
            first, second = ((thing.x, thing.y) for thing in self.things)
            phrases = [f"{phrases[0]} {captions.relation(first, second)} {phrases[1]}"]
        facts = [captions.where(self.things[0].x, self.things[0].y)] if len(self.things) == 1 else []
        facts.append(f"on a {self.context}" if self.context and dice.uniform() < 0.5 else f"on {self.ground}")
        if self.light < 0.8 or self.light > 1.05:
            facts.append(f"in {captions.LIGHTS[0 if self.light < 0.6 else 1 if self.light < 0.8 else 2]} light")
        return captions.full_caption(dice, phrases, facts)


def lesson(seed: int, number: int, progress: float) -> Lesson:
    """Picture `number` of pretraining; after the first third (`progress` 0..1) half hold two or three objects."""
    dice = Dice(seed, "pretrain", number)
    count = 1 if progress < 0.33 or dice.uniform() < 0.5 else dice.pick((2, 2, 3))
    context = dice.pick(tuple(lexicon().contexts)) if dice.uniform() < 0.25 else ""
    ground, light = _setting(dice, context)
    things = tuple(
        _things(dice, count, ground, effort=min(1.0, progress / 0.15), mirror=0.5 * (progress > MIRROR_FROM))
    )
    pixels = paint(dice, things, ground, PLAIN, light=light)
    return Lesson(pixels.transpose(2, 0, 1).astype(np.uint8), cover(things), things, ground, light, context)


def _setting(dice: Dice, name: str) -> tuple[str, float]:
    if not name:
        return dice.pick(tuple(lexicon().colours)), dice.uniform(0.5, 1.15) if dice.uniform() < 0.4 else 1.0
    context: Context = lexicon().contexts[name]
    return dice.pick(context.background), dice.uniform(*context.light)


def _things(dice: Dice, count: int, ground: str, *, effort: float, mirror: float) -> list[Thing]:
    """Upright, central classes first (`effort` 0), then every concept anywhere (1): shortens the first plateau."""
    world = lexicon()
    sizes = (0.75 - 0.35 * effort, 0.95) if count == 1 else (0.24, 0.5)
    found: list[Thing] = []
    for _ in range(count):
        concept = dice.pick(world.classes if effort < 0.5 or dice.uniform() < 0.55 else world.nouns)
        family = dice.pick([domain for domain in SEEN if drawings(concept, domain)])
        size = dice.uniform(*sizes)
        x, y = (0.5 + effort * (at - 0.5) for at in place(dice, found, size))
        glyph, colour = dice.pick(drawings(concept, family)), dice.pick(readable(ground, PLAIN.contrast))
        angle, stretch = effort * dice.uniform(-0.4, 0.4), 1 + effort * dice.uniform(-0.15, 0.18)
        mirrored = dice.uniform() < mirror
        found.append(Thing(concept, family, glyph, colour, x, y, size, angle, stretch, mirrored))
    return found


def place(
    dice: Dice, others: Sequence[Thing], size: float, band: tuple[float, float] = (0.0, 1.0)
) -> tuple[float, float]:
    """A position inside the picture and the vertical band, away from the others if eight tries find one."""
    margin = min(0.5, 0.42 * size)
    best, at = -1.0, (0.5, 0.5)
    for _ in range(8):
        x = dice.uniform(margin, 1 - margin)
        y = dice.uniform(max(margin, band[0]), max(min(1 - margin, band[1]), margin + 0.01))
        room = min((max(abs(x - other.x), abs(y - other.y)) - (size + other.size) / 2 for other in others), default=1.0)
        if room > best:
            best, at = room, (x, y)
        if room > 0:
            break
    return at


def cover(things: Sequence[Thing]) -> NDArray[np.int64]:
    """[64] what covers each patch: a concept number, BACKGROUND, or UNSURE where an icon touches or encloses it."""
    number = {name: position for position, name in enumerate(lexicon().concepts)}
    cells = np.full((PATCH, PATCH), BACKGROUND)
    side = SIZE // PATCH
    for thing in things:
        share = coverage(thing).reshape(side, PATCH, side, PATCH).mean(axis=(1, 3))  # [rows, columns] of patches
        rows, columns = np.nonzero(share > 0)
        if not len(rows):
            continue
        box = cells[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        box[box == BACKGROUND] = UNSURE
        cells[share > 0.12] = number[thing.concept]
    return cells.flatten()
