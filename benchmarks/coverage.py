"""How often intervals of mean average precision, and of clients that share test images, hold the truth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from fedprompt.ops.bootstrap import (
    influences,
    interval,
    replicate_accuracy,
    replicate_mean,
    replicate_mean_average_precision,
)
from fedprompt.ops.metrics import harmonic_mean, mean_average_precision

SHARES: Mapping[str, tuple[float, ...]] = {  # of positive images, per class
    "2% to 60%": (0.02, 0.05, 0.1, 0.2, 0.6),
    "5% to 30%": (0.05, 0.06, 0.08, 0.1, 0.3),
    "40%": (0.4, 0.4, 0.4),
    "2% to 6%": (0.02, 0.03, 0.04, 0.05, 0.06, 0.02, 0.03, 0.04),
}
IMAGES = (80, 250)
SHARED = (1.0, 0.5)  # of the same test images that each client has
KNOWN = 2000  # test sets whose mean is the truth


def coverage(*, sets: int = 800) -> dict[str, float]:
    """Percent of the intervals of a model, and of the difference to a second one, that hold the truth."""
    found = {}
    for name, shares in SHARES.items():
        for images in IMAGES:
            own, paired = _covered(np.array(shares), images, sets)
            found[f"{images} images, {name} positive: mAP"] = own
            found[f"{images} images, {name} positive: paired difference"] = paired
    for share in SHARED:
        local, mean = _covered_by_clients(share, sets)
        found[f"8 clients with {share:.0%} of 80 images each: local accuracy"] = local
        found[f"8 clients with {share:.0%} of 80 images each: harmonic mean of local and base"] = mean
    return found


def _covered_by_clients(share: float, sets: int) -> tuple[float, float]:
    """Percent of the intervals of clients' mean accuracy, and of its harmonic mean with all, that hold the truth.

    Each of 8 clients is tested on a random share of the same 80 images. A model of a client is right on an image with
    one of two probabilities, whichever the image is.
    """
    generator = np.random.default_rng(7)
    held, accuracy = np.zeros(2), 0.6513
    for number in range(sets):
        easy = generator.random(80) < accuracy
        right = np.where(generator.random((8, 80)) < 0.1, ~easy, easy)  # [clients, images]
        rows = [np.sort(generator.permutation(80)[: max(1, round(share * 80))]) for _ in right]
        own = [one[tested] for one, tested in zip(right, rows, strict=True)]
        distinct, influence = influences(rows, own)
        spread = np.zeros(80)
        spread[distinct] = influence
        local = replicate_mean(float(np.mean([one.mean() for one in own])), spread, generator=_seeded(number))
        base = replicate_accuracy(easy, generator=_seeded(number))
        means = np.array([harmonic_mean(*pair) for pair in np.stack([local, base], axis=1)])
        truth = 0.9 * accuracy + 0.1 * (1 - accuracy)
        held += [_holds(local, truth), _holds(means, harmonic_mean(truth, accuracy))]
    local_held, mean_held = 100 * held / sets
    return float(local_held), float(mean_held)


def _seeded(number: int) -> np.random.Generator:
    return np.random.default_rng(number)


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
