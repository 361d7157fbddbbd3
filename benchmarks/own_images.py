"""Folders of drawn images as users have them: class folders, a domain tree, cluttered images, tables of labels."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fedprompt.demo.emoji import emoji
from fedprompt.demo.scenes import scenes
from fedprompt.demo.sprites import SEEN
from fedprompt.seeding import numpy_stream

SIZE = 160  # pixels of the images in the files
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
PATTERNS = ("stripes", "checks", "dots", "waves")
COLOURS = {"red": (200, 40, 40), "green": (40, 150, 60), "blue": (40, 70, 200), "yellow": (220, 200, 50)}


@dataclass(frozen=True)
class OwnImages:
    """A data set to draw: `draw(folder, seed)` writes it and returns what `data.path` is to be.

    `recipe` is the recipe that reads it, `settings` are further ones.
    """

    recipe: str
    draw: Callable[[Path, int], Path]
    settings: tuple[str, ...] = ()


def drawings(
    folder: Path, seed: int, *, classes: slice, each: int, domains: Sequence[str], clutter: float = 0.0
) -> Path:
    """Drawings of some of the demo's classes, `each` of a class and domain; several domains make a domain tree."""
    data = emoji(seed=seed, train=each, test=each)
    wanted = set(data.space.names[classes])
    for row, domain in enumerate(data.domains):
        name, number = data.space.names[int(data.targets[row])], row % each
        if name in wanted and domain in domains and data.splits[row] == "test":
            place = folder / domain / name if len(domains) > 1 else folder / name
            _save(data.source.open(row), place / f"{number:03d}.jpg", clutter=clutter, seed=seed, address=(row,))
    return folder


def shapes(folder: Path, seed: int, *, each: int, clutter: float = 0.0) -> Path:
    """Coloured shapes, one class per colour and shape: pixels that no artist has drawn."""
    for name, colour, shape in _coloured_shapes():
        for number in range(each):
            image = _background(seed, name, number)
            _draw_shape(image, shape, colour, seed, name, number)
            _save(image, folder / name / f"{number:03d}.jpg", clutter=clutter, seed=seed, address=(name, number))
    return folder


def textures(folder: Path, seed: int, *, each: int, clutter: float = 0.0) -> Path:
    """Surfaces as of cloth, one class per colour and pattern: images without an object."""
    for colour, rgb in COLOURS.items():
        for pattern in PATTERNS:
            name = f"{colour} {pattern}"
            for number in range(each):
                image = _texture(pattern, rgb, seed, number)
                _save(image, folder / name / f"{number:03d}.jpg", clutter=clutter, seed=seed, address=(name, number))
    return folder


def scene_table(folder: Path, seed: int, *, images: int, clutter: float = 0.0) -> Path:
    """Scenes of several objects with a table of their labels."""
    data = scenes(seed=seed, train=1, test=math.ceil(images / len(set(scenes(seed=seed).domains))))
    rows = [row for row, split in enumerate(data.splits) if split == "test"][:images]

    def drawn() -> Iterator[tuple[Image.Image, list[str]]]:
        for row in rows:
            present = [name for name, one in zip(data.space.names, data.targets[row].tolist(), strict=True) if one == 1]
            yield data.source.open(row), present

    return _write_table(folder, drawn(), clutter=clutter, seed=seed)


def shape_table(folder: Path, seed: int, *, images: int, clutter: float = 0.0) -> Path:
    """Images of two to four coloured shapes each, with a table of the shapes' names."""

    def drawn() -> Iterator[tuple[Image.Image, list[str]]]:
        for number in range(images):
            draws = numpy_stream(seed, "own images", number)
            image, found = _background(seed, "table", number), list(draws.permutation(len(SHAPES)))[: 1 + number % 3]
            for place, shape in enumerate(found):
                colour = list(COLOURS.values())[int(draws.integers(len(COLOURS)))]
                _draw_shape(image, SHAPES[shape], colour, seed, f"{number}", place)
            yield image, [SHAPES[shape] for shape in found]

    return _write_table(folder, drawn(), clutter=clutter, seed=seed)


def _coloured_shapes() -> list[tuple[str, tuple[int, int, int], str]]:
    return [(f"{colour} {shape}", rgb, shape) for colour, rgb in COLOURS.items() for shape in SHAPES[:4]]


def _background(seed: int, name: str, number: int) -> Image.Image:
    draws = numpy_stream(seed, "background", name, number)
    coarse = draws.uniform(90, 235, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def _texture(pattern: str, colour: tuple[int, int, int], seed: int, number: int) -> Image.Image:
    draws = numpy_stream(seed, "texture", pattern, *colour, number)
    period, turn, phase = draws.uniform(14, 40), draws.uniform(0, 2 * math.pi), draws.uniform(0, 2 * math.pi, 2)
    ground = draws.uniform(90, 235, 3)
    rows, columns = np.mgrid[:SIZE, :SIZE] * 2 * math.pi / period
    along, across = (
        columns * math.cos(turn + angle) + rows * math.sin(turn + angle) + shift
        for angle, shift in zip((0, math.pi / 2), phase, strict=True)
    )
    marked = {
        "stripes": np.sin(along) > 0,
        "checks": (np.sin(along) > 0) ^ (np.sin(across) > 0),
        "dots": np.sin(along) + np.sin(across) > 1.1,
        "waves": np.sin(along + 1.6 * np.sin(across / 2)) > 0,
    }[pattern]
    return Image.fromarray(np.where(marked[:, :, None], colour, ground).astype(np.uint8))


def _draw_shape(
    image: Image.Image, shape: str, colour: tuple[int, int, int], seed: int, name: str, number: int
) -> None:
    draws = numpy_stream(seed, "shape", name, number)
    size, turn = draws.uniform(0.18, 0.32) * SIZE, draws.uniform(0, 2 * math.pi)
    x, y = draws.uniform(0.3, 0.7, 2) * SIZE
    pen, box = ImageDraw.Draw(image), (x - size, y - size, x + size, y + size)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "ring":
        pen.ellipse(box, outline=colour, width=max(4, int(size / 3)))
    else:
        pen.polygon(_corners(shape, (x, y), size, turn), fill=colour)


def _corners(shape: str, centre: tuple[float, float], size: float, turn: float) -> list[tuple[float, float]]:
    """The corners of a shape, as distances from its centre at equal angles."""
    lengths = {"square": [1.0] * 4, "triangle": [1.0] * 3, "star": [1.0, 0.4] * 5, "cross": [1.0, 1.0, 0.35] * 4}[shape]
    step = 2 * math.pi / len(lengths)
    return [
        (
            centre[0] + size * length * math.cos(turn + step * place),
            centre[1] + size * length * math.sin(turn + step * place),
        )
        for place, length in enumerate(lengths)
    ]


def _write_table(folder: Path, drawn: Iterator[tuple[Image.Image, list[str]]], *, clutter: float, seed: int) -> Path:
    lines = []
    for number, (image, present) in enumerate(drawn):
        _save(image, folder / f"{number:04d}.jpg", clutter=clutter, seed=seed, address=(number,))
        lines.append((f"{number:04d}.jpg", ";".join(present)))
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", "labels"), *lines])
    return folder / "labels.csv"


def _save(image: Image.Image, path: Path, *, clutter: float, seed: int, address: tuple[int | str, ...]) -> None:
    """Write a JPEG; `clutter` from 0 to 1 adds light, blobs, grain, blur and compression, as photographs have."""
    draws = numpy_stream(seed, "clutter", *address)
    image = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    if clutter:
        light = Image.fromarray(draws.uniform(255 * (1 - 0.7 * clutter), 255, (4, 4, 3)).astype(np.uint8))
        shade = np.asarray(light.resize(image.size, Image.Resampling.BICUBIC), dtype=np.float32) / 255
        grain = draws.normal(0, 22 * clutter, (SIZE, SIZE, 1))
        image = Image.fromarray(np.clip(np.asarray(image) * shade + grain, 0, 255).astype(np.uint8))
        for _ in range(int(6 * clutter)):
            x, y = draws.uniform(-0.1, 1.1, 2) * SIZE
            size, colour = draws.uniform(0.03, 0.12) * SIZE, tuple(int(one) for one in draws.uniform(20, 235, 3))
            ImageDraw.Draw(image).ellipse((x - size, y - size, x + size, y + size), fill=colour)
        image = image.rotate(draws.uniform(-12, 12) * clutter, Image.Resampling.BICUBIC, fillcolor=(120, 120, 120))
        image = image.filter(ImageFilter.GaussianBlur(1.2 * clutter))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=int(90 - 50 * clutter))


SHADED, PLAIN = "emojione", "noto-v1"  # artists whom pretraining did not see
TUNED: Mapping[str, OwnImages] = {  # what tuned defaults are chosen on
    "emoji": OwnImages("own_folder", partial(drawings, classes=slice(0, 60, 4), each=14, domains=("noto",))),
    "cluttered emoji": OwnImages(
        "own_folder", partial(drawings, classes=slice(1, 60, 5), each=14, domains=(SHADED,), clutter=0.5)
    ),
    "domains": OwnImages("own_folder", partial(drawings, classes=slice(2, 60, 6), each=8, domains=SEEN)),
    "shapes": OwnImages("own_folder", partial(shapes, each=12), ('data.template="a drawing of a {}."',)),
    "scenes": OwnImages("own_table", partial(scene_table, images=200)),
    "shape table": OwnImages("own_table", partial(shape_table, images=200, clutter=0.2)),
}
CHECKED: Mapping[str, OwnImages] = {  # what they are checked on: other classes, styles and clutter
    "class folders": OwnImages(
        "own_folder", partial(drawings, classes=slice(100, 117), each=24, domains=(PLAIN,), clutter=0.3)
    ),
    "domain tree": OwnImages(
        "own_folder",
        partial(drawings, classes=slice(3, 60, 4), each=10, domains=(SHADED, PLAIN, "twemoji"), clutter=0.2),
    ),
    "label table": OwnImages("own_table", partial(scene_table, images=400, clutter=0.3)),
    "textures": OwnImages(
        "own_folder", partial(textures, each=24, clutter=0.4), ('data.template="a photo of a surface with {}."',)
    ),
}


def draw(sets: Mapping[str, OwnImages], folder: Path, *, seed: int) -> dict[str, tuple[str, ...]]:
    """Draw the sets that are not there yet; returns the settings of each one's recipe."""
    settings = {}
    for name, one in sets.items():
        place, marker = folder / name.replace(" ", "-"), folder / f".{name.replace(' ', '-')}.path"
        if not marker.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            marker.write_text(str(one.draw(place, seed).resolve()), encoding="utf-8")
        settings[name] = (f"data.path={marker.read_text(encoding='utf-8')}", *one.settings)
    return settings
