"""What a partition rule returns, and what rules share: shards, class counts, label heterogeneity.

A rule is a function `(dataset, *, options) -> Partition` in a file of its own. It assigns training images of base
classes in seen domains only, each to at most one client, and it is deterministic given its seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from numbers import Integral
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fedprompt.data.dataset import Dataset
from fedprompt.errors import UserError, plural
from fedprompt.text_files import json_text, load_json_object

MAX_LISTED = 50  # clients that `partition_table` lists
TOP_CLASSES = 4  # most frequent classes that it names per client


@dataclass(frozen=True)
class Shard:
    """What one client holds: training rows, its candidate classes, and its domain where the rule assigns one.

    `test` are its test rows where the rule assigns them too; otherwise they follow from its classes and its domain.
    """

    name: str
    rows: tuple[int, ...]
    classes: tuple[int, ...]
    domain: str = ""
    test: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        return f"Shard {self.name}: {plural(len(self.rows), 'image')}, {plural(len(self.classes), 'class')}"


@dataclass(frozen=True)
class Partition:
    """The shards of all clients; client i holds `shards[i]`. `warnings` are whole sentences for the user.

    `rule` and `seed` say how it was made; the same data, rule, options and seed give the same shards.
    """

    rule: str
    seed: int
    shards: tuple[Shard, ...]
    warnings: tuple[str, ...] = field(default=(), compare=False)
    table: Mapping[str, Any] = field(default_factory=dict, compare=False)  # a recipe's [partition], if it is known

    def without(self, rows: Collection[int]) -> Partition:
        """The same clients without these rows; nothing is drawn or assigned anew."""
        excluded = frozenset(rows)

        def kept(own: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(row for row in own if row not in excluded)

        shards = (
            replace(shard, rows=kept(shard.rows), test=None if shard.test is None else kept(shard.test))
            for shard in self.shards
        )
        return replace(self, shards=tuple(shards)) if excluded else self

    def pooled(self, dataset: Dataset) -> Partition:
        """Centralised training: one client with the rows of all clients and the union of their classes."""
        held = {label for shard in self.shards for label in shard.classes}
        rows = tuple(sorted(chain.from_iterable(shard.rows for shard in self.shards)))
        shard = Shard("all clients", rows, tuple(label for label in dataset.base if label in held))
        return Partition(self.rule, self.seed, (shard,))

    def checked(self, dataset: Dataset) -> Partition:
        """The partition itself; UserError if it has no clients or a client has no training images."""
        empty = next((shard for shard in self.shards if not shard.rows), None)
        if empty is not None or not self.shards:
            classes = ", ".join(dataset.space.names[label] for label in (empty.classes if empty else dataset.base)[:5])
            raise UserError(
                f"The data set {dataset.name!r} has no training images of {classes}; add some or remove the class."
            )
        return self

    def trainable(self, dataset: Dataset, *, rule: str = "") -> Partition:
        """The partition itself; UserError, which names the rule, if a client holds what is not to be trained on.

        A training row is of the training split, a base class and a seen domain, and belongs to one client, once; test
        rows are of the test split. Anything else makes figures too high.
        """
        allowed = dataset.rows(split="train", classes=dataset.base, domains=dataset.seen_domains)
        whose = f"The rule {rule or self.rule!r}"
        wrong = _outside((shard.rows for shard in self.shards), allowed)
        if wrong:
            raise UserError(
                f"{whose} gives clients {plural(len(wrong), 'row')} that {_be(wrong)} not to be trained on: "
                f'{_why_not(wrong[0], dataset)}; take rows from data.rows(split="train", classes=data.base, '
                "domains=data.seen_domains)."
            )
        counts = Counter(chain.from_iterable(shard.rows for shard in self.shards))
        if twice := [row for row, count in counts.items() if count > 1]:
            raise UserError(
                f"{whose} gives {plural(len(twice), 'row')} more than once, such as row {twice[0]}; "
                "give each image to one client, once."
            )
        if wrong := _outside((shard.test or () for shard in self.shards), dataset.rows(split="test")):
            raise UserError(
                f"{whose} gives clients {plural(len(wrong), 'test row')} that {_be(wrong)} not of the test split, such "
                f'as row {wrong[0]!r}; take test rows from data.rows(split="test").'
            )
        self._require_candidates(dataset, whose)
        return self

    def _require_candidates(self, dataset: Dataset, whose: str) -> None:
        """UserError unless each client's candidates are base classes and, with single labels, those of its images."""
        for shard in self.shards:
            if new := set(shard.classes) - set(dataset.base):
                raise UserError(
                    f"{whose} gives the client {shard.name!r} {plural(len(new), 'class')} that {_be(new)} not trained "
                    f"on, such as {min(new, key=repr)!r}; give classes of data.base."
                )
            rows = [*shard.rows, *(shard.test or ())]
            held = set(dataset.targets[rows].tolist()) if rows and dataset.space.kind == "single" else set()
            if other := held - set(shard.classes):
                raise UserError(
                    f"{whose} gives the client {shard.name!r} images of {plural(len(other), 'class')} that "
                    f"{_be(other)} not among its classes, such as {dataset.space.names[min(other)]!r}; add "
                    "them to the shard's `classes`."
                )

    def to_json(self) -> str:
        """Everything, as one JSON object; a shard's `classes` is the place of its list in `class_lists`."""
        lists = {classes: place for place, classes in enumerate(dict.fromkeys(shard.classes for shard in self.shards))}
        shards = [vars(shard) | {"classes": lists[shard.classes]} for shard in self.shards]
        return json_text({"rule": self.rule, "seed": self.seed, "class_lists": list(lists), "shards": shards})

    @classmethod
    def from_json(cls, text: str) -> Partition:
        """Read what `to_json` wrote; raises UserError if it is something else."""
        try:
            table = load_json_object(text)
            lists = [tuple(classes) for classes in table["class_lists"]]
            shards = tuple(_read_shard(shard, lists) for shard in table["shards"])
            return cls(table["rule"], table["seed"], shards)
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"The partition cannot be read ({error!r}); draw it again with `fedprompt run`.") from error


def _outside(rows: Iterable[Sequence[object]], allowed: Tensor) -> list[object]:
    """The rows that are not among the allowed ones."""
    known = frozenset(allowed.tolist())
    return [row for own in rows for row in own if not isinstance(row, Integral) or row not in known]


def _be(things: Collection[object]) -> str:
    return "is" if len(things) == 1 else "are"


def _why_not(row: object, dataset: Dataset) -> str:
    """Why a row is not trained on, in words."""
    last = len(dataset.splits) - 1
    if not isinstance(row, Integral) or not 0 <= int(row) <= last:
        return f"{row!r} is no row of {dataset.name!r}, which has rows 0 to {last}"
    place = int(row)
    if place in dataset.excluded:
        return f"row {place} is left out of the data set"
    if dataset.splits[place] != "train":
        return f"row {place} is of the split {dataset.splits[place]!r}"
    if dataset.domains[place] in dataset.unseen_domains:
        return f"row {place} is of the unseen domain {dataset.domains[place]!r}"
    return f"row {place} is of the new class {dataset.space.names[int(dataset.targets[place])]!r}"


def _read_shard(shard: Mapping[str, Any], class_lists: Sequence[tuple[int, ...]]) -> Shard:
    test = None if shard["test"] is None else tuple(shard["test"])
    return Shard(shard["name"], tuple(shard["rows"]), class_lists[shard["classes"]], shard["domain"], test)


def class_counts(partition: Partition, dataset: Dataset) -> Tensor:
    """[clients, K] training images per base class; for multi-label data, images with the label."""
    sizes = torch.tensor([len(shard.rows) for shard in partition.shards])
    owner = torch.arange(len(partition.shards)).repeat_interleave(sizes)
    targets = dataset.targets[list(chain.from_iterable(shard.rows for shard in partition.shards))]
    counts = torch.zeros(len(partition.shards), len(dataset.space), dtype=torch.int64)
    if dataset.space.kind == "multi":
        counts.index_add_(0, owner, (targets == 1).long())
    else:
        counts.index_put_((owner, targets), torch.ones_like(targets), accumulate=True)
    return counts[:, list(dataset.base)]


def heterogeneity(partition: Partition, dataset: Dataset) -> float:
    """How non-IID the clients are: mean total variation distance of their label distributions from the overall one.

    0 if all clients have the same label distribution, near 1 if their classes are disjoint.
    """
    counts = class_counts(partition, dataset).double()
    overall = counts.sum(dim=0) / counts.sum()
    own = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    return float(0.5 * (own - overall).abs().sum(dim=1).mean())


def partition_table(partition: Partition, dataset: Dataset) -> list[tuple[str, ...]]:
    """Rows for printing: a heading, one row per client (the first `MAX_LISTED`), and a row of totals."""
    rows: list[tuple[str, ...]] = [("client", "domain", "images", "classes", "most frequent")]
    counts = class_counts(partition, dataset)
    for shard, own in zip(partition.shards[:MAX_LISTED], counts[:MAX_LISTED], strict=True):
        order = own.argsort(descending=True, stable=True)[:TOP_CLASSES]
        frequent = [dataset.space.names[dataset.base[place]] for place in order]
        held = int((own > 0).sum())
        rows.append((shard.name, shard.domain, str(len(shard.rows)), str(held), ", ".join(frequent[:held])))
    sizes = [len(shard.rows) for shard in partition.shards]
    spread = f"mean {fmean(sizes):.1f} per client; heterogeneity {heterogeneity(partition, dataset):.2f}"
    rows.append((f"all {len(sizes)}", "", str(sum(sizes)), str(int((counts.sum(dim=0) > 0).sum())), spread))
    return rows


def require_enough(dataset: Dataset, clients: int, images: int) -> None:
    """UserError unless every client can have at least one of the images."""
    if not 1 <= clients <= images:
        raise UserError(
            f"{clients} clients cannot share the {images} training images of {dataset.name!r}; "
            "choose a number of clients between 1 and the number of images."
        )


def make_shards(rows: Sequence[Tensor], classes: tuple[int, ...]) -> tuple[Shard, ...]:
    """Clients `client-0`, `client-1`, ... with these rows, in ascending order, and the same candidate classes."""
    return tuple(
        Shard(f"client-{number}", tuple(own.sort().values.tolist()), classes) for number, own in enumerate(rows)
    )
