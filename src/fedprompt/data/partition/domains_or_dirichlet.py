"""Clients by domain (natural clients) where a data set has domains, else by Dirichlet label skew (Hsu et al., 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedprompt.config.values import OrInfinite
from fedprompt.data.dataset import Dataset
from fedprompt.data.partition.base import Partition, Shard
from fedprompt.data.partition.dirichlet import check_alpha, dirichlet
from fedprompt.data.partition.few_shot import Shots, rows_by_class, shots_warnings
from fedprompt.errors import UserError

IMAGES = 40  # training images per client that the number of clients aims at
MOST = 10  # clients, unless the option `clients` asks for more
NO_DOMAIN = "(no domain)"  # the client with the images of multi-domain data whose domain is not known


def domains_or_dirichlet(
    dataset: Dataset, *, clients: int = 0, alpha: OrInfinite = 0.5, shots: Shots = "all", seed: int = 1
) -> Partition:
    """One client per seen domain with training images, if there are two or more, else clients by Dirichlet(alpha).

    Every client has all base classes as candidates. `clients` and `alpha` are those of the rule dirichlet; with 0 there
    is one client per 40 training images, from 2 to 10. A client's test images are those of its domain, or a part of
    all that has its label distribution, so that its figure is about what it holds (with the rule dirichlet all clients
    are tested on the same images). Single-label and multi-label data; `shots` limits the training images per class.
    """
    if clients < 0:
        raise UserError(f"domains_or_dirichlet needs clients >= 0, not {clients}; 0 follows from the number of images.")
    check_alpha(alpha)
    by_class = rows_by_class(dataset, shots, seed)
    rows = torch.cat(list(by_class.values())).sort().values
    held: dict[str, list[int]] = {}
    for row in rows.tolist():
        held.setdefault(dataset.domains[row], []).append(row)
    if len(held) > 1:
        domains = [domain for domain in dataset.seen_domains if domain in held]
        shards = tuple(_domain_shard(dataset, domain, held[domain]) for domain in domains)
        return Partition("domains_or_dirichlet", seed, shards, shots_warnings(shots, by_class.values())).checked(
            dataset
        )
    wanted = clients or min(max(2, round(len(rows) / IMAGES)), MOST, max(1, len(rows)))
    drawn = dirichlet(dataset, clients=wanted, alpha=alpha, shots=shots, seed=seed)
    return replace(drawn, rule="domains_or_dirichlet", shards=_with_tests(dataset, drawn.shards, seed))


def _domain_shard(dataset: Dataset, domain: str, rows: Sequence[int]) -> Shard:
    if domain:
        return Shard(domain, tuple(rows), dataset.base, domain)
    classes = dataset.base if dataset.space.kind == "single" else None
    test = dataset.rows(split="test", classes=classes, domains=("",))  # a shard without a domain has those of all
    return Shard(NO_DOMAIN, tuple(rows), dataset.base, test=tuple(test.tolist()))


def _with_tests(dataset: Dataset, shards: Sequence[Shard], seed: int) -> tuple[Shard, ...]:
    """The clients with the test images of each class in proportion to their training images of it."""
    owner = torch.full((len(dataset.source),), -1)
    for number, shard in enumerate(shards):
        owner[list(shard.rows)] = number
    sizes = torch.tensor([len(shard.rows) for shard in shards])
    trained, test = (rows_by_class(dataset, "all", seed, split=split) for split in ("train", "test"))
    owned: list[list[Tensor]] = [[] for _ in shards]
    for label, rows in test.items():
        owners = owner[trained.get(label, rows[:0])]
        counts = torch.bincount(owners[owners >= 0], minlength=len(shards))
        counts = counts if counts.any() else sizes
        ends = (counts.cumsum(0).double() / counts.sum() * len(rows)).round().long()
        places = torch.searchsorted(ends, torch.arange(len(rows)), right=True)
        for number in sorted(set(places.tolist())):
            owned[number].append(rows[places == number])
    return tuple(
        replace(shard, test=tuple(torch.cat(own).sort().values.tolist()) if own else ())
        for shard, own in zip(shards, owned, strict=True)
    )
