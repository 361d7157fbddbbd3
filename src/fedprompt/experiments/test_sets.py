"""Test sets of a data set: base and new classes, unseen domains, further splits; and predictions from logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from fedprompt.data.dataset import Dataset, Examples
from fedprompt.data.labels import Kind
from fedprompt.records.run_record import BROKEN, NATURAL


@dataclass(frozen=True)
class TestSet:
    """Test images over their candidate classes, and the column of the results table that they belong to."""

    split: str
    name: str
    meaning: str
    examples: Examples
    part: str = ""  # the data set, if several were joined


UNSHIFTED = ("base", "new", "test", NATURAL)  # splits whose images are distributed as those of training
EQUALLY = "mean over clients, each counted equally"
LOCAL = {
    "single": "accuracy for each client on the test images of its own classes (in its domain, if it has one), choosing "
    f"among that client's classes only; {EQUALLY}",
    "multi": "mAP for each client on its test images (those of its domain or that the partition gives it, else all), "
    "over that client's classes only: those that it may predict, whether or not its images have them; " + EQUALLY,
}
AMONG_ALL = "among all {}classes, since every client may predict any of them"
LOCAL_AMONG_ALL = f"each client's test images, {AMONG_ALL}; {EQUALLY}, while {{}} takes all images together"
UNSEEN_SETS = "test images of data sets nobody trained on, each among its own classes; unweighted mean over data sets"


def make_test_sets(dataset: Dataset) -> tuple[TestSet, ...]:
    """The test sets of a data set, in table order, without empty ones.

    Each of several joined data sets has its own; a results table has the mean over them.
    """
    if len(dataset.parts) == 1:
        return _test_sets_of(dataset)
    return tuple(
        replace(test_set, name=part.name, part=part.name)
        if part.has_training_images
        else replace(test_set, split="unseen", name=part.name, part=part.name, meaning=UNSEEN_SETS)
        for part in dataset.parts
        for test_set in _test_sets_of(part)
    )


def _test_sets_of(dataset: Dataset) -> tuple[TestSet, ...]:
    every, seen = (*dataset.base, *dataset.new), dataset.seen_domains
    column, meaning = _base_column(dataset)
    found = [
        _test_set(dataset, column, meaning, dataset.base, seen),
        _test_set(
            dataset,
            "new",
            "test images of the new classes, which nobody trained on, among all new classes",
            dataset.new,
            seen,
        ),
    ]
    for domain in dataset.unseen_domains:
        meaning = "test images in domains nobody trained on, among all classes; unweighted mean over domains"
        found.append(_test_set(dataset, "unseen", meaning, every, (domain,), name=domain))
    # A data set may have further test splits, e.g. the same classes without their usual co-occurrence.
    for split in dict.fromkeys(dataset.splits):
        if split not in ("train", "val", "test"):
            classes = dataset.test_candidates.get(split, dataset.base)
            among = "all base classes" if classes == dataset.base else f"{len(classes)} classes"
            meaning = f"images of the further test set {split!r}, among {among}"
            found.append(_test_set(dataset, split, meaning, classes, seen, rows_of=split))
    return tuple(test_set for test_set in found if test_set is not None and len(test_set.examples))


def _base_column(dataset: Dataset) -> tuple[str, str]:
    """The column of the test images over the base classes, and its meaning."""
    if dataset.space.kind == "single" and not dataset.new:
        return "base", "test images, among all classes"
    if dataset.new:
        return "base", "test images of the base classes, among all base classes"
    if BROKEN in dataset.splits:
        return NATURAL, "test images, whose labels co-occur as usual, among all classes"
    return "test", "test images, among all classes"


def _test_set(  # noqa: PLR0913  (one row of a table)
    dataset: Dataset,
    split: str,
    meaning: str,
    classes: Sequence[int],
    domains: Sequence[str],
    *,
    name: str = "all",
    rows_of: str = "test",
) -> TestSet | None:
    if not classes:
        return None
    # An image of multi-label data shows many classes: columns are selected, never rows.
    wanted = classes if dataset.space.kind == "single" else None
    rows = dataset.rows(split=rows_of, classes=wanted, domains=domains)
    return TestSet(
        split, name, meaning, dataset.examples(rows, classes, domain=domains[0] if len(domains) == 1 else "")
    )


def class_probabilities(logits: Tensor, kind: Kind) -> Tensor:
    """Probabilities [..., C] from logits: softmax for single-label data, sigmoid for multi-label data."""
    return logits.softmax(dim=-1) if kind == "single" else logits.sigmoid()


def top_k(logits: Tensor, targets: Tensor) -> Tensor:
    """[N, C] the most probable labels of each image, as many as it has; unknown labels (-1) are never among them."""
    count = (targets == 1).sum(dim=1, keepdim=True)  # [N, 1]
    known = logits.masked_fill(targets == -1, -math.inf)
    return known.argsort(dim=1, descending=True, stable=True).argsort(dim=1) < count
