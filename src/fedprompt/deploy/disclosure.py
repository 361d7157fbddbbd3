"""Statistical disclosure control: what of counts, scores and losses leaves a site, by its policy.

A withheld count beside the others and their sum would be a subtraction away, so a list of counts leaves as a whole or
not at all. The sum itself, which weighs a site's update, may then be exact. A score is a count too: of a model that
predicts one class for all images it is the images of that class. Rounded scores count images in whole steps of
`smallest_count`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from fedprompt.data.dataset import Examples
from fedprompt.deploy.settings import Policy
from fedprompt.federated.evaluate import Score

SHARES = ("accuracy", "base", "local")  # figures that are a share of single-label images, so a count


def class_counts(examples: Examples) -> list[int]:
    """Images per class."""
    targets = examples.targets
    if targets.ndim > 1:
        return [int(count) for count in (targets == 1).sum(dim=0)]
    return [int(count) for count in torch.bincount(targets, minlength=len(examples.space))]


def releasable(counts: Sequence[int], smallest: int) -> list[int | None]:
    """The counts; all of them are None if one is below `smallest` and not zero."""
    return [None] * len(counts) if any(0 < count < smallest for count in counts) else list(counts)


def releasable_counts(counts: Sequence[int], policy: Policy) -> list[int | None]:
    """Images per class, as the policy releases them."""
    withheld = policy.released == "withheld"
    return [None] * len(counts) if withheld else releasable(counts, policy.smallest_count)


def releasable_total(count: int, policy: Policy) -> int:
    """A number of training images, which weighs an update; 1, the least weight, if it is below `smallest_count`.

    With a privacy budget it is rounded down, as a single image must not show.
    """
    if policy.epsilon is not None:
        count = in_steps(count, policy.smallest_count)
    return count if count >= policy.smallest_count else 1


def releasable_weight(count: int, policy: Policy) -> int:
    """A number of training images that weighs an update within a secure sum; exact without a privacy budget."""
    return count if policy.epsilon is None else releasable_total(count, policy)


def releasable_loss(loss: float, policy: Policy) -> float | None:
    """A training loss; None where the policy withholds it, as with a privacy budget unless all is to leave exactly."""
    return None if policy.released == "withheld" or hides_divergence(policy) else loss


def hides_divergence(policy: Policy) -> bool:
    """Whether a training that diverges is answered like any other, as the policy's privacy budget covers no loss."""
    return policy.epsilon is not None and policy.released != "exact"


def in_steps(count: int, smallest: int) -> int:
    """A count rounded down to a whole number of steps."""
    return count // smallest * smallest


def releasable_score(score: Score | None, tested: Examples | None, policy: Policy) -> Mapping[str, Any] | None:
    """A score as fields; None if the policy withholds scores, or it comes from fewer than `smallest_count` images.

    A rounded score has shares of all images only. An exact one has figures per class if every class has as many test
    images: with few of them, a share tells their number.
    """
    smallest = policy.smallest_count
    if score is None or tested is None or score.num_examples < smallest or policy.released == "withheld":
        return None
    if policy.released == "rounded" and smallest > 1:
        score = _rounded(score, smallest, single=tested.targets.ndim == 1)
    known = None not in releasable(class_counts(tested), smallest)
    return {
        "num_examples": score.num_examples,
        "figures": {name: _number(value) for name, value in score.figures.items()},
        "per_class": [_number(value) if known else None for value in score.per_class],
    }


def _rounded(score: Score, smallest: int, *, single: bool) -> Score:
    """The score of a model with images and right answers in whole steps; NaN for what is no share of all images.

    Figures per class would add up to a number between two steps.
    """
    figures = {
        name: rounded_share(value, score.num_examples, smallest) if single and name in SHARES else math.nan
        for name, value in score.figures.items()
    }
    total, per_class = in_steps(score.num_examples, smallest), (math.nan,) * len(score.per_class)
    return replace(score, num_examples=total, figures=figures, per_class=per_class)


def rounded_share(share: float, total: int, smallest: int) -> float:
    """A share of images with the right answers, and all of them, rounded down to whole steps."""
    if math.isnan(share):
        return share
    return in_steps(round(share * total), smallest) / in_steps(total, smallest)


def _number(value: float) -> float | None:
    """The value, or None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value
