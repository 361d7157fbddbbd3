"""Pretraining batches: images of one or several objects, captions, and what each patch shows.

Shapes: B images, T texts, K concepts, P = 64 patches. Batch `step` is a function of the seed and the step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fedprompt.demo.pretraining.captions import Chooser, Shown, caption
from fedprompt.demo.pretraining.vocabulary import Vocabulary
from fedprompt.demo.render import (
    COLOURS,
    GROUNDS,
    PATCH,
    Draws,
    Ground,
    Layer,
    Placement,
    Sprites,
    apart,
    at_border,
    draw_ground,
    draw_light,
    draw_placement,
    finish,
    gains,
    paint,
)
from fedprompt.demo.sprites import SEEN
from fedprompt.seeding import stream

SINGLE, SEVERAL = 32, 6  # images of one object and of two to four in a group, which is rendered together
CAPTIONED, ALONE = 12, 8  # captions of images of one object, and of all concepts alike without an image, per group
EASY_STEPS = 600  # rotation, stretch and distractors grow over these
BACKGROUND, IGNORED = -1, -2  # labels of patches beside concepts


@dataclass(frozen=True)
class Mixture:
    """Shares of images whose colours say little, and of captions with any words before the description."""

    mono: float  # single-colour drawings
    recoloured: float  # grey or hue-rotated ones
    strange_starts: float


EARLY = Mixture(mono=0.1, recoloured=0.1, strange_starts=0.0)
LATE = Mixture(mono=0.4, recoloured=0.2, strange_starts=0.15)  # at the end: shapes of unseen artists, contexts


@dataclass(frozen=True)
class Object:
    """One object in each of some images of a group: which, drawn by whom, where, and the patches it covers."""

    image: Tensor  # [n] position in the group
    concept: Tensor
    artist: Tensor
    true_colours: Tensor
    placed: Placement
    cover: Tensor  # [n, P] share of each patch


@dataclass(frozen=True)
class Batch:
    """Images with their objects, and captions: first of some images of one object, then some without an image."""

    pixels: Tensor  # [B, 3, 64, 64] uint8
    object_image: Tensor  # [O] the image of each object
    object_concept: Tensor  # [O]
    attributes: Tensor  # [B, A] each image's attributes as a distribution
    patches: Tensor  # [B, P] the concept that covers the patch, BACKGROUND or IGNORED
    texts: tuple[str, ...]  # T
    text_concept: Tensor  # [T]
    text_image: Tensor  # [S] the images of the first S texts

    def shares(self, concepts: int) -> Tensor:
        """[B, K] each image's objects as a distribution over concepts."""
        found = torch.zeros(len(self.pixels), concepts)
        found[self.object_image, self.object_concept] = 1
        return found / found.sum(dim=1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Sampler:
    """Draws the batches of pretraining."""

    vocabulary: Vocabulary
    seed: int
    groups: int  # per batch

    @cached_property
    def _sprites(self) -> tuple[Sprites, Tensor]:
        return self.vocabulary.sprites()

    @property
    def images(self) -> int:
        """Images per batch."""
        return self.groups * (SINGLE + SEVERAL)

    def batch(self, step: int, mixture: Mixture = EARLY) -> Batch:
        """Batch number `step`."""
        ease = min(1.0, step / EASY_STEPS)
        choose = Chooser(self.seed, "captions", step)
        groups: list[tuple[Tensor, list[Object]]] = []
        texts: list[str] = []
        for number in range(self.groups):
            generator = stream(self.seed, "images", step, number)
            pixels, own, shown = self._single(Draws(generator, SINGLE), ease, mixture)
            groups += [(pixels, [own]), self._several(Draws(generator, SEVERAL), mixture)]
            texts += [caption(choose, self.vocabulary, facts, mixture.strange_starts) for facts in shown[:CAPTIONED]]
        count = len(self.vocabulary.concepts)
        alone = torch.randint(count, (ALONE * self.groups,), generator=stream(self.seed, "texts", step))
        imagined = [_imagined(choose, number) for number in alone.tolist()]
        texts += [caption(choose, self.vocabulary, facts, mixture.strange_starts) for facts in imagined]
        first = [0, *itertools.accumulate(len(pixels) for pixels, _ in groups)]
        objects = [(start, part) for start, (_, found) in zip(first, groups, strict=False) for part in found]
        single = [(start, found[0]) for start, (_, found) in zip(first, groups, strict=False) if len(found) == 1]
        return Batch(
            pixels=torch.cat([pixels for pixels, _ in groups]),
            object_image=torch.cat([start + part.image for start, part in objects]),
            object_concept=torch.cat([part.concept for _, part in objects]),
            attributes=self._attributes(objects, first[-1]),
            patches=torch.cat([label_patches(found, len(pixels)) for pixels, found in groups]),
            texts=tuple(texts),
            text_concept=torch.cat([*(part.concept[:CAPTIONED] for _, part in single), alone]),
            text_image=torch.cat([start + part.image[:CAPTIONED] for start, part in single]),
        )

    def _attributes(self, objects: Sequence[tuple[int, Object]], images: int) -> Tensor:
        """[B, A] the attributes of each image's objects; colours only where they are true."""
        table, colours = self.vocabulary.attribute_table
        found = torch.zeros(images, table.shape[1])
        for start, part in objects:
            own = table[part.concept] * (part.true_colours[:, None] | ~colours)
            found.index_add_(0, start + part.image, own)
        return found / found.sum(dim=1, keepdim=True)

    def _single(self, draws: Draws, ease: float, mixture: Mixture) -> tuple[Tensor, Object, list[Shown]]:
        """One object per image, and up to two distractors at the border."""
        ground, light = draw_ground(draws), draw_light(draws)
        canvas, other = ground.pixels, torch.full((draws.count,), -1)
        for _ in range(2):
            concept, _, rows = self._choose(draws, mixture)
            present = draws.happens(0.5 * ease)
            sprites = self._sprites[0]
            opacity = draws.uniform(0.6, 1) * present
            drawing, placed = sprites.premultiplied(rows, small=True), at_border(draws, (0.2, 0.38))
            canvas, _ = paint(canvas, Layer(drawing, sprites.mono[rows], placed, opacity), ground.dark)
            other = torch.where(present, concept, other)
        placed = draw_placement(draws, (0.4, 0.9))
        placed = replace(placed, angle=placed.angle * ease, stretch=1 + (placed.stretch - 1) * ease)
        present = torch.ones(draws.count, dtype=torch.bool)
        canvas, own = self._object(draws, canvas, ground, placed, present, mixture)
        return finish(draws, canvas, light), own, _shown(own, ground, light, other)

    def _several(self, draws: Draws, mixture: Mixture) -> tuple[Tensor, list[Object]]:
        """Two to four objects per image, apart from each other."""
        ground, light = draw_ground(draws), draw_light(draws)
        canvas, count = ground.pixels, 2 + draws.integer(3)
        places: list[Placement] = []
        objects: list[Object] = []
        for number in range(4):
            places.append(apart(draws, places, (0.2, 0.48)))
            canvas, own = self._object(draws, canvas, ground, places[-1], count > number, mixture)
            objects.append(own)
        return finish(draws, canvas, light), objects

    def _object(
        self, draws: Draws, canvas: Tensor, ground: Ground, placed: Placement, present: Tensor, mixture: Mixture
    ) -> tuple[Tensor, Object]:
        concept, artist, rows = self._choose(draws, mixture)
        sprites, recolour = self._sprites[0], draws.happens(mixture.recoloured)
        colours = torch.where(recolour[:, None, None], _hue_rotations(draws), gains(draws))
        small = bool(placed.size.max() < 0.5)
        layer = Layer(
            sprites.premultiplied(rows, small=small),
            sprites.mono[rows],
            placed,
            draws.uniform(0.8, 1) * present,
            torch.where(sprites.mono[rows][:, None, None], torch.eye(3), colours),
        )
        canvas, cover = paint(canvas, layer, ground.dark)
        kept = present.nonzero()[:, 0]
        placed = Placement(**{name: value[kept] for name, value in vars(placed).items()})
        share = F.avg_pool2d(cover[kept][:, None], PATCH).flatten(1)  # [n, P]
        true_colours = ~(recolour | sprites.mono[rows])
        return canvas, Object(kept, concept[kept], artist[kept], true_colours[kept], placed, share)

    def _choose(self, draws: Draws, mixture: Mixture) -> tuple[Tensor, Tensor, Tensor]:
        """A concept, an artist and the row of its drawing, per image [B]."""
        table = self._sprites[1]
        frequencies = self.vocabulary.frequencies
        concept = torch.multinomial(frequencies, draws.count, replacement=True, generator=draws.generator)
        artist = draws.integer(3)
        mono = draws.happens(mixture.mono) & (table[concept, 3] >= 0)
        artist = torch.where(mono, 3, artist)
        return concept, artist, table[concept, artist]


def _hue_rotations(draws: Draws) -> Tensor:
    """Matrices [B, 3, 3] that turn hues by any angle, a third of them to grey."""
    angle = draws.uniform(0, 2 * math.pi)
    luma = torch.tensor([0.299, 0.587, 0.114]).expand(3, 3)
    axis = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    chroma = torch.eye(3) - luma
    turned = luma + angle.cos()[:, None, None] * chroma + angle.sin()[:, None, None] * (axis @ chroma)
    return torch.where(draws.happens(0.33)[:, None, None], luma, turned)


def label_patches(objects: Sequence[Object], images: int) -> Tensor:
    """[B, P] the concept that covers each patch, BACKGROUND, or IGNORED where an object only touches it."""
    labels = torch.full((images, objects[0].cover.shape[1]), BACKGROUND)
    for one in objects:
        touched = torch.where((one.cover > 0.01) & (labels[one.image] < 0), IGNORED, labels[one.image])
        labels[one.image] = torch.where(one.cover > 0.3, one.concept[:, None], touched)
    return labels


def _shown(one: Object, ground: Ground, light: Tensor, other: Tensor) -> list[Shown]:
    at, beside = one.image, other[one.image]
    beside = torch.where(beside == one.concept, -1, beside)
    columns = (one.concept, one.artist, one.true_colours, one.placed.x, one.placed.y, one.placed.size)
    setting = (ground.colour[at], ground.pattern[at], light[at], beside)
    return [Shown(*row) for row in zip(*(column.tolist() for column in (*columns, *setting)), strict=True)]


def _imagined(choose: Chooser, concept: int) -> Shown:
    """What an image of the concept might show, for a caption without an image."""
    x, y, size = 2 * choose.number() - 1, 2 * choose.number() - 1, 0.4 + 0.5 * choose.number()
    ground, pattern = choose.pick(range(len(COLOURS))), choose.pick(range(len(GROUNDS)))
    return Shown(
        concept,
        choose.pick(range(len(SEEN))),
        true_colours=True,
        x=x,
        y=y,
        size=size,
        ground=ground,
        pattern=pattern,
        light=1.0,
        other=-1,
    )
