"""Draw an image: background, icons through a random affine map, clutter, light and noise."""

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
from fedprompt.demo.concepts import load_concepts
from fedprompt.seeding import stream

SIZE = 64  # pixels, both ways
Pixels = NDArray[np.float32]  # [64, 64] or [64, 64, 3], 0 to 255 for colours and 0 to 1 for coverage
T = TypeVar("T")

_LINE = np.linspace(-1, 1, SIZE, dtype=np.float32)
_X, _Y = np.meshgrid(_LINE, _LINE)


class Draws:
    """Random draws from an addressed seed: torch draws uniforms in blocks, because single draws are slow."""

    def __init__(self, seed: int, *address: str | int) -> None:
        self._generator = stream(seed, *address)
        self._page: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """One number in [low, high)."""
        if not self._page:
            self._page = torch.rand(64, generator=self._generator).tolist()
        return low + (high - low) * self._page.pop()

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
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
class RenderSettings:
    """The rendering of images, which decides how hard they are. Every image draws uniformly from the ranges."""

    strength: tuple[float, float] = (0.75, 1.0)  # opacity of the icons
    contrast: float = 110.0  # least distance in RGB between an icon's colour and the background's
    noise: tuple[float, float] = (0.0, 16.0)  # standard deviation, in grey levels
    texture: tuple[float, float] = (0.0, 18.0)  # amplitude, in grey levels
    patterns: tuple[str, ...] = ("plain", "blotches")
    clutter: int = 0  # at most so many faint fragments of other icons


PRETRAINING = RenderSettings()


@dataclass(frozen=True)
class Icon:
    """One icon in an image; positions and size are fractions of the image."""

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


def coverage(icon: Icon) -> Pixels:
    """The fraction [64, 64] of each pixel that the icon covers."""
    pixels = icon.size * SIZE
    side = next((side for side in (24, 48) if side >= pixels), fonts.SIDE)
    cos, sin = math.cos(icon.angle) * side / pixels, math.sin(icon.angle) * side / pixels
    a, b, d, e = cos * icon.stretch, sin * icon.stretch, -sin / icon.stretch, cos / icon.stretch
    a, b = (-a, -b) if icon.mirrored else (a, b)
    left, top = icon.x * SIZE, icon.y * SIZE
    inverse = (a, b, side / 2 - a * left - b * top, d, e, side / 2 - d * left - e * top)
    drawn = fonts.mask(icon.family, icon.glyph, side).transform(
        (SIZE, SIZE), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
    )
    covered: Pixels = np.asarray(drawn, dtype=np.float32) / np.float32(255)
    return covered


def rgb(name: str) -> tuple[int, int, int]:
    """The RGB values of a named colour."""
    return load_concepts().colours[name]


def jittered(draws: Draws, name: str, by: float = 16.0) -> Pixels:
    """A random shade [3] of a named colour."""
    return np.array([channel + draws.uniform(-by, by) for channel in rgb(name)], dtype=np.float32)


@lru_cache(maxsize=4096)
def contrasting_colours(background: str, contrast: float) -> tuple[str, ...]:
    """The colours at a distance of at least `contrast` from the background's."""
    return tuple(name for name in load_concepts().colours if math.dist(rgb(name), rgb(background)) >= contrast)


def paint_background(draws: Draws, colour: str, render: RenderSettings) -> Pixels:
    """A named colour with a gradient and a texture, [64, 64, 3]."""
    shade = jittered(draws, colour)
    turn, slope = draws.uniform(0, 2 * math.pi), draws.uniform(0, 30)
    slant = (math.cos(turn) * slope) * _X + (math.sin(turn) * slope) * _Y
    amplitude = np.float32(draws.uniform(*render.texture))
    relief = slant + amplitude * _pattern(draws, draws.pick(render.patterns))
    painted: Pixels = shade + relief[:, :, None]
    return painted


def _pattern(draws: Draws, kind: str) -> Pixels:
    """A texture [64, 64] in about -1..1."""
    if kind == "blotches":
        coarse = Image.fromarray(draws.noise(8, 8))
        return np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    if kind == "plain":
        return np.zeros((SIZE, SIZE), dtype=np.float32)
    turn, step = draws.uniform(0, math.pi), draws.uniform(9, 24)
    first = np.sin((math.cos(turn) * _X + math.sin(turn) * _Y) * step)
    second = np.sin((math.cos(turn) * _Y - math.sin(turn) * _X) * step) if kind == "checks" else 1
    signs: Pixels = np.sign(first * second)
    return signs


def paint(
    draws: Draws, icons: Sequence[Icon], background: str, render: RenderSettings, *, light: float = 1.0
) -> Pixels:
    """The icons, in this order, on a background of the named colour: [64, 64, 3] in 0..255."""
    canvas = paint_background(draws, background, render)
    for fragment in _fragments(draws, background, render):
        canvas = _blend(canvas, coverage(fragment), jittered(draws, fragment.colour), draws.uniform(0.2, 0.6))
    for icon in icons:
        canvas = _blend(canvas, coverage(icon), jittered(draws, icon.colour), draws.uniform(*render.strength))
    spread = draws.uniform(*render.noise)
    finished: Pixels = np.clip(canvas * light + spread * draws.noise(SIZE, SIZE, 1), 0, 255)
    return finished


def _blend(canvas: Pixels, covered: Pixels, colour: Pixels, strength: float) -> Pixels:
    opacity = (covered * strength)[:, :, None]
    return canvas + opacity * (colour - canvas)


def _fragments(draws: Draws, background: str, render: RenderSettings) -> list[Icon]:
    """Faint, small, mostly cut-off icons as clutter."""
    if not render.clutter:
        return []
    names = tuple(fonts.glyphs("fontawesome"))
    found = []
    for _ in range(int(draws.uniform(0, render.clutter + 1))):
        glyph, colour = draws.pick(names), draws.pick(contrasting_colours(background, 0.0))
        x, y = (draws.pick((draws.uniform(-0.05, 0.15), draws.uniform(0.85, 1.05))), draws.uniform())
        x, y = (x, y) if draws.uniform() < 0.5 else (y, x)
        size, angle = draws.uniform(0.15, 0.35), draws.uniform(-math.pi, math.pi)
        found.append(Icon("", "fontawesome", glyph, colour, x, y, size, angle))
    return found
