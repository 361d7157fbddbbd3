"""Colours and shapes of drawings, measured from their pixels: "is mostly red", "yellow parts", "is round"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from fedprompt.demo.render import COLOURS

AGREE = 0.6  # the share of the artists that must show a shape
MOSTLY, PARTLY = 0.5, 0.12  # shares of the area
SPECK = 12  # pixels; smaller pieces and holes do not count

Mask = NDArray[np.bool_]


def measured_attributes(drawings: Sequence[Tensor]) -> tuple[str, ...]:
    """Phrases that hold over the drawings [4, S, S] of one concept by several artists, the most telling first."""
    shares = np.mean([_colour_shares(drawing) for drawing in drawings], axis=0)  # [12]
    names, order = list(COLOURS), np.argsort(-shares)
    mostly = [f"is mostly {names[order[0]]}"] if shares[order[0]] > MOSTLY else []
    partly = [f"{names[c]} parts" for c in order[:3] if shares[c] > PARTLY and not (mostly and c == order[0])]
    votes = Counter(shape for drawing in drawings for shape in _shapes(drawing[3].numpy() > 100))
    shapes = [shape for shape, count in votes.most_common() if count >= AGREE * len(drawings)]
    return (*mostly, *shapes[:1], *partly, *shapes[1:])


def _lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIE L*a*b* of sRGB values in 0..1, in which distances are about those that people see."""
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab: NDArray[np.float64] = np.stack(
        [116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1
    )
    return lab


def _colour_shares(drawing: Tensor) -> NDArray[np.float64]:
    """The share of the drawing's area nearest to each named colour [12]; lightness counts half."""
    pixels = drawing.numpy().transpose(1, 2, 0)
    inside = _lab(pixels[pixels[..., 3] > 100][:, :3] / 255)  # [n, 3]
    palette = _lab(np.array(list(COLOURS.values())) / 255)  # [12, 3]
    distance = (((inside[:, None] - palette) ** 2) * np.array([0.5, 1, 1])).sum(axis=-1)  # [n, 12]
    counts: NDArray[np.float64] = np.bincount(distance.argmin(axis=1), minlength=len(COLOURS)) / max(1, len(inside))
    return counts


def _shapes(inside: Mask) -> list[str]:
    rows, columns = np.nonzero(inside)
    if not len(rows):
        return []
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    ratio, fill = width / height, inside.sum() / (width * height)
    corner = inside[rows.min(), columns.min()]
    y, x = rows - rows.mean(), columns - columns.mean()
    slant = abs((x * y).mean()) / max(1e-9, float(np.sqrt((x**2).mean() * (y**2).mean())))
    found = {
        "is wide": ratio > 1.35,
        "is tall": ratio < 0.74,
        "is round": 0.87 < ratio < 1.15 and 0.72 < fill < 0.85 and not corner,
        "is square": fill > 0.86 and 0.8 < ratio < 1.25,
        "is thin": fill < 0.36,
        "is slanted": slant > 0.5,
        "several pieces": _regions(inside) > 1,
        "has an opening": _regions(~np.pad(inside, 1)) > 1,
    }
    return [shape for shape, holds in found.items() if holds]


def _regions(mask: Mask) -> int:
    """How many connected regions are larger than a speck."""
    labels, _ = ndimage.label(mask)
    return int((np.bincount(labels.ravel())[1:] > SPECK).sum())
