"""What is wrong with the pictures of a data set, found before a run does."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fedprompt.data.dataset import Dataset
from fedprompt.errors import UserError


@dataclass(frozen=True)
class Problem:
    """Something `check` found: a sentence for the user, and the rows it is about."""

    kind: Literal["unreadable", "leak", "attributes", "labels"]
    rows: tuple[int, ...]
    message: str


def check(dataset: Dataset, *, on_image: Callable[[int, int], None] | None = None) -> list[Problem]:
    """Open every picture once and list all that is wrong before a run finds out.

    Found are pictures that cannot be read, pictures (equal after decoding) that are both in the training split and in
    another, classes without attributes where others have them, and, where pictures have many labels, those of which
    none is known and classes that no training picture shows. `on_image(done, total)` is told of progress.
    """
    total, problems = len(dataset.source), []
    twins = defaultdict(list)
    for row in range(total):
        try:
            image = dataset.source.open(row)
            twins[hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()].append(row)
        except UserError as error:
            problems.append(Problem("unreadable", (row,), str(error)))
        if on_image is not None:
            on_image(row + 1, total)
    for rows in twins.values():
        if len(words := {dataset.splits[row] for row in rows}) > 1 and "train" in words:
            shown = ", ".join(f"{dataset.source.describe(row)} ({dataset.splits[row]})" for row in rows)
            problems.append(Problem("leak", tuple(rows), f"The same picture is in several splits: {shown}; keep one."))
    bare = [name for name in dataset.space.names if not dataset.space.attributes.get(name)]
    if dataset.space.attributes and bare:
        some = f"{len(bare)} of {len(dataset.space)} classes have no attributes, {bare[0]!r} for one"
        problems.append(Problem("attributes", (), f"{some}; add phrases for them or go without attributes."))
    return problems + (_label_problems(dataset) if dataset.space.kind == "multi" else [])


def _label_problems(dataset: Dataset) -> list[Problem]:
    """Pictures that teach nothing, and classes that nothing teaches."""
    problems = []
    dumb = (dataset.targets == -1).all(dim=1).nonzero().flatten().tolist()
    if dumb:
        some = f"{len(dumb)} pictures have no known label, {dataset.source.describe(dumb[0])} for one"
        problems.append(Problem("labels", tuple(dumb), f"{some}; nothing is learned or scored on them."))
    shown = (dataset.targets[dataset.rows(split="train")] == 1).any(dim=0)
    unseen = [dataset.space.names[label] for label in dataset.base if not shown[label]]
    if unseen:
        some = f"{len(unseen)} of {len(dataset.base)} classes are on no training picture, {unseen[0]!r} for one"
        problems.append(Problem("labels", (), f"{some}; they are learned as absent, always."))
    return problems
