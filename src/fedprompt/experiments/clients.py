"""The clients of a partition: training images, test images, and images held out to choose a round or a threshold."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from fedprompt.data.dataset import Dataset, Examples
from fedprompt.data.joined import JoinedDataset
from fedprompt.data.partition.base import Partition, Shard, class_counts
from fedprompt.errors import plural
from fedprompt.federated.client import Client
from fedprompt.records.event_fields import PartitionCounts
from fedprompt.report.client_figures import partition_drawing
from fedprompt.report.inline import Figure
from fedprompt.seeding import stream

if TYPE_CHECKING:
    import pandas


MOST_CLIENTS = 200  # clients whose counts per class are recorded; the report shows no more


class Clients(Sequence[Client]):
    """The clients of a partition, built on access: ten thousand of them cost nothing until they train.

    With `test`, a client's test images are those of its shard, else those of its classes in its domain or, without a
    domain, in all seen ones. A share `held_out` of each client's images is not trained on, to fit a threshold.

    With `candidates` ("base", "local"), over which held-out images are scored to choose a round, a client whose data
    have a validation part holds that out instead: images of its domain and classes, dealt to the clients that share
    them.
    """

    def __init__(
        self,
        dataset: Dataset,
        partition: Partition,
        *,
        test: bool,
        held_out: float = 0.0,
        candidates: tuple[str, ...] = (),
    ) -> None:
        self.dataset = dataset
        self.partition = partition
        self.test = test
        self.share = held_out
        self.candidates = candidates
        self._test_rows: dict[str, Tensor] = {}  # by domain, those found so far

    def __len__(self) -> int:
        return len(self.partition.shards)

    @overload
    def __getitem__(self, index: int) -> Client: ...
    @overload
    def __getitem__(self, index: slice) -> Clients: ...
    def __getitem__(self, index: int | slice) -> Client | Clients:
        if isinstance(index, slice):
            return self._some(index)
        number = self._number(index)
        shard = self.partition.shards[number]
        rows = self._rows_of(shard) if self.test else torch.empty(0)
        return Client(
            id=number,
            name=shard.name,
            train=self.dataset.examples(self._split(number)[1], shard.classes, domain=shard.domain),
            test=self.dataset.examples(rows, shard.classes, domain=shard.domain) if len(rows) else None,
            domain=shard.domain,
            held_out=self._held_out_by_candidates(number),
        )

    def _number(self, index: int) -> int:
        """The number of a client that may be counted from the end; IndexError, which ends iteration, without one."""
        try:
            return range(len(self))[index]
        except IndexError:
            raise IndexError(
                f"There is no client {index}; {plural(len(self), 'client')} {'has' if len(self) == 1 else 'have'} the "
                f"numbers from 0 to {len(self) - 1}."
            ) from None

    def _some(self, index: slice) -> Clients:
        """Some of the clients, numbered from 0 again, so that images are held out of them anew."""
        some = replace(self.partition, shards=self.partition.shards[index], table={})
        return Clients(self.dataset, some, test=self.test, held_out=self.share, candidates=self.candidates)

    def to_pandas(self) -> pandas.DataFrame:
        """Training images per client (rows) and class (columns); with several labels, an image counts for each of them.

        The number of a client's images is `len(client.train)`.
        """
        import pandas

        counts = class_counts(self.partition, self.dataset)
        names = [shard.name for shard in self.partition.shards]
        classes = [self.dataset.space.names[label] for label in self.dataset.base]
        return pandas.DataFrame(counts.numpy(), index=names, columns=classes)

    def plot(self) -> Figure:
        """Training images per client (rows) and class (columns), as a figure; `.save("figure.png")` writes it."""
        return Figure(partition_drawing(partition_counts(self.partition, self.dataset)))

    def __repr__(self) -> str:
        return f"{plural(len(self), 'client')} of {self.dataset.name} by {self.partition.rule}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>{self.plot()._repr_html_()}"

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
        if not self.share and not self.candidates:
            return None
        rows = torch.cat([self._split(number)[0] for number in range(len(self))])
        return self.dataset.examples(rows, self.dataset.base) if len(rows) else None

    def deciding(self, fewest: int) -> Examples | None:
        """The held-out images of all clients, filled up to `fewest` with drawn ones that they train on; None if none.

        Over all base classes.
        """
        rows = [self._split(number) for number in range(len(self))]
        held, trained = (
            torch.cat(own) if own else torch.empty(0, dtype=torch.int64) for own in zip(*rows, strict=True)
        )
        order = torch.randperm(len(trained), generator=stream(self.partition.seed, "deciding"))
        chosen = torch.cat([held, trained[order[: max(0, fewest - len(held))]]])
        return self.dataset.examples(chosen, self.dataset.base) if len(chosen) else None

    @property
    def num_held_out(self) -> int:
        """Number of training images that clients do not train on; images of a validation part are not among them."""
        if not self.share:
            return 0
        return sum(len(self._split(number)[0]) for number in range(len(self)) if number not in self._validation)

    def pooled(self) -> Clients:
        """Centralised training: one client that trains on everything that these train on."""
        shards = (
            replace(shard, rows=tuple(self._split(number)[1].tolist()))
            for number, shard in enumerate(self.partition.shards)
        )
        return Clients(self.dataset, replace(self.partition, shards=tuple(shards)).pooled(self.dataset), test=False)

    def _split(self, number: int) -> tuple[Tensor, Tensor]:
        """A client's held-out rows and its training rows, both in the order of its shard or of the data set."""
        rows = torch.tensor(self.partition.shards[number].rows, dtype=torch.int64)
        if number in self._validation:
            return torch.tensor(self._validation[number], dtype=torch.int64), rows
        held = torch.zeros(len(rows), dtype=torch.bool)
        order = torch.randperm(len(rows), generator=stream(self.partition.seed, "held out", number))
        held[order[: int(self.share * len(rows))]] = True
        return rows[held], rows[~held]

    def _held_out_by_candidates(self, number: int) -> Mapping[str, Examples]:
        """The held-out images of a client over the base classes of its data set, and over its own."""
        rows = self._split(number)[0] if self.candidates else torch.empty(0)
        if not len(rows):
            return {}
        shard = self.partition.shards[number]
        base = self.dataset.examples(rows, self.dataset.base_of(int(rows[0])), domain=shard.domain)
        own = base
        if base.space.names != tuple(self.dataset.space.names[label] for label in shard.classes):
            own = self.dataset.examples(rows, shard.classes, domain=shard.domain)
        return {candidates: {"base": base, "local": own}[candidates] for candidates in self.candidates}

    @functools.cached_property
    def _validation(self) -> Mapping[int, list[int]]:
        """Client -> its rows of the data's validation part, where a round is chosen, without clients that have none."""
        found: dict[int, list[int]] = {}
        if not self.candidates:
            return found
        single = self.dataset.space.kind == "single"
        owners: dict[tuple[str, int], list[int]] = {}  # (domain, class) -> clients
        for number, shard in enumerate(self.partition.shards):
            for domain in (shard.domain,) if shard.domain else self.dataset.seen_domains:
                for label in shard.classes if single else (-1,):
                    owners.setdefault((domain, label), []).append(number)
        classes = self.dataset.base if single else None
        dealt: Counter[tuple[str, int]] = Counter()
        for row in self.dataset.rows(split="val", classes=classes, domains=self.dataset.seen_domains).tolist():
            group = self.dataset.domains[row], int(self.dataset.targets[row]) if single else -1
            if holders := owners.get(group):
                found.setdefault(holders[dealt[group] % len(holders)], []).append(row)
                dealt[group] += 1
        return found

    def _rows_of(self, shard: Shard) -> Tensor:
        if shard.test is not None:
            return torch.tensor(shard.test, dtype=torch.int64)
        rows = self._test_rows_of(shard.domain)
        if self.dataset.space.kind == "multi":
            return rows
        return rows[torch.isin(self.dataset.targets[rows], torch.tensor(shard.classes))]

    def _test_rows_of(self, domain: str) -> Tensor:
        if domain not in self._test_rows:
            domains = (domain,) if domain else self.dataset.seen_domains
            self._test_rows[domain] = self.dataset.rows(split="test", domains=domains)
        return self._test_rows[domain]


def partition_counts(partition: Partition, dataset: Dataset) -> PartitionCounts:
    """Training images per client, and per base class of the first 200 clients at most."""
    shards = partition.shards
    labels = list(dataset.base)
    several = dataset.space.kind == "multi" or len(shards) > MOST_CLIENTS  # counts of classes do not sum to images then
    optional = {"sizes": [len(shard.rows) for shard in shards]} if several else {}
    return PartitionCounts(
        rule=partition.rule,
        clients=[shard.name for shard in shards],
        classes=[dataset.space.names[label] for label in labels],
        counts=class_counts(replace(partition, shards=shards[:MOST_CLIENTS]), dataset).tolist(),
        domains=[shard.domain for shard in shards] if any(shard.domain for shard in shards) else [],
        **optional,
    )
