"""Metrics as pure functions of tensors: every figure lies in [0, 1], and thresholds are arguments.

Scores that are not finite have no order, so metrics of scores raise NotFiniteError for them.
Legend: N examples, C classes. Targets of a multi-label task are 1, 0 or -1 (unknown, never counted).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedprompt.errors import NotFiniteError


def require_finite(scores: Tensor, whose: str = "A model", *, trained: bool = True) -> None:
    """NotFiniteError for NaN or infinity among scores [...]; `whose` they are stands at the start of its sentence."""
    wrong = scores[~scores.isfinite()]
    if len(wrong):
        raise NotFiniteError(
            f"{whose} gives {len(wrong):,} of {scores.numel():,} scores that are not finite ({float(wrong[0])} for "
            f"one), so no figure can be computed from them; {'lower the learning rate, and ' if trained else ''}check "
            "the backbone with: fedprompt doctor"
        )


def accuracy(predicted: Tensor, targets: Tensor) -> float:
    """Share of correct predictions among the known targets; both tensors have the same shape."""
    known = targets != -1
    return _ratio(float((predicted == targets)[known].sum()), float(known.sum()))


def per_class_accuracy(predicted: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Accuracy [C] per class of predictions [N], float64; NaN for a class without examples."""
    total = torch.bincount(targets, minlength=classes)
    return torch.bincount(targets[predicted == targets], minlength=classes).double() / total


def confusion(predicted: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Counts [C, C] of examples per true class (row) and predicted class (column), both tensors [N]."""
    return torch.bincount(targets * classes + predicted, minlength=classes * classes).view(classes, classes)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels [N] as rows [N, C] of {0, 1}, the input of every multi-label metric."""
    return torch.nn.functional.one_hot(labels, classes)


def macro_f1(predicted: Tensor, targets: Tensor) -> float:
    """Mean F1 of the classes that occur in targets or predictions; both are [N, C] in {0, 1} (targets also -1).

    In multi-label tasks this is CF1 as defined in FedMPT's comparison.
    """
    tp, predictions, positives = _counts(predicted, targets)
    seen = predictions + positives > 0
    return float((2 * tp[seen] / (predictions + positives)[seen]).mean())


def class_f1(predicted: Tensor, targets: Tensor) -> float:
    """CF1 as most of the literature defines it: 2 CP CR / (CP + CR), with precision and recall averaged over classes.

    Both tensors are [N, C]. Classes without a positive are left out; a class never predicted has precision zero.
    """
    tp, predictions, positives = _counts(predicted, targets)
    occurs = positives > 0
    precision = float((tp[occurs] / predictions[occurs].clamp(min=1)).mean())
    recall = float((tp[occurs] / positives[occurs]).mean())
    return math.nan if math.isnan(recall) else harmonic_mean(precision, recall)


def micro_f1(predicted: Tensor, targets: Tensor) -> float:
    """OF1: F1 of all decisions [N, C] together, 2 tp / (2 tp + fp + fn); NaN if nothing is positive or predicted."""
    tp, predictions, positives = _counts(predicted, targets)
    return _ratio(2 * float(tp.sum()), float((predictions + positives).sum()))


def top_k(scores: Tensor, targets: Tensor, count: int) -> Tensor:
    """Decisions [N, C] of {0, 1}: the `count` highest scores of every row among its known labels."""
    require_finite(scores)
    known = targets != -1
    best = scores.masked_fill(~known, -math.inf).topk(min(count, scores.shape[1]), dim=1).indices
    return torch.zeros_like(scores, dtype=torch.int64).scatter_(1, best, 1) * known


def best_threshold(scores: Tensor, targets: Tensor, *, most: float = math.inf) -> float:
    """The threshold on scores [N, C] with the highest OF1, the largest of equally good ones; NaN without a positive.

    Of those thresholds only at which at most `most` times as many labels are predicted as there are, where scores with
    little skill have their best OF1 at a threshold that predicts most labels for every image.

    Fit it on training images: fitted on test images, it is an oracle.
    """
    require_finite(scores)
    known = targets != -1
    flat, truth = scores[known], (targets == 1)[known]
    if not truth.any():
        return math.nan
    values, order = flat.sort(descending=True, stable=True)
    hits = truth[order].cumsum(0).double()
    predicted = torch.arange(1, len(hits) + 1)
    f1 = 2 * hits / (predicted + truth.sum())
    f1[predicted > max(1, most * int(truth.sum()))] = 0.0
    f1[:-1].masked_fill_(values[1:] == values[:-1], 0.0)  # equal scores get the same decision
    return float(values[f1.argmax()])


def harmonic_mean(*values: float) -> float:
    """n / sum(1/x), such as the HM of local, base and new accuracy; zero if any value is zero."""
    return len(values) / sum(1 / value for value in values) if all(values) else 0.0


def average_precision(scores: Tensor, targets: Tensor) -> float:
    """Mean over positives of the precision at their rank, scores [N] descending; NaN without a known positive.

    The sort is stable: equal scores keep their order of appearance.
    """
    require_finite(scores)
    known = targets != -1
    order = scores[known].argsort(descending=True, stable=True)
    positive = (targets[known] == 1)[order]
    ranks = positive.nonzero().flatten() + 1
    return float((torch.arange(1, len(ranks) + 1) / ranks.double()).mean())


def average_precisions(scores: Tensor, targets: Tensor) -> tuple[float, ...]:
    """The average precision of each class of [N, C]; NaN for one without a known positive."""
    return tuple(average_precision(scores[:, label], targets[:, label]) for label in range(scores.shape[1]))


def mean_average_precision(scores: Tensor, targets: Tensor) -> tuple[float, int]:
    """Mean AP over the classes of [N, C] that have a positive, and how many classes were left out for having none."""
    return mean_of_known(average_precisions(scores, targets))


def mean_of_known(values: Sequence[float]) -> tuple[float, int]:
    """The mean of the values that are not NaN, and how many were left out."""
    # differs: the FedMPT release counts classes without positives as zero
    found = [value for value in values if not math.isnan(value)]
    return _ratio(sum(found), len(found)), len(values) - len(found)


def _counts(predicted: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per class the true positives, the predictions and the positives, [C] float64; unknown labels do not count."""
    predicted, true = (predicted == 1) & (targets != -1), targets == 1
    return (predicted & true).double().sum(dim=0), predicted.double().sum(dim=0), true.double().sum(dim=0)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
