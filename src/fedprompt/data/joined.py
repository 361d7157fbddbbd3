"""Several single-label data sets joined into one, part after part: for multi-data-set federations and for suites."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise
from typing import Self

import torch
from torch import Tensor

from fedprompt.data.dataset import Dataset, Examples
from fedprompt.data.images import JoinedSource
from fedprompt.data.intake.report import joined_intake
from fedprompt.data.labels import LabelSpace
from fedprompt.data.partition.base import Partition, Shard
from fedprompt.errors import UserError, a


@dataclass(frozen=True, eq=False, repr=False)
class JoinedDataset(Dataset):
    """Several data sets as one: row numbers and class ids run on from part to part; examples are those of one part.

    Only classes of parts with training images are base or new; those of the others are candidates of their own part.
    """

    members: tuple[Dataset, ...] = ()

    @property
    def parts(self) -> tuple[Dataset, ...]:
        """The data sets that were joined."""
        return self.members

    def map_label_space(self, change: Callable[[LabelSpace], LabelSpace]) -> Self:
        """The same images with other label spaces: examples are those of a part, and so is their label space."""
        return replace(self, members=tuple(part.map_label_space(change) for part in self.members))

    def without(self, rows: Collection[int], *, reason: str = "by `without`") -> Self:
        """The data sets with these rows in no split."""
        ends = [*_first_rows(self.members), len(self.source)]
        members = (
            part.without([row - start for row in rows if start <= row < end], reason=reason)
            for part, (start, end) in zip(self.members, pairwise(ends), strict=True)
        )
        return replace(super().without(rows, reason=reason), members=tuple(members))

    def part_of(self, row: int) -> int:
        """Which part a row belongs to."""
        return bisect_right(_first_rows(self.members), row) - 1

    def base_of(self, row: int) -> tuple[int, ...]:
        """The base classes of the part that a row belongs to."""
        place = self.part_of(row)
        first = _first_labels(self.members)[place]
        return tuple(first + label for label in self.members[place].base)

    def examples(self, rows: Tensor, classes: Sequence[int] | None = None, *, domain: str = "") -> Examples:
        """The rows of one part over its own classes; UserError for rows of several parts, which share no candidates."""
        places = {self.part_of(row) for row in rows.tolist()}
        if len(places) != 1:
            raise UserError("Images of several data sets have no candidate classes in common; take one data set each.")
        place = places.pop()
        part, first = self.members[place], _first_labels(self.members)[place]
        own = range(len(part.space)) if classes is None else [label - first for label in classes]
        return part.examples(rows - _first_rows(self.members)[place], own, domain=domain)

    def partition_parts(self, rule: Callable[[Dataset], Partition]) -> Partition:
        """Partition every part that has training images by a rule; client names begin with the part's name."""
        shards: list[Shard] = []
        partitions = [(place, rule(part)) for place, part in enumerate(self.members) if part.has_training_images]
        for place, partition in partitions:
            row, label = _first_rows(self.members)[place], _first_labels(self.members)[place]
            for shard in partition.shards:
                name = f"{self.members[place].name}-{shard.name.removeprefix('client-')}"
                rows = tuple(row + one for one in shard.rows)
                shards.append(replace(shard, name=name, rows=rows, classes=tuple(label + one for one in shard.classes)))
        first = partitions[0][1]
        warnings = tuple(
            f"{self.members[place].name}: {text}"
            for place, partition in partitions
            if len(partition.shards) > 1 or len(shards) == 1  # one client of a part is a client among others
            for text in partition.warnings
        )
        return Partition(first.rule, first.seed, tuple(shards), warnings)


def _first_rows(parts: Sequence[Dataset]) -> list[int]:
    return list(accumulate((len(part.source) for part in parts[:-1]), initial=0))


def _first_labels(parts: Sequence[Dataset]) -> list[int]:
    return list(accumulate((len(part.space) for part in parts[:-1]), initial=0))


def join(parts: Sequence[Dataset]) -> JoinedDataset:
    """Join single-label data sets; UserError if one is multi-label or none has training images."""
    if multi := next((part for part in parts if part.space.kind == "multi"), None):
        raise UserError(f"The data set {multi.name!r} is multi-label, which a suite cannot join; run it on its own.")
    if not any(part.has_training_images for part in parts):
        raise UserError(f"None of {', '.join(part.name for part in parts)} has training images; name one that has.")
    firsts = _first_labels(parts)
    trained = [(part, first) for part, first in zip(parts, firsts, strict=True) if part.has_training_images]
    return JoinedDataset(
        name="+".join(part.name for part in parts),
        source=JoinedSource(tuple(part.source for part in parts)),
        space=LabelSpace(tuple(f"{part.name}: {name}" for part in parts for name in part.space.names)),
        targets=torch.cat([part.targets + first for part, first in zip(parts, firsts, strict=True)]),
        splits=tuple(chain.from_iterable(part.splits for part in parts)),
        domains=tuple(chain.from_iterable(part.domains for part in parts)),
        base=tuple(label + first for part, first in trained for label in part.base),
        new=tuple(label + first for part, first in trained for label in part.new),
        intake=joined_intake({part.name: part.report for part in parts}),
        members=tuple(parts),
    )


def partitioned(dataset: Dataset, rule: Callable[[Dataset], Partition], *, name: str) -> Partition:
    """Partition the training images by a rule of that name, joined data sets one by one.

    Raises UserError if the rule returns no partition, or one that gives a client what is not to be trained on.
    """

    def checked(part: Dataset) -> Partition:
        found: object = rule(part)
        if not isinstance(found, Partition):
            raise UserError(f"The rule {name!r} returned {a(type(found).__name__)}; a rule returns a Partition.")
        return found.trainable(part, rule=name)

    return dataset.partition_parts(checked) if isinstance(dataset, JoinedDataset) else checked(dataset)
