"""Clients by domain and by chunk of classes: the multi-source protocol of FedMVP (Singha et al., 2025)."""

from __future__ import annotations

from torch import Tensor

from fedprompt.data.dataset import Dataset
from fedprompt.data.partition.base import Partition, Shard
from fedprompt.data.partition.class_chunks import rows_of, split_classes
from fedprompt.data.partition.few_shot import Shots, draw_shots, shots_warnings
from fedprompt.errors import UserError


def by_domain(dataset: Dataset, *, classes_per_client: int = 20, shots: Shots = "all", seed: int = 1) -> Partition:
    """Split every seen domain into chunks of classes as `class_chunks` does.

    `shots` count per class and domain; a client is named after its domain, and is tested on
    the test images of its classes in it. Single-label data only.
    """
    if dataset.seen_domains in {(), ("",)}:
        raise UserError(
            f"The data set {dataset.name!r} has no domains to train on; use the partition rule 'class_chunks' or 'iid'."
        )
    chunks = split_classes(dataset, classes_per_client)
    shards: list[Shard] = []
    drawn: list[Tensor] = []
    for domain in dataset.seen_domains:
        by_class = draw_shots(dataset, (domain,), shots, seed)
        drawn += by_class.values()
        shards += [
            Shard(f"{domain}-{number}", rows_of(by_class, chunk), chunk, domain) for number, chunk in enumerate(chunks)
        ]
    held = tuple(shard for shard in shards if shard.rows)
    warnings = shots_warnings(shots, drawn)
    warnings += (_one_client(dataset, held[0], classes_per_client),) if len(held) == 1 else ()
    return Partition("by_domain", seed, held, warnings).checked(dataset)


def _one_client(dataset: Dataset, shard: Shard, classes_per_client: int) -> str:
    return (
        f"The partition rule by_domain makes a single client: {dataset.name!r} has training images in one domain, "
        f"{shard.domain!r}, and classes_per_client is {classes_per_client}; lower it, or use the rule "
        "'domains_or_dirichlet', which splits one domain by label skew."
    )
