"""Disjoint chunks of classes, a non-IID partition by label (Qiu et al., 2024, FedTPG; Singha et al., 2025, FedMVP)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedprompt.data.dataset import Dataset
from fedprompt.data.partition.base import Partition, Shard
from fedprompt.data.partition.few_shot import Shots, draw_shots, shots_warnings
from fedprompt.errors import UserError, plural


def class_chunks(dataset: Dataset, *, classes_per_client: int = 20, shots: Shots = "all", seed: int = 1) -> Partition:
    """Give each client n consecutive classes, and the last client the remainder too.

    There are max(1, round_half_even(K / n)) clients for K base classes. `shots` images per class, over all seen
    domains together, are drawn once. A client is tested on the test images of its classes. Single-label data only.
    """
    chunks = split_classes(dataset, classes_per_client)
    by_class = draw_shots(dataset, dataset.seen_domains, shots, seed)
    shards = (Shard(f"client-{number}", rows_of(by_class, chunk), chunk) for number, chunk in enumerate(chunks))
    warnings = shots_warnings(shots, by_class.values())
    warnings += () if len(chunks) > 1 else (_one_client(dataset, classes_per_client),)
    return Partition("class_chunks", seed, tuple(shards), warnings).checked(dataset)


def _one_client(dataset: Dataset, classes_per_client: int) -> str:
    """The warning that all base classes are one chunk, with the largest number per client that would make two."""
    most = 2 * len(dataset.base) // 3
    fix = f"give classes_per_client at most {most}" if most else "use the rule 'iid'"
    return (
        f"The partition rule class_chunks makes a single client: {dataset.name!r} has "
        f"{plural(len(dataset.base), 'base class')} and classes_per_client is {classes_per_client}; {fix} for two "
        "clients or more."
    )


def split_classes(dataset: Dataset, size: int) -> list[tuple[int, ...]]:
    """The base classes in label order, in chunks of `size`; the last chunk has the remainder."""
    if dataset.space.kind != "single":
        raise UserError(
            f"Chunks of classes need one label per image, and images of {dataset.name!r} may have several; use the "
            "rule 'label_clusters'."
        )
    if size < 1:
        raise UserError(f"classes_per_client must be at least 1, not {size}.")
    number = max(1, round(len(dataset.base) / size))  # Python rounds half to even, as the protocol does
    starts = [place * size for place in range(number)]
    return [dataset.base[start : start + size if start < starts[-1] else None] for start in starts]


def rows_of(by_class: Mapping[int, Tensor], classes: Sequence[int]) -> tuple[int, ...]:
    """The rows of these classes, class after class."""
    return tuple(torch.cat([by_class[label] for label in classes]).tolist())
