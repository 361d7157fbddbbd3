"""What a model is asked: base and new classes, unseen domains, further test sets; and the words that say so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from fedprompt.data.dataset import Dataset, Examples
from fedprompt.data.labels import Kind
from fedprompt.records.reading import BROKEN, NATURAL


@dataclass(frozen=True)
class TestSet:
    """One set of test pictures with its candidate list, and the column of the table it belongs to."""

    split: str
    name: str
    meaning: str
    examples: Examples
    part: str = ""  # the data set, where there are several


LOCAL = "each client's test pictures, among that client's classes only; unweighted mean over clients"


UNSEEN_SETS = "test pictures of data sets nobody trained on, each among its own classes; unweighted mean over data sets"


def make_test_sets(dataset: Dataset) -> tuple[TestSet, ...]:
    """The test_sets a data set allows, in table order; those without a test picture are left out.

    Of several data sets that are trained on together, each is asked by itself, and a table has the mean over them.
    """
    if len(dataset.parts) == 1:
        return _questions(dataset)
    return tuple(
        replace(question, name=part.name, part=part.name)
        if part.has_training_images
        else replace(question, split="unseen", name=part.name, part=part.name, meaning=UNSEEN_SETS)
        for part in dataset.parts
        for question in _questions(part)
    )


def _questions(dataset: Dataset) -> tuple[TestSet, ...]:
    every, seen = (*dataset.base, *dataset.new), dataset.seen_domains
    word, meaning = _first(dataset)
    asked = [
        _ask(dataset, word, meaning, dataset.base, seen),
        _ask(
            dataset,
            "new",
            "test pictures of the new classes, which nobody trained on, among all new classes",
            dataset.new,
            seen,
        ),
    ]
    for domain in dataset.unseen_domains:
        meaning = "test pictures in domains nobody trained on, among all classes; unweighted mean over domains"
        asked.append(_ask(dataset, "unseen", meaning, every, (domain,), name=domain))
    # A data set may bring further test sets, e.g. the same classes without their usual company.
    for word in dict.fromkeys(dataset.splits):
        if word not in ("train", "val", "test"):
            classes = dataset.test_candidates.get(word, dataset.base)
            among = "all base classes" if classes == dataset.base else f"{len(classes)} classes"
            meaning = f"pictures of the further test set {word!r}, among {among}"
            asked.append(_ask(dataset, word, meaning, classes, seen, rows_of=word))
    return tuple(question for question in asked if question is not None and len(question.examples))


def _first(dataset: Dataset) -> tuple[str, str]:
    """The column of the test pictures over the base classes, and what it means."""
    if dataset.space.kind == "single" or dataset.new:
        return "base", "test pictures of the base classes, among all base classes"
    if BROKEN in dataset.splits:
        return NATURAL, "test pictures, whose labels keep their usual company, among all classes"
    return "test", "test pictures, among all classes"


def _ask(  # noqa: PLR0913  (one row of a table)
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
    # A picture of a multi-label set shows many classes: its columns are chosen, never its rows.
    wanted = classes if dataset.space.kind == "single" else None
    rows = dataset.rows(split=rows_of, classes=wanted, domains=domains)
    return TestSet(
        split, name, meaning, dataset.examples(rows, classes, domain=domains[0] if len(domains) == 1 else "")
    )


def chances(logits: Tensor, kind: Kind) -> Tensor:
    """Logits [..., C] as probabilities: they sum to one, or each stands alone where a picture may show many classes."""
    return logits.softmax(dim=-1) if kind == "single" else logits.sigmoid()


def top_k(logits: Tensor, targets: Tensor) -> Tensor:
    """[N, C] the labels a model would name if told how many a picture has: no threshold decides for it."""
    asked = (targets == 1).sum(dim=1, keepdim=True)  # [N, 1]
    known = logits.masked_fill(targets == -1, -math.inf)
    return known.argsort(dim=1, descending=True, stable=True).argsort(dim=1) < asked
