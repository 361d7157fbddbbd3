"""Render batches of images: sprites through random affine maps on coloured grounds, with gain, light and noise.

Pretraining renders a batch from one generator; the data sets render each image alone from the generator of its
address, so that an image never depends on its neighbours. Shapes: B images, N sprites, S = SPRITE, 64 = SIZE.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

SIZE = 64  # pixels of an image, both ways
SPRITE = 48  # pixels of a stored sprite; a half-size copy is used where it is shown small, against aliasing
PATCH = 8

COLOURS = {
    "red": (220, 40, 40),
    "orange": (250, 150, 40),
    "yellow": (255, 214, 70),
    "green": (90, 170, 70),
    "blue": (50, 130, 230),
    "purple": (150, 80, 200),
    "pink": (250, 140, 180),
    "brown": (140, 85, 50),
    "black": (40, 40, 45),
    "white": (245, 245, 245),
    "grey": (150, 160, 165),
    "teal": (60, 190, 190),
}
GROUNDS = ("plain", "blotched", "striped", "chequered")
PALETTE = torch.tensor(list(COLOURS.values())) / 255  # [12, 3]
INKS = torch.tensor([[0.1, 0.1, 0.12], [0.93, 0.93, 0.95]])  # of single-colour drawings on light and on dark grounds

_LINE = (torch.arange(SIZE) + 0.5) * 2 / SIZE - 1
_Y, _X = torch.meshgrid(_LINE, _LINE, indexing="ij")


class Draws:
    """Random numbers for `count` images from one generator; the order of the calls is part of an image's address."""

    def __init__(self, generator: torch.Generator, count: int) -> None:
        self.generator, self.count = generator, count

    def uniform(self, low: float = 0.0, high: float = 1.0, *shape: int) -> Tensor:
        """Numbers [B, *shape] in [low, high)."""
        return low + (high - low) * torch.rand(self.count, *shape, generator=self.generator)

    def integer(self, below: int) -> Tensor:
        """Whole numbers [B] from 0 to `below` - 1."""
        return torch.randint(below, (self.count,), generator=self.generator)

    def happens(self, probability: float) -> Tensor:
        """Truth values [B]."""
        return torch.rand(self.count, generator=self.generator) < probability

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers [B, *shape]."""
        return torch.randn(self.count, *shape, generator=self.generator)


@dataclass(frozen=True)
class Ground:
    """The background of each image: what captions and conditions can say about it, and its pixels."""

    colour: Tensor  # [B] position in COLOURS
    pattern: Tensor  # [B] position in GROUNDS
    pixels: Tensor  # [B, 3, 64, 64] about 0 to 1

    @property
    def dark(self) -> Tensor:
        """Whether single-colour drawings are white on it [B]."""
        weights = torch.tensor([0.3, 0.59, 0.11])
        return (PALETTE[self.colour] * weights).sum(dim=1) < 0.45


def draw_ground(draws: Draws, colour: Tensor | None = None, pattern: Tensor | None = None) -> Ground:
    """A shade of a named colour with a gradient and a pattern; colour and pattern are random unless given."""
    chosen, kind = draws.integer(len(COLOURS)), draws.integer(len(GROUNDS))
    colour, pattern = chosen if colour is None else colour, kind if pattern is None else pattern
    shade = PALETTE[colour] + draws.uniform(-0.06, 0.06, 3)  # [B, 3]
    turn, slope = draws.uniform(0, 2 * math.pi, 1, 1), draws.uniform(0, 0.12, 1, 1)
    relief = slope * (turn.cos() * _X + turn.sin() * _Y)  # [B, 64, 64]
    blotches = F.interpolate(draws.normal(1, 8, 8), size=(SIZE, SIZE), mode="bilinear")[:, 0]
    turn, step = draws.uniform(0, math.pi, 1, 1), draws.uniform(9, 24, 1, 1)
    first = torch.sin((turn.cos() * _X + turn.sin() * _Y) * step).sign()
    second = torch.sin((turn.cos() * _Y - turn.sin() * _X) * step).sign()
    kind = pattern[:, None, None]
    texture = torch.where(kind == 1, blotches, torch.where(kind == 2, first, first * second))
    relief += draws.uniform(0.03, 0.12, 1, 1) * torch.where(kind == 0, 0.0, texture)
    return Ground(colour, pattern, shade[:, :, None, None] + relief[:, None])


@dataclass(frozen=True)
class Placement:
    """Where one sprite per image lies: centre in -1..1, size as a fraction of the image, and its affine map."""

    x: Tensor  # [B]
    y: Tensor
    size: Tensor
    angle: Tensor  # radians
    stretch: Tensor
    mirrored: Tensor  # bool

    def maps(self) -> Tensor:
        """The affine maps [B, 2, 3] from image to sprite coordinates."""
        cos, sin = self.angle.cos() / self.size, self.angle.sin() / self.size
        side = torch.where(self.mirrored, -1.0, 1.0)
        a, b, d, e = side * cos * self.stretch, side * sin * self.stretch, -sin / self.stretch, cos / self.stretch
        across = torch.stack([a, b, -(a * self.x + b * self.y)], dim=1)
        down = torch.stack([d, e, -(d * self.x + e * self.y)], dim=1)
        return torch.stack([across, down], dim=1)  # [B, 2, 3]


def draw_placement(draws: Draws, size: tuple[float, float], *, room: float = 0.9) -> Placement:
    """A random placement whose centre keeps the sprite (mostly) inside the image."""
    side = draws.uniform(*size)
    free = (1 - side) * room
    x, y = draws.uniform(-1, 1) * free, draws.uniform(-1, 1) * free
    return Placement(x, y, side, draws.uniform(-0.4, 0.4), draws.uniform(0.82, 1.2), draws.happens(0.3))


def at_border(draws: Draws, size: tuple[float, float]) -> Placement:
    """A random placement of a distractor: small, near the border of the image."""
    placed = draw_placement(draws, size)
    edge = torch.where(draws.happens(0.5), -1.0, 1.0) * draws.uniform(0.65, 0.95)
    along, side = draws.uniform(-0.9, 0.9), draws.happens(0.5)
    return replace(placed, x=torch.where(side, edge, along), y=torch.where(side, along, edge))


def apart(
    draws: Draws, others: Sequence[Placement], size: tuple[float, float], band: Tensor | None = None
) -> Placement:
    """A random placement away from the others if one of eight proposals is; `band` [B, 2] bounds y."""
    placed = draw_placement(draws, size)
    free = 1 - 0.9 * placed.size[:, None]  # [B, 1]
    x, y = draws.uniform(-1, 1, 8) * free, draws.uniform(-1, 1, 8)  # [B, 8]
    y = y * free if band is None else (band[:, :1] + (y + 1) / 2 * (band[:, 1:] - band[:, :1])).clamp(-free, free)
    room = torch.zeros_like(x) - 1e-4 * torch.arange(8)  # the first proposal with room wins
    for other in others:
        distance = torch.maximum((x - other.x[:, None]).abs(), (y - other.y[:, None]).abs())
        room = torch.minimum(room, distance - (placed.size + other.size)[:, None])
    best = room.argmax(dim=1, keepdim=True)
    return replace(placed, x=x.gather(1, best)[:, 0], y=y.gather(1, best)[:, 0])


@dataclass(frozen=True)
class Sprites:
    """Drawings [N, 4, S, S] (uint8 RGB and opacity); those marked `mono` [N] have one colour, and take the ink's."""

    pixels: Tensor
    mono: Tensor

    def premultiplied(self, rows: Tensor, *, small: bool = False) -> Tensor:
        """The drawings of these rows [B, 4, side, side] as floats, colour times opacity; half size if `small`."""
        chosen = self.pixels[rows].float().div_(255)  # [B, 4, S, S]
        chosen[:, :3] *= chosen[:, 3:]
        return F.avg_pool2d(chosen, 2) if small else chosen


@dataclass(frozen=True)
class Layer:
    """One sprite per image, placed; `opacity` [B] is 0 where the image has no such layer."""

    drawing: Tensor  # [B, 4, side, side] premultiplied
    mono: Tensor  # [B]
    placed: Placement
    opacity: Tensor  # [B]
    recolour: Tensor | None = None  # [B, 3, 3] applied to RGB


def paint(canvas: Tensor, layer: Layer, dark: Tensor) -> tuple[Tensor, Tensor]:
    """The canvas [B, 3, 64, 64] with the layer on it, and the layer's coverage [B, 64, 64]."""
    shape = [len(canvas), 4, SIZE, SIZE]
    grid = F.affine_grid(layer.placed.maps(), shape, align_corners=False)
    warped = F.grid_sample(layer.drawing, grid, align_corners=False)  # [B, 4, 64, 64]
    rgb, cover = warped[:, :3], warped[:, 3:]
    if layer.mono.any():
        ink = INKS[dark.long()][:, :, None, None] * cover
        rgb = torch.where(layer.mono[:, None, None, None], ink, rgb)
    if layer.recolour is not None:
        rgb = torch.bmm(layer.recolour, rgb.flatten(2)).reshape(rgb.shape)  # [B, 3, 64, 64]
    opacity = layer.opacity[:, None, None, None]
    return torch.addcmul(canvas, rgb - canvas * cover, opacity), cover[:, 0] * layer.opacity[:, None, None]


def gains(draws: Draws) -> Tensor:
    """Random colour gains [B, 3, 3] of up to 18% per channel."""
    return torch.diag_embed(1 + draws.uniform(-0.18, 0.18, 3))


def finish(draws: Draws, canvas: Tensor, light: Tensor, noise: tuple[float, float] = (0.0, 0.06)) -> Tensor:
    """Light [B] and noise over the whole image: uint8 [B, 3, 64, 64]."""
    grain = draws.uniform(*noise, 1, 1, 1) * draws.normal(1, SIZE, SIZE)
    return (canvas * light[:, None, None, None]).add_(grain).clamp_(0, 1).mul_(255).to(torch.uint8)


def draw_light(draws: Draws) -> Tensor:
    """Brightness [B]: 1, or in four of ten images anything from half to a little more."""
    return torch.where(draws.happens(0.4), draws.uniform(0.5, 1.15), 1.0)
