"""Who holds which training pictures: a partition is a value, drawn once from a seed and stored with the run.

Every rule deals out pictures of base classes in seen domains only, each to one client at most.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor

from fedprompt.data.dataset import Dataset
from fedprompt.errors import UserError
from fedprompt.seeding import numpy_stream, stream

Shots = int | Literal["all"]  # training pictures of each class; a recipe has no word for None
SHOWN = 50  # clients that `table` lists


@dataclass(frozen=True)
class Shard:
    """What one client holds: training rows, the classes it chooses between, and its domain where the rule has one.

    `test` are its test rows where the rule deals them out too; else they follow from its classes and its domain.
    """

    name: str
    rows: tuple[int, ...]
    classes: tuple[int, ...]
    domain: str = ""
    test: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Partition:
    """All clients' shards; client i is `shards[i]`."""

    rule: str
    seed: int
    shards: tuple[Shard, ...]

    def without(self, rows: Collection[int]) -> Partition:
        """The same clients without these rows; nothing is dealt out or drawn again."""
        gone = frozenset(rows)

        def kept(own: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(row for row in own if row not in gone)

        shards = (
            replace(shard, rows=kept(shard.rows), test=None if shard.test is None else kept(shard.test))
            for shard in self.shards
        )
        return replace(self, shards=tuple(shards)) if gone else self

    def to_json(self) -> str:
        """Everything, as one JSON object."""
        return json.dumps({"rule": self.rule, "seed": self.seed, "shards": [vars(shard) for shard in self.shards]})

    @classmethod
    def from_json(cls, text: str) -> Partition:
        """Read what `to_json` wrote; raises UserError if it is something else."""
        try:
            table = json.loads(text)
            shards = tuple(_read_shard(shard) for shard in table["shards"])
            return cls(table["rule"], table["seed"], shards)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"The partition cannot be read ({error!r}); draw it again with `fedprompt run`.") from error


def _read_shard(shard: Mapping[str, Any]) -> Shard:
    test = None if shard["test"] is None else tuple(shard["test"])
    return Shard(shard["name"], tuple(shard["rows"]), tuple(shard["classes"]), shard["domain"], test)


def class_chunks(dataset: Dataset, *, classes_per_client: int = 20, shots: Shots = 8, seed: int = 1) -> Partition:
    """Disjoint chunks of classes (Qiu et al., 2024, FedTPG; Singha et al., 2025, FedMVP).

    max(1, round_half_even(K / n)) clients for K base classes; each holds n classes in label order and the last one the
    remainder. `shots` pictures a class, over all seen domains together, are drawn once. Single label only.
    """
    chunks = _chunks(dataset, classes_per_client)
    drawn = _draw(dataset, dataset.seen_domains, shots, seed)
    shards = (Shard(f"client-{number}", _joined(drawn, chunk), chunk) for number, chunk in enumerate(chunks))
    return checked(Partition("class_chunks", seed, tuple(shards)), dataset)


def by_domain(dataset: Dataset, *, classes_per_client: int = 20, shots: Shots = 8, seed: int = 1) -> Partition:
    """Every seen domain split into chunks of classes as in `class_chunks` (FedMVP's multi-source protocol).

    `shots` count per class and domain; a client is named by its domain. Single label only.
    """
    if dataset.seen_domains in {(), ("",)}:
        raise UserError(
            f"The data set {dataset.name!r} has no domains to train on; use the partition rule 'class_chunks' or 'iid'."
        )
    chunks = _chunks(dataset, classes_per_client)
    shards = []
    for domain in dataset.seen_domains:
        drawn = _draw(dataset, (domain,), shots, seed)
        shards += [
            Shard(f"{domain}-{number}", _joined(drawn, chunk), chunk, domain) for number, chunk in enumerate(chunks)
        ]
    return checked(Partition("by_domain", seed, tuple(shard for shard in shards if shard.rows)), dataset)


def iid(dataset: Dataset, *, clients: int = 10, shots: Shots = "all", seed: int = 1) -> Partition:
    """Pictures dealt out at random in numbers equal but for one; every client chooses between all base classes."""
    single = dataset.space.kind == "single"
    drawn = _draw(dataset, dataset.seen_domains, shots, seed) if single else _by_one_label(dataset, shots, seed)
    rows = torch.cat(list(drawn.values())).sort().values
    _enough(clients, len(rows), dataset)
    order = torch.randperm(len(rows), generator=stream(seed, "partition"))
    return _dealt("iid", rows[order].tensor_split(clients), dataset, seed)


def dirichlet(
    dataset: Dataset, *, clients: int = 10, alpha: float = 0.5, shots: Shots = "all", seed: int = 1
) -> Partition:
    """Each class is dealt out in shares drawn from Dirichlet(alpha) (Hsu et al., 2019): small alpha, unlike clients.

    Every client chooses between all base classes and has one picture at least. A picture of many labels is dealt out
    by one of them, drawn at random; those without any are dealt out together.
    """
    if alpha <= 0:
        raise UserError(f"dirichlet needs alpha > 0, not {alpha}; 0.1 makes clients very unlike, 100 nearly alike.")
    single = dataset.space.kind == "single"
    drawn = _draw(dataset, dataset.seen_domains, shots, seed) if single else _by_one_label(dataset, shots, seed)
    rows = torch.cat(list(drawn.values()))
    _enough(clients, len(rows), dataset)
    owners = []
    for label, own in drawn.items():
        shares = torch.from_numpy(numpy_stream(seed, "shares", label).dirichlet([alpha] * clients))
        ends = (shares.cumsum(0) * len(own)).round().long()
        order = torch.randperm(len(own), generator=stream(seed, "order", label))
        # The picture that is `order`th in line belongs to the client within whose end it stands.
        owners.append(torch.searchsorted(ends, order, right=True).clamp(max=clients - 1))
    owner = torch.cat(owners)
    _feed(owner, clients)
    sizes = torch.bincount(owner, minlength=clients)
    return _dealt("dirichlet", torch.split(rows[owner.argsort(stable=True)], sizes.tolist()), dataset, seed)


def pooled(partition: Partition, dataset: Dataset) -> Partition:
    """All that the clients hold in the hands of one, who chooses between all their classes: no federation at all."""
    held = {label for shard in partition.shards for label in shard.classes}
    rows = tuple(sorted(chain.from_iterable(shard.rows for shard in partition.shards)))
    shard = Shard("all clients", rows, tuple(label for label in dataset.base if label in held))
    return Partition(partition.rule, partition.seed, (shard,))


def counts(partition: Partition, dataset: Dataset) -> Tensor:
    """[clients, K] training pictures of each base class; for many labels, pictures that show it."""
    owner = torch.arange(len(partition.shards)).repeat_interleave(torch.tensor(_sizes(partition)))
    targets = dataset.targets[list(chain.from_iterable(shard.rows for shard in partition.shards))]
    found = torch.zeros(len(partition.shards), len(dataset.space), dtype=torch.int64)
    if dataset.space.kind == "multi":
        found.index_add_(0, owner, (targets == 1).long())
    else:
        found.index_put_((owner, targets), torch.ones_like(targets), accumulate=True)
    return found[:, list(dataset.base)]


def heterogeneity(partition: Partition, dataset: Dataset) -> float:
    """Mean total variation distance of clients' label distributions from the overall one: 0 alike, near 1 disjoint."""
    table = counts(partition, dataset).double()
    overall = table.sum(dim=0) / table.sum()
    own = table / table.sum(dim=1, keepdim=True).clamp(min=1)
    return float(0.5 * (own - overall).abs().sum(dim=1).mean())


def table(partition: Partition, dataset: Dataset) -> list[tuple[str, ...]]:
    """Rows for printing: a heading, a row a client (the first `SHOWN`), and a last row about all."""
    rows: list[tuple[str, ...]] = [("client", "domain", "pictures", "classes", "most frequent")]
    found = counts(partition, dataset)
    for shard, line in zip(partition.shards[:SHOWN], found[:SHOWN], strict=True):
        most = [dataset.space.names[dataset.base[place]] for place in line.argsort(descending=True, stable=True)[:4]]
        held = int((line > 0).sum())
        rows.append((shard.name, shard.domain, str(len(shard.rows)), str(held), ", ".join(most[:held])))
    sizes = _sizes(partition)
    spread = f"mean {fmean(sizes):.1f} a client; heterogeneity {heterogeneity(partition, dataset):.2f}"
    rows.append((f"all {len(sizes)}", "", str(sum(sizes)), str(int((found.sum(dim=0) > 0).sum())), spread))
    return rows


def _chunks(dataset: Dataset, size: int) -> list[tuple[int, ...]]:
    _single(dataset, "class chunks")
    if size < 1:
        raise UserError(f"classes_per_client must be at least 1, not {size}.")
    number = max(1, round(len(dataset.base) / size))  # Python rounds half to even, as the protocol does
    starts = [place * size for place in range(number)]
    return [dataset.base[start : start + size if start < starts[-1] else None] for start in starts]


def _draw(dataset: Dataset, domains: Sequence[str], shots: Shots, seed: int) -> dict[int, Tensor]:
    """Training rows of every base class in these domains, ascending; `shots` of a class if it has so many."""
    if shots != "all" and shots < 1:
        raise UserError(f'shots must be at least 1, not {shots}; write "all" to use all pictures.')
    rows = dataset.rows(split="train", classes=dataset.base, domains=domains)
    labels = dataset.targets[rows]
    # Sorted once: a million rows are too many to search them for each of a thousand classes.
    sizes = torch.bincount(labels, minlength=len(dataset.space)).tolist()
    parts = torch.split(rows[labels.argsort(stable=True)], sizes)
    drawn = {label: parts[label] for label in dataset.base}
    if shots == "all":
        return drawn
    for label, own in drawn.items():
        chosen = torch.randperm(len(own), generator=stream(seed, "shots", label, *domains))[:shots]
        drawn[label] = own[chosen].sort().values
    return drawn


def _by_one_label(dataset: Dataset, shots: Shots, seed: int) -> dict[int, Tensor]:
    """Training rows by one of their base labels, drawn at random; -1 has those that show none."""
    if shots != "all":
        raise UserError("shots count pictures of one class each; leave the option out for a multi-label data set.")
    rows = dataset.rows(split="train", domains=dataset.seen_domains)
    shown = (dataset.targets[rows] == 1)[:, list(dataset.base)]  # [N, K]
    draws = torch.rand(shown.shape, generator=stream(seed, "one label"))
    labels = torch.where(shown.any(dim=1), (draws * shown).argmax(dim=1), -1)
    return {label: rows[labels == label] for label in sorted(set(labels.tolist()))}


def _joined(drawn: Mapping[int, Tensor], classes: Sequence[int]) -> tuple[int, ...]:
    return tuple(torch.cat([drawn[label] for label in classes]).tolist())


def _sizes(partition: Partition) -> list[int]:
    return [len(shard.rows) for shard in partition.shards]


def _feed(owner: Tensor, clients: int) -> None:
    """Give every client that came away with nothing one picture of the client that has most, in place."""
    sizes = torch.bincount(owner, minlength=clients)
    for hungry in (sizes == 0).nonzero().flatten().tolist():
        rich = int(sizes.argmax())
        owner[(owner == rich).nonzero().flatten()[-1]] = hungry
        sizes[rich] -= 1
        sizes[hungry] = 1


def _dealt(rule: str, parts: Sequence[Tensor], dataset: Dataset, seed: int) -> Partition:
    shards = (
        Shard(f"client-{number}", tuple(part.sort().values.tolist()), dataset.base) for number, part in enumerate(parts)
    )
    return checked(Partition(rule, seed, tuple(shards)), dataset)


def checked(partition: Partition, dataset: Dataset) -> Partition:
    """The partition, or a UserError if a client went away with nothing."""
    empty = next((shard for shard in partition.shards if not shard.rows), None)
    if empty is not None or not partition.shards:
        classes = ", ".join(dataset.space.names[label] for label in (empty.classes if empty else dataset.base)[:5])
        raise UserError(
            f"The data set {dataset.name!r} has no training pictures of {classes}; add some or remove the class."
        )
    return partition


def _enough(clients: int, pictures: int, dataset: Dataset) -> None:
    if not 1 <= clients <= pictures:
        raise UserError(
            f"{clients} clients cannot share the {pictures} training pictures of {dataset.name!r}; "
            "choose a number of clients between 1 and the number of pictures."
        )


def _single(dataset: Dataset, rule: str) -> None:
    if dataset.space.kind != "single":
        raise UserError(
            f"{rule} deal out classes, but a picture of {dataset.name!r} may show several; use the rule "
            "'label_clusters'."
        )
