"""The multi-label demo data set: two to four objects per image, whose co-occurrence follows five hidden conditions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from fedprompt.data.dataset import Dataset
from fedprompt.data.descriptions import read_descriptions
from fedprompt.data.labels import LabelSpace
from fedprompt.demo.emoji import class_attributes, object_layer, with_distractors
from fedprompt.demo.render import COLOURS, GROUNDS, Draws, Ground, Placement, apart, draw_ground, finish, paint
from fedprompt.demo.rendered import Address, RenderedImages, check_counts
from fedprompt.demo.sprites import SEEN, class_sprites

T = TypeVar("T")
DESCRIPTIONS = Path(str(files("fedprompt.demo") / "descriptions" / "scenes.json"))
AFFINITY = math.log(5.0)  # a class is five times as frequent under each value of a condition that it goes with

# The hidden conditions of an image. All are drawn independently and alike; each shows in the image.
LAYOUTS = {"low": (0.15, 1.0), "high": (-1.0, -0.15), "anywhere": (-1.0, 1.0)}  # vertical band of object centres
SCALES = {"near": (0.4, 0.5), "far": (0.28, 0.36)}  # object size as a fraction of the image
LIGHTS = {"day": (0.95, 1.15), "night": (0.45, 0.7)}
PATTERNS = {"nature": ("plain", "blotched"), "table": ("chequered",), "street": ("striped",)}
SEASONS = {
    "winter": ("white", "grey", "teal", "blue"),
    "summer": ("yellow", "green", "pink"),
    "autumn": ("brown", "orange", "red"),
}

# The classes and the values that each goes with; two classes that share one appear together more often.
GOES_WITH: Mapping[str, tuple[str, ...]] = {
    "snowman": ("winter", "low"),
    "christmas tree": ("winter", "night"),
    "whale": ("winter", "far"),
    "candle": ("night", "table"),
    "bat": ("night", "high"),
    "owl": ("night", "autumn"),
    "rocket": ("high", "night"),
    "airplane": ("high", "far"),
    "balloon": ("high", "day"),
    "satellite": ("high", "winter"),
    "bicycle": ("street", "low"),
    "police car": ("street", "night"),
    "locomotive": ("street", "far"),
    "fire engine": ("street", "day"),
    "pancakes": ("table", "near"),
    "hamburger": ("table", "day"),
    "wine glass": ("table", "low"),
    "watermelon": ("table", "summer"),
    "butterfly": ("nature", "summer"),
    "sunflower": ("summer", "near"),
    "sailboat": ("summer", "far"),
    "mushroom": ("nature", "autumn"),
    "maple leaf": ("autumn", "near"),
    "pig": ("nature", "low"),
}


@dataclass(frozen=True)
class Conditions:
    """The values of the hidden conditions of one image."""

    layout: str
    scale: str
    light: str
    pattern: str
    season: str

    def weights(self) -> Tensor:
        """The relative frequency of each class [C] under these values."""
        values = set(vars(self).values())
        return torch.tensor([AFFINITY * len(values & set(own)) for own in GOES_WITH.values()]).exp()


@dataclass(frozen=True)
class Scene:
    """One image before it is painted."""

    conditions: Conditions
    labels: tuple[int, ...]
    ground: Ground
    light: Tensor  # [1]
    places: tuple[Placement, ...]
    artists: tuple[int, ...]
    draws: Draws


def scenes(*, seed: int = 1, train: int = 120, test: int = 80) -> Dataset:
    """Two to four objects per image, 24 classes; hidden conditions decide which objects co-occur, where and how.

    `train` and `test` images per domain, which is a season and a light. Split `test` has the conditions' co-occurrence
    ("natural"); split `broken` keeps their look but combines any classes.
    Raises UserError if that leaves nothing to test on.
    """
    check_counts("scenes", train, test)
    names, domains = tuple(GOES_WITH), [f"{season}-{light}" for season in SEASONS for light in LIGHTS]
    rows = [
        Address("scenes", split, domain, "", number)
        for split, count in (("train", train), ("test", test), ("broken", test))
        for domain in domains
        for number in range(count)
    ]
    targets = torch.zeros(len(rows), len(names), dtype=torch.int8)
    for row, address in enumerate(rows):
        targets[row, list(_choose(address.draws(seed), address)[1])] = 1
    return Dataset(
        name="scenes",
        source=RenderedImages(seed, tuple(rows), _render),
        space=LabelSpace(
            names,
            kind="multi",
            attributes={name: class_attributes()[name] for name in names},
            conditions=scene_conditions(),
        ),
        targets=targets,
        splits=tuple(row.split for row in rows),
        domains=tuple(row.domain for row in rows),
        base=tuple(range(len(names))),
    )


@lru_cache(maxsize=1)
def scene_conditions() -> tuple[str, ...]:
    """What a text says about the conditions."""
    return read_descriptions(DESCRIPTIONS).conditions


def _choose(draws: Draws, address: Address) -> tuple[Conditions, tuple[int, ...]]:
    """The conditions of an image and the classes that it shows."""
    season, _, light = address.domain.partition("-")
    layout, scale, pattern = (_pick(draws, tuple(options)) for options in (LAYOUTS, SCALES, PATTERNS))
    conditions = Conditions(layout, scale, light, pattern, season)
    count = int(_pick(draws, (2, 3, 3, 4)))
    weights = torch.ones(len(GOES_WITH)) if address.split == "broken" else conditions.weights()
    found = torch.multinomial(weights, count, generator=draws.generator)
    return conditions, tuple(found.tolist())


def _pick(draws: Draws, options: tuple[T, ...]) -> T:
    return options[int(draws.integer(len(options)))]


def compose(seed: int, address: Address) -> Scene:
    """A scene before it is painted: its classes and where they lie, and the draws to paint it with."""
    draws = address.draws(seed)
    conditions, labels = _choose(draws, address)
    colour = list(COLOURS).index(_pick(draws, SEASONS[conditions.season]))
    pattern = GROUNDS.index(_pick(draws, PATTERNS[conditions.pattern]))
    ground = draw_ground(draws, torch.tensor([colour]), torch.tensor([pattern]))
    light = draws.uniform(*LIGHTS[conditions.light])
    band = torch.tensor([LAYOUTS[conditions.layout]])
    places: list[Placement] = []
    for _ in labels:
        placed = apart(draws, places, SCALES[conditions.scale], band)
        places.append(replace(placed, angle=placed.angle * 0.6))
    artists = tuple(int(draws.integer(len(SEEN))) for _ in labels)
    return Scene(conditions, labels, ground, light, tuple(places), artists, draws)


def paint_scene(scene: Scene) -> tuple[Tensor, Tensor]:
    """The image [1, 3, 64, 64] (uint8) and the coverage [n, 64, 64] of each of its objects."""
    names, covers = list(class_attributes()), []
    order = [names.index(name) for name in GOES_WITH]
    canvas = with_distractors(scene.draws, scene.ground, 1)
    for label, artist, placed in zip(scene.labels, scene.artists, scene.places, strict=True):
        row = artist * len(names) + order[label]
        layer = object_layer(scene.draws, class_sprites(), row, placed)
        canvas, cover = paint(canvas, layer, scene.ground.dark)
        covers.append(cover)
    return finish(scene.draws, canvas, scene.light), torch.cat(covers)


def _render(seed: int, address: Address) -> Tensor:
    return paint_scene(compose(seed, address))[0]
