"""Bootstrap replicates of accuracy and mean average precision over test images, paired between models.

Legend: N images, M models scored on the same images, C classes, R replicates. Every replicate draws N images with
replacement, the same ones for all models (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13
and 16), so the difference of two columns is a paired comparison.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95  # of all intervals
REPLICATES = 1000
WORK = 4 * 10**8  # sorted scores that the replicates of one test set may visit


def replicate_accuracy(correct: NDArray[np.bool_], *, generator: Generator) -> Floats:
    """Accuracies [R, M] of replicates, from which images [N, M] each model has right; N is at least 1."""
    # Images that the same models have right are exchangeable, so drawing how often each pattern occurs is enough.
    patterns, counts = np.unique(correct, axis=0, return_counts=True)  # [K, M], [K]
    drawn = generator.multinomial(len(correct), counts / len(correct), size=REPLICATES)  # [R, K]
    return drawn @ patterns / len(correct)


def replicate_mean_average_precision(
    scores: NDArray[np.float32], targets: NDArray[np.int8], *, generator: Generator
) -> Floats:
    """Mean average precisions [R, M] of replicates, from scores [M, N, C] and targets [N, C] in {1, 0, -1 unknown}.

    Classes without a positive image in a replicate are left out of its mean. R shrinks with M * N * C, to 200 at least.
    """
    models, images, classes = scores.shape
    replicates = int(np.clip(WORK // max(scores.size, 1), 200, REPLICATES))
    weights = generator.multinomial(images, np.full(images, 1 / images), size=replicates).astype(np.float32)  # [R, N]
    sums, known = np.zeros((replicates, models)), np.zeros((replicates, models))
    for model in range(models):
        for label in range(classes):
            order = np.argsort(-scores[model, :, label], kind="stable")
            order = order[targets[order, label] != -1]
            positive = targets[order, label] == 1
            drawn = weights[:, order]  # [R, n]
            hits = (drawn * positive).cumsum(axis=1)
            found = hits[:, -1] if len(order) else np.zeros(replicates)
            ranks = np.maximum(drawn.cumsum(axis=1), 1)
            precision = (drawn * positive * hits / ranks).sum(axis=1)
            some = found > 0
            sums[some, model] += precision[some] / found[some]
            known[some, model] += 1
    return np.divide(sums, known, out=np.full_like(sums, np.nan), where=known > 0)


def replicate_binomial(accuracy: float, images: int, *, generator: Generator) -> Floats:
    """Accuracies [R] of replicates when only the accuracy on N images is known; not paired with anything."""
    return generator.binomial(images, accuracy, size=REPLICATES) / images


def interval(replicates: Floats) -> tuple[float, float]:
    """The central 95% of the replicates [R], leaving out NaN (the percentile interval)."""
    outside = (1 - LEVEL) / 2
    low, high = np.nanquantile(replicates, [outside, 1 - outside])
    return float(low), float(high)
