"""Who holds which training pictures: a partition is a value, drawn once from a seed and stored with the run.

Every rule deals out pictures of base classes in seen domains only, each to one client at most.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

import torch
from torch import Tensor

from fedprompt.data.dataset import Dataset
from fedprompt.errors import UserError
from fedprompt.seeding import numpy_stream, stream


@dataclass(frozen=True)
class Shard:
    """What one client holds: training rows, the classes it chooses between, and its domain where the rule has one."""

    name: str
    rows: tuple[int, ...]
    classes: tuple[int, ...]
    domain: str = ""


@dataclass(frozen=True)
class Partition:
    """All clients' shards; client i is `shards[i]`."""

    rule: str
    seed: int
    shards: tuple[Shard, ...]

    def to_json(self) -> str:
        """Everything, as one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Partition:
        """Read what `to_json` wrote; raises UserError if it is something else."""
        try:
            table = json.loads(text)
            shards = tuple(
                Shard(shard["name"], tuple(shard["rows"]), tuple(shard["classes"]), shard["domain"])
                for shard in table["shards"]
            )
            return cls(table["rule"], table["seed"], shards)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"The partition cannot be read ({error!r}); draw it again with `fedprompt run`.") from error


def class_chunks(dataset: Dataset, *, classes_per_client: int = 20, shots: int | None = 8, seed: int = 1) -> Partition:
    """Disjoint chunks of classes (Qiu et al., 2024, FedTPG; Singha et al., 2025, FedMVP).

    max(1, round_half_even(K / n)) clients for K base classes; each holds n classes in label order and the last one the
    remainder. `shots` pictures a class, over all seen domains together, are drawn once (None: all). Single label only.
    """
    shards = [
        Shard(f"client-{number}", tuple(_draw(dataset, chunk, dataset.seen_domains, shots, seed)), chunk)
        for number, chunk in enumerate(_chunks(dataset, classes_per_client))
    ]
    return _checked(Partition("class_chunks", seed, tuple(shards)), dataset)


def by_domain(dataset: Dataset, *, classes_per_client: int = 20, shots: int | None = 8, seed: int = 1) -> Partition:
    """Every seen domain split into chunks of classes as in `class_chunks` (FedMVP's multi-source protocol).

    `shots` count per class and domain; a client is named by its domain. Single label only.
    """
    if dataset.seen_domains in {(), ("",)}:
        raise UserError(
            f"The data set {dataset.name!r} has no domains; use the partition rule 'class_chunks' or 'iid'."
        )
    shards = [
        Shard(f"{domain}-{number}", tuple(_draw(dataset, chunk, (domain,), shots, seed)), chunk, domain)
        for domain in dataset.seen_domains
        for number, chunk in enumerate(_chunks(dataset, classes_per_client))
    ]
    return _checked(Partition("by_domain", seed, tuple(shard for shard in shards if shard.rows)), dataset)


def iid(dataset: Dataset, *, clients: int = 10, shots: int | None = None, seed: int = 1) -> Partition:
    """Pictures dealt out at random in numbers equal but for one; every client chooses between all base classes."""
    rows = _pool(dataset, shots, seed)
    _enough(clients, len(rows), dataset)
    order = torch.randperm(len(rows), generator=stream(seed, "partition"))
    return _dealt("iid", rows[order].tensor_split(clients), dataset, seed)


def dirichlet(
    dataset: Dataset, *, clients: int = 10, alpha: float = 0.5, shots: int | None = None, seed: int = 1
) -> Partition:
    """Each class is dealt out in shares drawn from Dirichlet(alpha) (Hsu et al., 2019): small alpha, unlike clients.

    Every client chooses between all base classes and has one picture at least. Single label only.
    """
    _single(dataset, "dirichlet")
    if alpha <= 0:
        raise UserError(f"dirichlet needs alpha > 0, not {alpha}; 0.1 makes clients very unlike, 100 nearly alike.")
    rows = _pool(dataset, shots, seed)
    _enough(clients, len(rows), dataset)
    owner = torch.empty(len(rows), dtype=torch.int64)
    for label in dataset.base:
        places = (dataset.targets[rows] == label).nonzero().flatten()
        places = places[torch.randperm(len(places), generator=stream(seed, "order", label))]
        shares = torch.from_numpy(numpy_stream(seed, "shares", label).dirichlet([alpha] * clients))
        ends = (shares.cumsum(0) * len(places)).round().long()
        owner[places] = torch.searchsorted(ends, torch.arange(len(places)), right=True).clamp(max=clients - 1)
    _feed(owner, clients)
    order = owner.argsort(stable=True)
    parts = rows[order].tensor_split(torch.bincount(owner, minlength=clients).cumsum(0)[:-1])
    return _dealt("dirichlet", parts, dataset, seed)


def counts(partition: Partition, dataset: Dataset) -> Tensor:
    """[clients, K] training pictures of each base class; for many labels, pictures that show it."""
    labels = torch.tensor(dataset.base)
    found = torch.zeros(len(partition.shards), len(labels), dtype=torch.int64)
    for number, shard in enumerate(partition.shards):
        targets = dataset.targets[torch.tensor(shard.rows)]
        shown = targets[:, labels] == 1 if dataset.space.kind == "multi" else targets[:, None] == labels
        found[number] = shown.sum(dim=0)
    return found


def heterogeneity(partition: Partition, dataset: Dataset) -> float:
    """Mean total variation distance of clients' label distributions from the overall one: 0 alike, near 1 disjoint."""
    table = counts(partition, dataset).double()
    overall = table.sum(dim=0) / table.sum()
    own = table / table.sum(dim=1, keepdim=True).clamp(min=1)
    return float(0.5 * (own - overall).abs().sum(dim=1).mean())


def table(partition: Partition, dataset: Dataset) -> list[tuple[str, ...]]:
    """Rows for printing: a heading, a row a client (the first 50), and a last row about all."""
    rows: list[tuple[str, ...]] = [("client", "domain", "pictures", "classes", "most frequent")]
    found = counts(partition, dataset)
    for shard, line in list(zip(partition.shards, found, strict=True))[:50]:
        most = [dataset.space.names[dataset.base[place]] for place in line.argsort(descending=True, stable=True)[:4]]
        held = int((line > 0).sum())
        rows.append((shard.name, shard.domain, str(len(shard.rows)), str(held), ", ".join(most[:held])))
    sizes = [len(shard.rows) for shard in partition.shards]
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


def _draw(dataset: Dataset, classes: Sequence[int], domains: Sequence[str], shots: int | None, seed: int) -> list[int]:
    """Rows of the classes in these domains, `shots` of each class if it has so many."""
    rows = dataset.rows(split="train", classes=classes, domains=domains)
    if shots is None:
        return [int(row) for row in rows]
    if shots < 1:
        raise UserError(f"shots must be at least 1, not {shots}; leave it out to use all pictures.")
    drawn: list[int] = []
    for label in classes:
        own = rows[dataset.targets[rows] == label]
        chosen = torch.randperm(len(own), generator=stream(seed, "shots", label, *domains))[:shots]
        drawn += sorted(own[chosen].tolist())
    return drawn


def _pool(dataset: Dataset, shots: int | None, seed: int) -> Tensor:
    """All rows that may be dealt out."""
    if dataset.space.kind == "multi":
        if shots is not None:
            raise UserError("shots count pictures of one class each; leave the option out for a multi-label data set.")
        return dataset.rows(split="train", domains=dataset.seen_domains)
    return torch.tensor(_draw(dataset, dataset.base, dataset.seen_domains, shots, seed), dtype=torch.int64)


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
        Shard(f"client-{number}", tuple(sorted(part.tolist())), dataset.base) for number, part in enumerate(parts)
    )
    return _checked(Partition(rule, seed, tuple(shards)), dataset)


def _checked(partition: Partition, dataset: Dataset) -> Partition:
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
            f"{rule} deal out classes, but a picture of {dataset.name!r} may show several; use the rule 'iid'."
        )
