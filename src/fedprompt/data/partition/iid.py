"""An IID partition: training images are shuffled and split evenly, so that all clients have the same distribution."""

from __future__ import annotations

import torch

from fedprompt.data.dataset import Dataset
from fedprompt.data.partition.base import Partition, make_shards, require_enough
from fedprompt.data.partition.few_shot import Shots, rows_by_class, shots_warnings
from fedprompt.seeding import stream


def iid(dataset: Dataset, *, clients: int = 10, shots: Shots = "all", seed: int = 1) -> Partition:
    """Assign images at random; client sizes differ by at most one, and every client has all base classes as candidates.

    Every client is tested on all test images of base classes. Single-label and multi-label data; `shots` limits the
    training images per class of single-label data.
    """
    by_class = rows_by_class(dataset, shots, seed)
    rows = torch.cat(list(by_class.values())).sort().values
    require_enough(dataset, clients, len(rows))
    order = torch.randperm(len(rows), generator=stream(seed, "partition"))
    shards = make_shards(rows[order].tensor_split(clients), dataset.base)
    return Partition("iid", seed, shards, shots_warnings(shots, by_class.values())).checked(dataset)
