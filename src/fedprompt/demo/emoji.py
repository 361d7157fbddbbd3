"""The single-label demo data set: 120 classes drawn by six artists, rendered on demand."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from fedprompt.data.dataset import Dataset
from fedprompt.data.descriptions import read_descriptions
from fedprompt.data.labels import LabelSpace
from fedprompt.demo.render import (
    Draws,
    Ground,
    Layer,
    Placement,
    Sprites,
    at_border,
    draw_ground,
    draw_light,
    draw_placement,
    finish,
    gains,
    paint,
)
from fedprompt.demo.rendered import Address, RenderedImages, check_counts
from fedprompt.demo.sprites import ARTISTS, SEEN, UNSEEN, class_sprites, distractor_sprites

DESCRIPTIONS = Path(str(files("fedprompt.demo") / "descriptions" / "emoji.json"))
NOISE = (0.0, 0.17)  # deviation of the grain; pretraining has about a third of that at most
BASE = 60  # the first classes in the order of the descriptions file; the other 60 are new


@lru_cache(maxsize=1)
def class_attributes() -> dict[str, tuple[str, ...]]:
    """The classes in their fixed shuffled order, with the attributes of each."""
    return dict(read_descriptions(DESCRIPTIONS).attributes)


def emoji(*, seed: int = 1, train: int = 16, test: int = 12) -> Dataset:
    """One object per image: 120 classes by three artists (domains) that pretraining saw and three that it did not.

    `train` images per class and seen artist, `test` images per class and artist. Another seed draws other images.
    Raises UserError if that leaves nothing to test on.
    """
    check_counts("emoji", train, test)
    names = tuple(class_attributes())
    rows = [
        Address("emoji", split, artist, name, number)
        for split, count, artists in (("train", train, SEEN), ("test", test, ARTISTS))
        for artist in artists
        for name in names
        for number in range(count)
    ]
    position = {name: label for label, name in enumerate(names)}
    return Dataset(
        name="emoji",
        source=RenderedImages(seed, tuple(rows), _render),
        space=LabelSpace(names, attributes=class_attributes()),
        targets=torch.tensor([position[row.concept] for row in rows]),
        splits=tuple(row.split for row in rows),
        domains=tuple(row.domain for row in rows),
        base=tuple(range(BASE)),
        new=tuple(range(BASE, len(names))),
        unseen_domains=UNSEEN,
    )


def _render(seed: int, address: Address) -> Tensor:
    names = list(class_attributes())
    row = ARTISTS.index(address.domain) * len(names) + names.index(address.concept)
    return render_single(address.draws(seed), class_sprites(), row)


def render_single(draws: Draws, sprites: Sprites, row: int) -> Tensor:
    """One image [1, 3, 64, 64] of the data set: a drawing, up to four distractors, ground, light and noise."""
    ground, light = draw_ground(draws), draw_light(draws)
    canvas = with_distractors(draws, ground, 4)
    placed = draw_placement(draws, (0.3, 0.6))
    canvas, _ = paint(canvas, object_layer(draws, sprites, row, placed), ground.dark)
    return finish(draws, canvas, light, NOISE)


def with_distractors(draws: Draws, ground: Ground, count: int) -> Tensor:
    """The ground [B, 3, 64, 64] with up to `count` small drawings of other things near its border."""
    sprites, canvas = distractor_sprites(), ground.pixels
    for _ in range(count):
        rows = draws.integer(len(sprites.pixels))
        placed, opacity = at_border(draws, (0.22, 0.42)), draws.uniform(0.6, 1) * draws.happens(0.8)
        canvas, _ = paint(canvas, Layer(sprites.premultiplied(rows), sprites.mono[rows], placed, opacity), ground.dark)
    return canvas


def object_layer(draws: Draws, sprites: Sprites, row: int, placed: Placement) -> Layer:
    """A drawing in a random gain and opacity."""
    rows = torch.tensor([row])
    drawing, mono = sprites.premultiplied(rows, small=bool(placed.size.max() < 0.4)), sprites.mono[rows]
    opacity, colours = draws.uniform(0.8, 1), gains(draws)
    return Layer(drawing, mono, placed, opacity, torch.where(mono[:, None, None], torch.eye(3), colours))
