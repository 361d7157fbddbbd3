"""Statistical disclosure control: which counts and scores leave a site without revealing a count below the limit.

A withheld count beside the others and their sum would be a subtraction away, so a list of counts leaves as a whole or
not at all. The sum itself, which weighs a site's update, may then be exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fedprompt.data.dataset import Examples
from fedprompt.federated.evaluate import Score


def class_counts(examples: Examples) -> list[int]:
    """Images per class."""
    targets = examples.targets
    if targets.ndim > 1:
        return [int(count) for count in (targets == 1).sum(dim=0)]
    return [int(count) for count in torch.bincount(targets, minlength=len(examples.space))]


def releasable(counts: Sequence[int], smallest: int) -> list[int | None]:
    """The counts; all of them are None if one is below `smallest` and not zero."""
    return [None] * len(counts) if any(0 < count < smallest for count in counts) else list(counts)


def releasable_total(count: int, smallest: int) -> int:
    """A number of training images, which weighs an update; 1, the least weight, if it is below `smallest`."""
    return count if count >= smallest else 1


def releasable_score(score: Score | None, tested: Examples | None, smallest: int) -> Mapping[str, Any] | None:
    """A score as fields; None if it comes from fewer than `smallest` images.

    Figures per class leave if every class has as many test images: with few of them, a share tells their number.
    """
    if score is None or tested is None or score.num_examples < smallest:
        return None
    known = None not in releasable(class_counts(tested), smallest)
    return {
        "num_examples": score.num_examples,
        "figures": {name: _number(value) for name, value in score.figures.items()},
        "per_class": [_number(value) if known else None for value in score.per_class],
    }


def _number(value: float) -> float | None:
    """The value, or None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value
