"""Which labels to ask about together: combinations drawn by how often they co-occur, capped, rare labels first."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from fedprompt.seeding import numpy_stream

Combination = tuple[int, ...]  # label ids, ascending


def co_occurrence(targets: Tensor) -> Tensor:
    """Counts [C, C] of pictures [N, C] in {1, 0, -1} that show both labels, on the diagonal of those that show one."""
    present = (targets == 1).double()
    return present.T @ present


def combinations(counts: Tensor, *, most: int, sizes: tuple[int, ...] = (2, 3, 4), seed: int = 0) -> list[Combination]:
    """At most `most` distinct combinations of labels that occur together, by their counts [C, C]; never all 2^C.

    Labels take turns, the rarest first, so rare labels are in as many combinations as frequent ones. A label's company
    is drawn one by one, in proportion to the geometric mean of the counts with everyone already there. Labels that
    nobody accompanies are left out. Where nothing ever occurs together, any company is as likely.
    """
    weights = counts.double().numpy().copy()
    frequency = np.diag(weights).copy()
    np.fill_diagonal(weights, 0)
    if not weights.any():
        weights = np.ones_like(weights) - np.eye(len(weights))
    turns = [int(label) for label in np.argsort(frequency, kind="stable") if weights[label].any()]
    found: dict[Combination, None] = {}
    for number in range(4 * most if turns else 0):  # a repeated draw is spent: few labels have few combinations
        if len(found) < most:
            draws = numpy_stream(seed, "company", number)
            found[_company(turns[number % len(turns)], weights, size=int(draws.choice(sizes)), draws=draws)] = None
    return list(found)


def _company(label: int, weights: NDArray[np.float64], *, size: int, draws: Generator) -> Combination:
    chosen = [label]
    while len(chosen) < size:
        together = np.exp(np.log(weights[chosen] + 1e-300).mean(axis=0))
        together[(weights[chosen] == 0).any(axis=0)] = 0
        together[chosen] = 0
        if not together.any():
            break
        chosen.append(int(draws.choice(len(together), p=together / together.sum())))
    return tuple(sorted(chosen))
