"""The clients of a partition: training images, test images, and images held out to fit a decision threshold."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from fedprompt.data.dataset import Dataset, Examples
from fedprompt.data.joined import JoinedDataset
from fedprompt.data.partition.base import Partition, Shard, class_counts
from fedprompt.federated.client import Client
from fedprompt.records.event_fields import PartitionCounts
from fedprompt.report import partition_figure
from fedprompt.report.inline import Figure
from fedprompt.seeding import stream

if TYPE_CHECKING:
    import pandas


MOST_CLIENTS = 200  # clients whose counts are recorded; the report shows no more


class Clients(Sequence[Client]):
    """The clients of a partition, built on access: ten thousand of them cost nothing until they train.

    With `test`, a client's test images are those of its shard, else those of its classes in its domain or, without a
    domain, in all seen ones. A share `held_out` of each client's images is not trained on, to fit a threshold.
    """

    def __init__(self, dataset: Dataset, partition: Partition, *, test: bool, held_out: float = 0.0) -> None:
        self.dataset = dataset
        self.partition = partition
        self.test = test
        self.share = held_out
        self._test_rows = functools.cache(self._find_test_rows)

    def __len__(self) -> int:
        return len(self.partition.shards)

    @overload
    def __getitem__(self, index: int) -> Client: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Client]: ...
    def __getitem__(self, index: int | slice) -> Client | Sequence[Client]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        shard = self.partition.shards[number]
        rows = self._rows_of(shard) if self.test else torch.empty(0)
        return Client(
            id=number,
            name=shard.name,
            train=self.dataset.examples(self._split(number)[1], shard.classes, domain=shard.domain),
            test=self.dataset.examples(rows, shard.classes, domain=shard.domain) if len(rows) else None,
            domain=shard.domain,
        )

    def to_pandas(self) -> pandas.DataFrame:
        """Training images per client (rows) and class (columns)."""
        import pandas

        counts = class_counts(self.partition, self.dataset)
        names = [shard.name for shard in self.partition.shards]
        classes = [self.dataset.space.names[label] for label in self.dataset.base]
        return pandas.DataFrame(counts.numpy(), index=names, columns=classes)

    def plot(self) -> Figure:
        """Training images per client (rows) and class (columns), as a figure."""
        return Figure(partition_figure(partition_counts(self.partition, self.dataset)))

    def __repr__(self) -> str:
        return f"{len(self)} clients of {self.dataset.name} by {self.partition.rule}"

    def part(self, number: int) -> str:
        """The name of the data set that a client's images are from, if several were joined; else ""."""
        if not isinstance(self.dataset, JoinedDataset):
            return ""
        return self.dataset.parts[self.dataset.part_of(self.partition.shards[number].rows[0])].name

    def over(self, dataset: Dataset) -> Clients:
        """The same clients over the same images with other class descriptions."""
        other = copy.copy(self)
        other.dataset = dataset
        return other

    def held_out(self) -> Examples | None:
        """The held-out images of all clients, over all base classes; None if there are none."""
        if not self.share:
            return None
        rows = torch.cat([self._split(number)[0] for number in range(len(self))])
        return self.dataset.examples(rows, self.dataset.base) if len(rows) else None

    def pooled(self) -> Clients:
        """Centralised training: one client that trains on everything that these train on."""
        shards = (
            replace(shard, rows=tuple(self._split(number)[1].tolist()))
            for number, shard in enumerate(self.partition.shards)
        )
        return Clients(self.dataset, replace(self.partition, shards=tuple(shards)).pooled(self.dataset), test=False)

    def _split(self, number: int) -> tuple[Tensor, Tensor]:
        """A client's held-out rows and its training rows, both in the order of its shard."""
        rows = torch.tensor(self.partition.shards[number].rows, dtype=torch.int64)
        held = torch.zeros(len(rows), dtype=torch.bool)
        order = torch.randperm(len(rows), generator=stream(self.partition.seed, "held out", number))
        held[order[: int(self.share * len(rows))]] = True
        return rows[held], rows[~held]

    def _rows_of(self, shard: Shard) -> Tensor:
        if shard.test is not None:
            return torch.tensor(shard.test, dtype=torch.int64)
        rows = self._test_rows(shard.domain)
        if self.dataset.space.kind == "multi":
            return rows
        return rows[torch.isin(self.dataset.targets[rows], torch.tensor(shard.classes))]

    def _find_test_rows(self, domain: str) -> Tensor:
        return self.dataset.rows(split="test", domains=(domain,) if domain else self.dataset.seen_domains)


def partition_counts(partition: Partition, dataset: Dataset) -> PartitionCounts:
    """Training images per client and base class, of the first 200 clients at most."""
    shards = partition.shards[:MOST_CLIENTS]
    labels = list(dataset.base)
    return PartitionCounts(
        rule=partition.rule,
        clients=[shard.name for shard in shards],
        classes=[dataset.space.names[label] for label in labels],
        counts=class_counts(replace(partition, shards=shards), dataset).tolist(),
        domains=[shard.domain for shard in shards] if any(shard.domain for shard in shards) else [],
        total=len(partition.shards),
    )
