"""Pretraining batches: images of one or several objects, a caption per object, and what each patch shows.

Shapes: B images, T texts (one per object), P = 64 patches. Batch `step` is a function of the seed and the step.
"""

from __future__ import annotations

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
from fedprompt.seeding import stream

SINGLE, SEVERAL = 32, 6  # images of one object and of two to four in a group, which is rendered together
MONO_SHARE, RECOLOURED_SHARE = 0.1, 0.1  # single-colour drawings; grey or hue-rotated ones
EASY_STEPS = 600  # rotation, stretch and distractors grow over these
BACKGROUND, IGNORED = -1, -2  # labels of patches beside the positions of texts


@dataclass(frozen=True)
class Object:
    """One object in each of some images of a group: which, drawn by whom, where, and the patches it covers."""

    image: Tensor  # [n] position in the group
    concept: Tensor
    hand: Tensor
    true_colours: Tensor
    placed: Placement
    cover: Tensor  # [n, P] share of each patch


@dataclass(frozen=True)
class Batch:
    """Images with one caption per object."""

    pixels: Tensor  # [B, 3, 64, 64] uint8
    texts: tuple[str, ...]  # T
    image: Tensor  # [T] the image of each text
    concept: Tensor  # [T]
    patches: Tensor  # [B, P] the text whose object covers the patch, BACKGROUND or IGNORED

    @cached_property
    def positive(self) -> Tensor:
        """[B, T] whether the text describes an object of the image."""
        return self.image == torch.arange(len(self.pixels))[:, None]

    @cached_property
    def masked(self) -> Tensor:
        """[B, T] whether the text is left out for the image: it describes the same concept in another image."""
        same = self.concept[:, None] == self.concept  # [T, T]
        shows = (self.positive.float() @ same.float()) > 0  # [B, T]
        return shows & ~self.positive


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

    def batch(self, step: int) -> Batch:
        """Batch number `step`."""
        ease = min(1.0, step / EASY_STEPS)
        found = []
        for number in range(self.groups):
            generator = stream(self.seed, "images", step, number)
            found += [self._single(Draws(generator, SINGLE), ease), self._several(Draws(generator, SEVERAL))]
        choose = Chooser(self.seed, "captions", step)
        first, pixels, texts, image, concept, patches = 0, [], [], [], [], []  # type: ignore[var-annotated]
        for drawn, objects, shown in found:
            labels = label_patches(objects, len(drawn))
            patches.append(torch.where(labels >= 0, labels + len(texts), labels))
            texts += [caption(choose, self.vocabulary, one) for one in shown]
            image += [first + one.image for one in objects]
            concept += [one.concept for one in objects]
            pixels.append(drawn)
            first += len(drawn)
        return Batch(torch.cat(pixels), tuple(texts), torch.cat(image), torch.cat(concept), torch.cat(patches))

    def _single(self, draws: Draws, ease: float) -> tuple[Tensor, list[Object], list[Shown]]:
        """One object per image, and up to two distractors at the border."""
        ground, light = draw_ground(draws), draw_light(draws)
        canvas, other = ground.pixels, torch.full((draws.count,), -1)
        for _ in range(2):
            concept, hand, rows = self._choose(draws)
            present = draws.happens(0.5 * ease)
            sprites = self._sprites[0]
            opacity = draws.uniform(0.6, 1) * present
            drawing = sprites.premultiplied(rows, small=True)
            canvas, _ = paint(canvas, Layer(drawing, sprites.mono[rows], at_border(draws, (0.2, 0.38)), opacity), ground.dark)
            other = torch.where(present, concept, other)
        placed = draw_placement(draws, (0.4, 0.9))
        placed = replace(placed, angle=placed.angle * ease, stretch=1 + (placed.stretch - 1) * ease)
        canvas, own = self._object(draws, canvas, ground, placed, torch.ones(draws.count, dtype=torch.bool))
        return finish(draws, canvas, light), [own], _shown([own], ground, light, other)

    def _several(self, draws: Draws) -> tuple[Tensor, list[Object], list[Shown]]:
        """Two to four objects per image, apart from each other."""
        ground, light = draw_ground(draws), draw_light(draws)
        canvas, count = ground.pixels, 2 + draws.integer(3)
        places: list[Placement] = []
        objects: list[Object] = []
        for number in range(4):
            places.append(apart(draws, places, (0.2, 0.48)))
            canvas, own = self._object(draws, canvas, ground, places[-1], count > number)
            objects.append(own)
        other = torch.zeros(draws.count, dtype=torch.long)
        other[objects[0].image] = objects[0].concept
        return finish(draws, canvas, light), objects, _shown(objects, ground, light, other)

    def _object(
        self, draws: Draws, canvas: Tensor, ground: Ground, placed: Placement, present: Tensor
    ) -> tuple[Tensor, Object]:
        concept, hand, rows = self._choose(draws)
        sprites, recolour = self._sprites[0], draws.happens(RECOLOURED_SHARE)
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
        return canvas, Object(kept, concept[kept], hand[kept], true_colours[kept], placed, share)

    def _choose(self, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """A concept, a hand and the row of its drawing, per image [B]."""
        table = self._sprites[1]
        frequencies = self.vocabulary.frequencies
        concept = torch.multinomial(frequencies, draws.count, replacement=True, generator=draws.generator)
        hand = draws.integer(3)
        mono = draws.happens(MONO_SHARE) & (table[concept, 3] >= 0)
        hand = torch.where(mono, 3, hand)
        return concept, hand, table[concept, hand]


def _hue_rotations(draws: Draws) -> Tensor:
    """Matrices [B, 3, 3] that turn hues by any angle, a third of them to grey."""
    angle = draws.uniform(0, 2 * math.pi)
    luma = torch.tensor([0.299, 0.587, 0.114]).expand(3, 3)
    axis = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    chroma = torch.eye(3) - luma
    turned = luma + angle.cos()[:, None, None] * chroma + angle.sin()[:, None, None] * (axis @ chroma)
    return torch.where(draws.happens(0.33)[:, None, None], luma, turned)


def label_patches(objects: Sequence[Object], images: int) -> Tensor:
    """[B, P] the position of the object (counted over all) that covers each patch, BACKGROUND, or IGNORED if barely."""
    labels = torch.full((images, objects[0].cover.shape[1]), BACKGROUND)
    first = 0
    for one in objects:
        mine = labels[one.image]
        number = first + torch.arange(len(one.image))[:, None]
        mine = torch.where(one.cover > 0.3, number, torch.where((one.cover > 0.01) & (mine < 0), IGNORED, mine))
        labels[one.image] = mine
        first += len(one.image)
    return labels


def _shown(objects: Sequence[Object], ground: Ground, light: Tensor, other: Tensor) -> list[Shown]:
    found = []
    for one in objects:
        at, beside = one.image, other[one.image]
        beside = torch.where(beside == one.concept, -1, beside)
        columns = (one.concept, one.hand, one.true_colours, one.placed.x, one.placed.y, one.placed.size)
        setting = (ground.colour[at], ground.pattern[at], light[at], beside)
        found += [Shown(*row) for row in zip(*(column.tolist() for column in (*columns, *setting)), strict=True)]
    return found
