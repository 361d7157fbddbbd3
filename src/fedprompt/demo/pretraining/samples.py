"""Pretraining samples: images with icons of every concept in the seen styles, captions and a label per patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprompt.demo.concepts import SEEN, Context, glyph_names, load_concepts
from fedprompt.demo.drawing import PRETRAINING, SIZE, Draws, Icon, contrasting_colours, coverage, paint
from fedprompt.demo.pretraining import captions

PATCH = 8
MIRROR_FROM = 0.72  # mirrored icons begin late, because they nearly double the number of shapes
BACKGROUND, IGNORED = -1, -2  # patch labels beside the concept numbers


@dataclass(frozen=True)
class PretrainingSample:
    """One image with everything that its captions and labels need."""

    pixels: NDArray[np.uint8]  # [3, 64, 64]
    patch_labels: NDArray[np.int64]  # [64] concept number of what covers the patch, BACKGROUND or IGNORED
    icons: tuple[Icon, ...]
    background: str
    light: float
    context: str

    def caption(self, draws: Draws) -> str:
        """A random caption of this image."""
        phrases = [captions.noun_phrase(draws, icon.concept, icon.colour, icon.size) for icon in self.icons]
        if len(self.icons) == 2 and draws.uniform() < 0.5:
            first, second = ((icon.x, icon.y) for icon in self.icons)
            phrases = [f"{phrases[0]} {captions.relation(first, second)} {phrases[1]}"]
        facts = [captions.where(self.icons[0].x, self.icons[0].y)] if len(self.icons) == 1 else []
        facts.append(f"on a {self.context}" if self.context and draws.uniform() < 0.5 else f"on {self.background}")
        if self.light < 0.8 or self.light > 1.05:
            facts.append(f"in {captions.LIGHTS[0 if self.light < 0.6 else 1 if self.light < 0.8 else 2]} light")
        return captions.full_caption(draws, phrases, facts)


def draw_sample(seed: int, number: int, progress: float) -> PretrainingSample:
    """Draw sample `number`; after the first third of pretraining (`progress` 0..1) half have two or three objects."""
    draws = Draws(seed, "pretrain", number)
    count = 1 if progress < 0.33 or draws.uniform() < 0.5 else draws.pick((2, 2, 3))
    context = draws.pick(tuple(load_concepts().contexts)) if draws.uniform() < 0.25 else ""
    background, light = _setting(draws, context)
    icons = tuple(
        _draw_icons(
            draws, count, background, difficulty=min(1.0, progress / 0.15), mirror=0.5 * (progress > MIRROR_FROM)
        )
    )
    pixels = paint(draws, icons, background, PRETRAINING, light=light)
    return PretrainingSample(
        pixels.transpose(2, 0, 1).astype(np.uint8), label_patches(icons), icons, background, light, context
    )


def _setting(draws: Draws, name: str) -> tuple[str, float]:
    if not name:
        return draws.pick(tuple(load_concepts().colours)), draws.uniform(0.5, 1.15) if draws.uniform() < 0.4 else 1.0
    context: Context = load_concepts().contexts[name]
    return draws.pick(context.background), draws.uniform(*context.light)


def _draw_icons(draws: Draws, count: int, background: str, *, difficulty: float, mirror: float) -> list[Icon]:
    """Icons by curriculum: upright, central classes (`difficulty` 0) up to every concept anywhere (1)."""
    world = load_concepts()
    sizes = (0.75 - 0.35 * difficulty, 0.95) if count == 1 else (0.24, 0.5)
    found: list[Icon] = []
    for _ in range(count):
        concept = draws.pick(world.classes if difficulty < 0.5 or draws.uniform() < 0.55 else world.extra_concepts)
        family = draws.pick([domain for domain in SEEN if glyph_names(concept, domain)])
        size = draws.uniform(*sizes)
        x, y = (0.5 + difficulty * (at - 0.5) for at in sample_position(draws, found, size))
        glyph, colour = (
            draws.pick(glyph_names(concept, family)),
            draws.pick(contrasting_colours(background, PRETRAINING.contrast)),
        )
        angle, stretch = difficulty * draws.uniform(-0.4, 0.4), 1 + difficulty * draws.uniform(-0.15, 0.18)
        mirrored = draws.uniform() < mirror
        found.append(Icon(concept, family, glyph, colour, x, y, size, angle, stretch, mirrored))
    return found


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


def label_patches(icons: Sequence[Icon]) -> NDArray[np.int64]:
    """The label [64] of each patch: a concept number, BACKGROUND, or IGNORED where an icon only touches it."""
    number = {name: position for position, name in enumerate(load_concepts().concepts)}
    patch_labels = np.full((PATCH, PATCH), BACKGROUND)
    side = SIZE // PATCH
    for icon in icons:
        share = coverage(icon).reshape(side, PATCH, side, PATCH).mean(axis=(1, 3))  # [rows, columns] of patches
        rows, columns = np.nonzero(share > 0)
        if not len(rows):
            continue
        box = patch_labels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        box[box == BACKGROUND] = IGNORED
        patch_labels[share > 0.12] = number[icon.concept]
    return patch_labels.flatten()
