"""One picture from a handful of numbers: backdrop, icons through a random affine map, clutter, light and noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fedprompt.demo import fonts
from fedprompt.demo.concepts import lexicon
from fedprompt.seeding import stream

SIZE = 64  # pixels, both ways
Pixels = NDArray[np.float32]  # [64, 64] or [64, 64, 3], 0 to 255 for colours and 0 to 1 for coverage
T = TypeVar("T")

_LINE = np.linspace(-1, 1, SIZE, dtype=np.float32)
_X, _Y = np.meshgrid(_LINE, _LINE)


class Dice:
    """Cheap addressed draws: torch fills a page of uniforms at a time, because single draws are slow."""

    def __init__(self, seed: int, *address: str | int) -> None:
        self._generator = stream(seed, *address)
        self._page: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """One number in [low, high)."""
        if not self._page:
            self._page = torch.rand(64, generator=self._generator).tolist()
        return low + (high - low) * self._page.pop()

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all alike."""
        return options[min(int(self.uniform() * len(options)), len(options) - 1)]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different options."""
        left = list(options)
        return [left.pop(min(int(self.uniform() * len(left)), len(left) - 1)) for _ in range(count)]

    def weighted(self, weights: Sequence[float]) -> int:
        """A position, drawn in proportion to its weight."""
        at = self.uniform(0, sum(weights))
        for position, weight in enumerate(weights):
            at -= weight
            if at < 0:
                return position
        return len(weights) - 1

    def noise(self, *shape: int) -> Pixels:
        """Standard normal numbers."""
        values: Pixels = torch.randn(shape, generator=self._generator).numpy()
        return values


@dataclass(frozen=True)
class Look:
    """How hard pictures are to read. Ranges are drawn from uniformly, for every picture anew."""

    strength: tuple[float, float] = (0.75, 1.0)  # opacity of the icons
    contrast: float = 110.0  # least distance in RGB between an icon's colour and the backdrop's
    noise: tuple[float, float] = (0.0, 16.0)  # standard deviation, in grey levels
    texture: tuple[float, float] = (0.0, 18.0)  # amplitude, in grey levels
    patterns: tuple[str, ...] = ("plain", "blotches")
    clutter: int = 0  # at most so many faint fragments of other icons


PLAIN = Look()  # what pretraining draws


@dataclass(frozen=True)
class Thing:
    """One icon on the canvas; positions and size are fractions of the picture."""

    concept: str
    family: str
    glyph: str
    colour: str
    x: float
    y: float
    size: float
    angle: float = 0.0  # radians
    stretch: float = 1.0
    mirrored: bool = False


def coverage(thing: Thing) -> Pixels:
    """[64, 64] in 0..1: how much of each pixel the icon covers."""
    pixels = thing.size * SIZE
    side = next((side for side in (24, 48) if side >= pixels), fonts.SIDE)
    cos, sin = math.cos(thing.angle) * side / pixels, math.sin(thing.angle) * side / pixels
    a, b, d, e = cos * thing.stretch, sin * thing.stretch, -sin / thing.stretch, cos / thing.stretch
    a, b = (-a, -b) if thing.mirrored else (a, b)
    left, top = thing.x * SIZE, thing.y * SIZE
    inverse = (a, b, side / 2 - a * left - b * top, d, e, side / 2 - d * left - e * top)
    drawn = fonts.mask(thing.family, thing.glyph, side).transform(
        (SIZE, SIZE), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
    )
    covered: Pixels = np.asarray(drawn, dtype=np.float32) / np.float32(255)
    return covered


def rgb(name: str) -> tuple[int, int, int]:
    """A named colour."""
    return lexicon().colours[name]


def jittered(dice: Dice, name: str, by: float = 16.0) -> Pixels:
    """[3]: a shade near a named colour."""
    return np.array([channel + dice.uniform(-by, by) for channel in rgb(name)], dtype=np.float32)


@lru_cache(maxsize=4096)
def readable(backdrop: str, contrast: float) -> tuple[str, ...]:
    """The colours that stand out from a backdrop colour by at least `contrast`."""
    return tuple(name for name in lexicon().colours if math.dist(rgb(name), rgb(backdrop)) >= contrast)


def backdrop(dice: Dice, colour: str, look: Look) -> Pixels:
    """[64, 64, 3]: a named colour with a gradient and a texture."""
    shade = jittered(dice, colour)
    turn, slope = dice.uniform(0, 2 * math.pi), dice.uniform(0, 30)
    slant = (math.cos(turn) * slope) * _X + (math.sin(turn) * slope) * _Y
    amplitude = np.float32(dice.uniform(*look.texture))
    relief = slant + amplitude * _pattern(dice, dice.pick(look.patterns))
    painted: Pixels = shade + relief[:, :, None]
    return painted


def _pattern(dice: Dice, kind: str) -> Pixels:
    """[64, 64] in about -1..1."""
    if kind == "blotches":
        coarse = Image.fromarray(dice.noise(8, 8))
        return np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    if kind == "plain":
        return np.zeros((SIZE, SIZE), dtype=np.float32)
    turn, step = dice.uniform(0, math.pi), dice.uniform(9, 24)
    first = np.sin((math.cos(turn) * _X + math.sin(turn) * _Y) * step)
    second = np.sin((math.cos(turn) * _Y - math.sin(turn) * _X) * step) if kind == "checks" else 1
    signs: Pixels = np.sign(first * second)
    return signs


def paint(dice: Dice, things: Sequence[Thing], ground: str, look: Look, *, light: float = 1.0) -> Pixels:
    """[64, 64, 3] in 0..255: the things in this order on a backdrop of the named colour."""
    canvas = backdrop(dice, ground, look)
    for fragment in _fragments(dice, ground, look):
        canvas = _blend(canvas, coverage(fragment), jittered(dice, fragment.colour), dice.uniform(0.2, 0.6))
    for thing in things:
        canvas = _blend(canvas, coverage(thing), jittered(dice, thing.colour), dice.uniform(*look.strength))
    spread = dice.uniform(*look.noise)
    finished: Pixels = np.clip(canvas * light + spread * dice.noise(SIZE, SIZE, 1), 0, 255)
    return finished


def _blend(canvas: Pixels, covered: Pixels, colour: Pixels, strength: float) -> Pixels:
    opacity = (covered * strength)[:, :, None]
    return canvas + opacity * (colour - canvas)


def _fragments(dice: Dice, ground: str, look: Look) -> list[Thing]:
    """Faint, small, mostly cut-off icons of the further nouns: never of a class, so that labels stay true."""
    if not look.clutter:
        return []
    names = tuple(fonts.glyphs("fontawesome"))
    found = []
    for _ in range(int(dice.uniform(0, look.clutter + 1))):
        glyph, colour = dice.pick(names), dice.pick(readable(ground, 0.0))
        x, y = (dice.pick((dice.uniform(-0.05, 0.15), dice.uniform(0.85, 1.05))), dice.uniform())
        x, y = (x, y) if dice.uniform() < 0.5 else (y, x)
        size, angle = dice.uniform(0.15, 0.35), dice.uniform(-math.pi, math.pi)
        found.append(Thing("", "fontawesome", glyph, colour, x, y, size, angle))
    return found
