"""Mistakes of a model on images with known labels: decisions per class, confusions, and the worst with pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError
from fedprompt.experiments.sample_images import png
from fedprompt.experiments.test_sets import TestSet, class_probabilities
from fedprompt.ops.metrics import confusion
from fedprompt.records.event_fields import ClassDecisions, MistakeRecord
from fedprompt.records.events import MistakesEvent

WORST = 6  # mistakes that are recorded per test set
CONFUSED = 20  # pairs of classes that are recorded
MOST_CLASSES = 100  # of a confusion matrix
MOST_NAMES = 100  # labels of an image that are recorded by name


def mistakes_event(
    trial: str, test_set: TestSet, logits: Tensor, *, thresholds: Tensor | float = 0.5, pictures: bool = True
) -> MistakesEvent:
    """The mistakes of logits [N, C] on a test set; several labels count as predicted from `thresholds` ([C]) on."""
    examples = test_set.examples
    space, targets = examples.space, examples.targets
    probabilities = class_probabilities(logits, space.kind)
    if space.kind == "single":
        decided = torch.nn.functional.one_hot(probabilities.argmax(dim=1), len(space)).bool()  # [N, C]
        truth = torch.nn.functional.one_hot(targets, len(space))
    else:
        decided, truth = probabilities >= thresholds, targets
    counts = confusion(probabilities.argmax(dim=1), targets, len(space)) if space.kind == "single" else None
    return MistakesEvent(
        trial=trial,
        split=test_set.split,
        name=test_set.name,
        part=test_set.part,
        images=len(targets),
        threshold=thresholds if space.kind == "multi" and isinstance(thresholds, float) else None,
        classes=_per_class(decided, truth, space.names),
        counts=counts.tolist() if counts is not None and len(space) <= MOST_CLASSES else (),
        confused=_confused(counts, space.names) if counts is not None else (),
        **({} if counts is None else {"confusions": int((counts.clone().fill_diagonal_(0) > 0).sum())}),
        worst=_worst(probabilities, decided, truth, examples.images, space, pictures=pictures),
    )


def _per_class(decided: Tensor, truth: Tensor, names: Sequence[str]) -> tuple[ClassDecisions, ...]:
    known, positive = truth != -1, truth == 1
    columns = (positive.sum(dim=0), (decided & known).sum(dim=0), (decided & positive).sum(dim=0))
    rows = zip(names, *(column.tolist() for column in columns), strict=True)
    return tuple(
        ClassDecisions(name=name, images=images, predicted=predicted, right=right)
        for name, images, predicted, right in rows
    )


def _confused(counts: Tensor, names: Sequence[str]) -> tuple[tuple[str, str, int], ...]:
    wrong = counts.clone().fill_diagonal_(0).flatten()
    order = wrong.argsort(descending=True, stable=True)[:CONFUSED].tolist()
    return tuple(
        (names[place // len(names)], names[place % len(names)], int(wrong[place])) for place in order if wrong[place]
    )


def _worst(
    probabilities: Tensor, decided: Tensor, truth: Tensor, images: Images, space: LabelSpace, *, pictures: bool
) -> tuple[MistakeRecord, ...]:
    """One mistake per image, the surest first: a label predicted with high probability, or left out with low."""
    wrongly = decided & (truth == 0)
    missed = ~decided & (truth == 1) if space.kind == "multi" else torch.zeros_like(decided)
    surety = torch.where(wrongly, probabilities, torch.where(missed, 1 - probabilities, -1.0))  # [N, C]
    height, label = surety.max(dim=1)
    rows = [row for row in height.argsort(descending=True, stable=True)[:WORST].tolist() if height[row] >= 0]
    return tuple(
        MistakeRecord(
            name=images.describe(row),
            picture=_picture(images, row) if pictures else "",
            truth=_names(truth[row] == 1, space.names),
            predicted=_names(decided[row], space.names),
            wrong=space.names[int(label[row])],
            probability=round(float(probabilities[row, label[row]]), 6),
        )
        for row in rows
    )


def _names(where: Tensor, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(names[label] for label in where.nonzero().flatten()[:MOST_NAMES].tolist())


def _picture(images: Images, row: int) -> str:
    try:
        return png(images.decode(row))
    except UserError:  # it could be read a moment ago
        return ""
