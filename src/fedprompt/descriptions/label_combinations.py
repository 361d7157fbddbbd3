"""Combinations of labels to describe, sampled by co-occurrence counts: capped in number, rare labels first."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from fedprompt.seeding import numpy_stream

Combination = tuple[int, ...]  # label ids, ascending


def co_occurrence(targets: Tensor) -> Tensor:
    """Co-occurrence counts [C, C] of labels from targets [N, C] in {1, 0, -1}; the diagonal counts each label alone."""
    present = (targets == 1).double()
    return present.T @ present


def combinations(counts: Tensor, *, most: int, sizes: tuple[int, ...] = (2, 3, 4), seed: int = 0) -> list[Combination]:
    """Sample at most `most` distinct combinations of labels from their co-occurrence counts [C, C].

    Labels take turns, the rarest first, so rare labels are in as many combinations as frequent ones. The other labels
    of a combination are drawn one by one, in proportion to the geometric mean of their counts with those already in
    it. Labels that co-occur with none are left out. If no labels co-occur at all, all combinations are equally likely.
    """
    weights = counts.double().numpy().copy()
    frequency = np.diag(weights).copy()
    np.fill_diagonal(weights, 0)
    if not weights.any():
        weights = np.ones_like(weights) - np.eye(len(weights))
    turns = [int(label) for label in np.argsort(frequency, kind="stable") if weights[label].any()]
    found: dict[Combination, None] = {}
    for number in range(4 * most if turns else 0):  # bounded: few labels have few distinct combinations
        if len(found) < most:
            draws = numpy_stream(seed, "company", number)  # a fixed address of the seed: results depend on it
            found[
                _sample_combination(turns[number % len(turns)], weights, size=int(draws.choice(sizes)), draws=draws)
            ] = None
    return list(found)


def _sample_combination(label: int, weights: NDArray[np.float64], *, size: int, draws: Generator) -> Combination:
    chosen = [label]
    while len(chosen) < size:
        together = np.exp(np.log(weights[chosen] + 1e-300).mean(axis=0))
        together[(weights[chosen] == 0).any(axis=0)] = 0
        together[chosen] = 0
        if not together.any():
            break
        chosen.append(int(draws.choice(len(together), p=together / together.sum())))
    return tuple(sorted(chosen))
