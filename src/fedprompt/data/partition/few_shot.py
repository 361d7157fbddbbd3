"""Few-shot sampling: the training images of each class that a partition rule assigns to clients."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor

from fedprompt.data.dataset import Dataset
from fedprompt.errors import UserError, plural
from fedprompt.seeding import stream

Shots = int | Literal["all"]  # training images per class; a recipe has no word for None


def draw_shots(
    dataset: Dataset, domains: Sequence[str], shots: Shots, seed: int, *, split: str = "train"
) -> dict[int, Tensor]:
    """Few-shot sample: base class -> ascending rows of the split in these domains, at most `shots` of them."""
    if shots != "all" and shots < 1:
        raise UserError(f'shots must be at least 1, not {shots}; write "all" to use all images.')
    rows = dataset.rows(split=split, classes=dataset.base, domains=domains)
    labels = dataset.targets[rows]
    # Sorted once: searching a million rows for each of a thousand classes takes too long.
    sizes = torch.bincount(labels, minlength=len(dataset.space)).tolist()
    parts = torch.split(rows[labels.argsort(stable=True)], sizes)
    by_class = {label: parts[label] for label in dataset.base}
    if shots == "all":
        return by_class
    for label, own in by_class.items():
        chosen = torch.randperm(len(own), generator=stream(seed, "shots", label, *domains))[:shots]
        by_class[label] = own[chosen].sort().values
    return by_class


def shots_warnings(shots: Shots, drawn: Collection[Tensor]) -> tuple[str, ...]:
    """A warning if every class has fewer training images than were to be drawn; `drawn` are the rows of each."""
    most = max(map(len, drawn), default=0)
    if shots == "all" or shots <= most:
        return ()
    total = sum(map(len, drawn))
    return (f"shots = {shots:,} takes all {plural(total, 'image')}; no class has more than {most:,}.",)


def rows_by_class(dataset: Dataset, shots: Shots, seed: int, *, split: str = "train") -> dict[int, Tensor]:
    """Base class -> rows of the split in all seen domains, each row under one class.

    A multi-label image is filed under one of its base labels, drawn at random, or under -1 if it has none.
    """
    if dataset.space.kind == "single":
        return draw_shots(dataset, dataset.seen_domains, shots, seed, split=split)
    if shots != "all":
        raise UserError("shots count images of one class each; leave the option out for a multi-label data set.")
    rows = dataset.rows(split=split, domains=dataset.seen_domains)
    present = (dataset.targets[rows] == 1)[:, list(dataset.base)]  # [N, K]
    draws = torch.rand(present.shape, generator=stream(seed, "one label"))
    labels = torch.where(present.any(dim=1), (draws * present).argmax(dim=1), -1)
    return {label: rows[labels == label] for label in sorted(set(labels.tolist()))}
