"""What is wrong with the pictures of a data set, found before a run does."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedprompt.data.dataset import Dataset
from fedprompt.data.decoding import Workers
from fedprompt.data.images import Images, ImageSource
from fedprompt.errors import UserError

BATCH = 16  # pictures that a process opens at a time


@dataclass(frozen=True)
class Looked:
    """What opening pictures told, by row: a digest of what is seen, or why nothing is."""

    digests: Mapping[int, bytes]
    unreadable: Mapping[int, str]


def look(
    source: ImageSource,
    rows: Sequence[int],
    *,
    workers: int = 0,
    on_image: Callable[[int, int], None] | None = None,
) -> Looked:
    """Open pictures, each once, in `workers` processes or in this one; `on_image(done, total)` is told of progress."""
    batches = [Images(source, tuple(rows[start : start + BATCH])) for start in range(0, len(rows), BATCH)]
    digests: dict[int, bytes] = {}
    unreadable: dict[int, str] = {}
    done = 0
    for batch, found in zip(batches, _looked(batches, workers), strict=True):
        for row, (digest, reason) in zip(batch.rows, found, strict=True):
            if reason:
                unreadable[row] = reason
            else:
                digests[row] = digest
        done += len(batch)
        if on_image is not None:
            on_image(done, len(rows))
    return Looked(digests, unreadable)


def _looked(batches: Sequence[Images], workers: int) -> Iterator[list[tuple[bytes, str]]]:
    if not workers or len(batches) == 1:
        yield from map(_look_at, batches)
        return
    pool = Workers(workers, _look_at)
    try:
        yield from pool.map(batches)
    finally:
        pool.close()


def _look_at(images: Images) -> list[tuple[bytes, str]]:
    """For each picture a digest of its size and pixels, or what is wrong with it."""
    found = []
    for position in range(len(images)):
        try:
            image = images.decode(position)
            found.append((hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest(), ""))
        except UserError as error:
            found.append((b"", str(error)))
    return found


@dataclass(frozen=True)
class Problem:
    """Something `check` found: a sentence for the user, and the rows it is about."""

    kind: Literal["unreadable", "leak", "attributes", "labels"]
    rows: tuple[int, ...]
    message: str


def check(dataset: Dataset, looked: Looked) -> list[Problem]:
    """All that is wrong with pictures and their words, as far as they were looked at.

    Found are pictures that cannot be read, pictures (equal after decoding) that are both in the training split and in
    another, classes without attributes where others have them, and, where pictures have many labels, those of which
    none is known and classes that no training picture shows.
    """
    problems = [Problem("unreadable", (row,), reason) for row, reason in looked.unreadable.items()]
    twins = defaultdict(list)
    for row, digest in looked.digests.items():
        twins[digest].append(row)
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
