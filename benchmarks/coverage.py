"""How often intervals of mean average precision hold the truth, over simulated test sets of two models."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from fedprompt.ops.bootstrap import interval, replicate_mean_average_precision
from fedprompt.ops.metrics import mean_average_precision

SHARES: Mapping[str, tuple[float, ...]] = {  # of positive images, per class
    "2% to 60%": (0.02, 0.05, 0.1, 0.2, 0.6),
    "5% to 30%": (0.05, 0.06, 0.08, 0.1, 0.3),
    "40%": (0.4, 0.4, 0.4),
    "2% to 6%": (0.02, 0.03, 0.04, 0.05, 0.06, 0.02, 0.03, 0.04),
}
IMAGES = (80, 250)
KNOWN = 2000  # test sets whose mean is the truth


def coverage(*, sets: int = 800) -> dict[str, float]:
    """Percent of the intervals of a model, and of the difference to a second one, that hold the truth."""
    found = {}
    for name, shares in SHARES.items():
        for images in IMAGES:
            own, paired = _covered(np.array(shares), images, sets)
            found[f"{images} images, {name} positive: mAP"] = own
            found[f"{images} images, {name} positive: paired difference"] = paired
    return found


def _covered(shares: np.ndarray, images: int, sets: int) -> tuple[float, float]:
    generator = np.random.default_rng(7)
    drawn = [_test_set(generator, images, shares) for _ in range(max(KNOWN, sets))]
    figures = np.array([[_figure(scores, targets) for scores in models] for models, targets in drawn])
    truth, apart = np.nanmean(figures[:, 0]), np.nanmean(figures[:, 1] - figures[:, 0])
    held = np.zeros(2)
    for number, (models, targets) in enumerate(drawn[:sets]):
        one, two = (
            replicate_mean_average_precision(scores, targets, generator=np.random.default_rng(number))
            for scores in models
        )
        held += [_holds(one, truth), _holds(two - one, apart)]
    own, paired = 100 * held / sets
    return float(own), float(paired)


def _test_set(generator: np.random.Generator, images: int, shares: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Scores [N, C] of two models that share part of their noise, and targets [N, C]."""
    targets = (generator.random((images, len(shares))) < shares).astype(np.int8)
    noise, other = generator.normal(size=(2, *targets.shape))
    models = [targets + noise, 1.3 * targets + 0.8 * noise + 0.6 * other]
    return [scores.astype(np.float32) for scores in models], targets


def _figure(scores: np.ndarray, targets: np.ndarray) -> float:
    value, _ = mean_average_precision(torch.from_numpy(scores), torch.from_numpy(targets))
    return float(value)


def _holds(replicates: np.ndarray, truth: float) -> bool:
    low, high = interval(replicates)
    return bool(low <= truth <= high)
