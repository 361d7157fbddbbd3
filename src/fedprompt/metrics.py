"""Metrics as pure functions of tensors: every figure lies in [0, 1], thresholds are fixed before anything is seen.

Legend: N examples, C classes. Targets of a multi-label task are 1, 0 or -1 (unknown, never counted).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def accuracy(predicted: Tensor, targets: Tensor) -> float:
    """Share of right answers among the known ones; both tensors have the same shape."""
    known = targets != -1
    return _ratio(float((predicted == targets)[known].sum()), float(known.sum()))


def per_class_accuracy(predicted: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Share of each class's examples [N] that were recognised, [C] float64; NaN for a class without examples."""
    total = torch.bincount(targets, minlength=classes)
    return torch.bincount(targets[predicted == targets], minlength=classes).double() / total


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels [N] as rows [N, C] of {0, 1}, the form that every multi-label metric takes."""
    return torch.nn.functional.one_hot(labels, classes)


def macro_f1(predicted: Tensor, targets: Tensor) -> float:
    """Mean F1 of the classes that occur in targets or predictions; both are [N, C] in {0, 1} (targets also -1)."""
    known = targets != -1
    hit = ((predicted == 1) & (targets == 1)).sum(dim=0)
    occurrences = ((predicted == 1) & known).sum(dim=0) + (targets == 1).sum(dim=0)
    seen = occurrences > 0
    return float((2 * hit[seen] / occurrences[seen].double()).mean())


def harmonic_mean(*values: float) -> float:
    """n / sum(1/x): of (Local, Base, New) it is the field's three-way HM; zero if any value is zero."""
    return len(values) / sum(1 / value for value in values) if all(values) else 0.0


def average_precision(scores: Tensor, targets: Tensor) -> float:
    """Mean over positives of the precision at their rank, scores [N] descending; NaN without a known positive.

    The sort is stable: equal scores keep their order of appearance.
    """
    known = targets != -1
    order = scores[known].argsort(descending=True, stable=True)
    positive = (targets[known] == 1)[order]
    ranks = positive.nonzero().flatten() + 1
    return float((torch.arange(1, len(ranks) + 1) / ranks.double()).mean())


def mean_average_precision(scores: Tensor, targets: Tensor) -> tuple[float, int]:
    """Mean AP over the classes of [N, C] that have a positive, and how many classes were left out for having none."""
    # differs: the FedMPT release counts classes without positives as zero
    values = [average_precision(scores[:, label], targets[:, label]) for label in range(scores.shape[1])]
    found = [value for value in values if not math.isnan(value)]
    return _ratio(sum(found), len(found)), len(values) - len(found)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
