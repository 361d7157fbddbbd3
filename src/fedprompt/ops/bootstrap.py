"""Bootstrap replicates of accuracy and mean average precision over test images, paired between models.

Legend: N images in G groups, C classes, R replicates. Every replicate draws N images with replacement (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 16), or G groups of images that are not independent,
each with all of its images (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). `groups`
are numbers [N], by default one per image. Models whose replicates are drawn with equal generators have the same images
in each, so the difference of their replicates is a paired comparison.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Groups = NDArray[np.int64]

LEVEL = 0.95  # of all intervals
REPLICATES = 1000
FEWEST = 200  # replicates of mean average precision
WORK = 10**8  # sorted scores that the replicates of one model may visit
CHUNK = 4 * 10**6  # draws that are in memory together


def replicate_accuracy(correct: NDArray[np.bool_], *, generator: Generator, groups: Groups | None = None) -> Floats:
    """Accuracies [R] of replicates, from which images [N] a model has right; N is at least 1."""
    own = _numbered(groups, len(correct))
    right, images = np.bincount(own, correct), np.bincount(own)  # [G]
    draws = _draws(len(images), REPLICATES, generator)
    return np.concatenate([right[drawn].sum(axis=1) / images[drawn].sum(axis=1) for drawn in draws])


def influences(
    rows: Sequence[NDArray[np.int64]], correct: Sequence[NDArray[np.bool_]]
) -> tuple[NDArray[np.int64], Floats]:
    """Distinct images [N] of the test sets of K models, and by how much each moves the mean of the models' accuracies.

    Model k is right or wrong on the distinct images `rows[k]`, as `correct[k]` says. The influence of image i is the
    mean over models of (correct_k(i) - accuracy_k) / N_k, 0 for a model without it (Efron and Tibshirani, 1993,
    chapter 22).
    """
    size = 1 + max(int(own.max()) for own in rows)
    sums, seen = np.zeros(size), np.zeros(size, np.bool_)
    for own, right in zip(rows, correct, strict=True):
        sums[own] += (right - right.mean()) / (len(right) * len(rows))
        seen[own] = True
    (distinct,) = seen.nonzero()
    return distinct, sums[distinct]


def replicate_mean(figure: float, influence: Floats, *, generator: Generator, groups: Groups | None = None) -> Floats:
    """Replicates [R] of a mean over models from the influences [N] of images that may be in several test sets.

    An image that is drawn twice counts twice in each of them. Where all models have the same images, the replicates are
    exactly those of their mean accuracy.
    """
    moves = np.bincount(_numbered(groups, len(influence)), influence)  # [G]
    draws = _draws(len(moves), REPLICATES, generator)
    found: Floats = figure + np.concatenate([moves[drawn].sum(axis=1) for drawn in draws])
    return found.clip(0.0, 1.0)


def replicate_mean_average_precision(
    scores: NDArray[np.float32], targets: NDArray[np.int8], *, generator: Generator, groups: Groups | None = None
) -> Floats:
    """Mean average precisions [R] of replicates, from scores [N, C] and targets [N, C] in {1, 0, -1 unknown}.

    Classes without a positive image in a replicate are left out of its mean. R shrinks with N * C, to 200 at least.
    The replicates are moved so that their mean is the figure itself: an image that is drawn twice ranks beside its own
    copy, which raises the average precision of rare classes in every replicate. They are also spread by the square root
    of P / (P - 1), meaned over classes with P groups of positives: draws from a sample of P vary by that much less than
    its kind.
    """
    images, classes = scores.shape
    own = _numbered(groups, images)
    size = 1 + int(own.max())
    replicates = int(np.clip(WORK // max(scores.size, 1), FEWEST, REPLICATES))
    order = np.argsort(-scores, axis=0, kind="stable")  # [N, C]
    once = np.ones((images, 1))
    counts = (_counts(drawn)[own] for drawn in _draws(size, replicates, generator))
    values = np.concatenate([_weighted(drawn, order, targets, classes) for drawn in (once, *counts)])
    figure, drawn = values[0], values[1:]
    known = drawn[~np.isnan(drawn)]
    positives = np.array([len(np.unique(own[column])) for column in (targets == 1).T])
    some = positives[positives > 0]
    if not len(known) or not len(some):
        return drawn
    spread = np.sqrt(np.mean(some / np.maximum(some - 1, 1)))
    centred: Floats = figure + spread * (drawn - known.mean())
    return centred.clip(0.0, 1.0)


def _numbered(groups: Groups | None, images: int) -> Groups:
    """The groups [N] numbered from 0; every image is one of its own if None."""
    if groups is None:
        return np.arange(images)
    found: Groups = np.unique(groups, return_inverse=True)[1]
    return found


def _draws(images: int, replicates: int, generator: Generator) -> Iterator[NDArray[np.int64]]:
    """The images of each replicate, [some of R, N] at a time."""
    rows = max(1, CHUNK // images)
    for start in range(0, replicates, rows):
        yield generator.integers(images, size=(min(rows, replicates - start), images))


def _counts(drawn: NDArray[np.int64]) -> Floats:
    """How often each image is drawn, [N, R], from the images of each replicate [R, N]."""
    rows, images = drawn.shape
    places = rows * drawn + np.arange(rows)[:, None]
    counts = np.bincount(places.ravel(), minlength=drawn.size).astype(np.float64)
    return counts.reshape(images, rows)  # [N, R]


def _weighted(drawn: Floats, order: NDArray[np.int64], targets: NDArray[np.int8], classes: int) -> Floats:
    """Mean average precisions [R] where images count as often as they are drawn, [N, R]."""
    sums, known = np.zeros(drawn.shape[1]), np.zeros(drawn.shape[1])
    for label in range(classes):
        own = order[targets[order[:, label], label] != -1, label]
        (positive,) = (targets[own, label] == 1).nonzero()
        ranks = drawn[own].cumsum(axis=0)[positive]  # [P, R]
        weights = drawn[own[positive]]  # [P, R]
        hits = weights.cumsum(axis=0)
        precision = (weights * hits / np.maximum(ranks, 1)).sum(axis=0)
        found = weights.sum(axis=0)
        some = found > 0
        sums[some] += precision[some] / found[some]
        known += some
    return np.divide(sums, known, out=np.full_like(sums, np.nan), where=known > 0)


def chance_average_precision(positives: int, images: int) -> float:
    """The expected average precision of a random order of N images, of which so many, at least one, are positive.

    Above their share where they are few: at rank r, a positive itself is one of the r images, so its expected precision
    is (1 + (r - 1) (P - 1) / (N - 1)) / r.
    """
    ranks = np.arange(1, images + 1)
    others = (positives - 1) / max(images - 1, 1)
    return float(np.mean((1 + (ranks - 1) * others) / ranks))


def replicate_binomial(accuracy: float, images: int, *, generator: Generator) -> Floats:
    """Accuracies [R] of replicates when only the accuracy on N images is known; not paired with anything."""
    return generator.binomial(images, accuracy, size=REPLICATES) / images


def interval(replicates: Floats) -> tuple[float, float]:
    """The central 95% of the replicates [R], leaving out NaN (the percentile interval)."""
    outside = (1 - LEVEL) / 2
    low, high = np.nanquantile(replicates, [outside, 1 - outside])
    return float(low), float(high)
