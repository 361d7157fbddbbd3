"""What only many labels have: clients formed by the company labels keep, and annotations that leave labels out."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from fedprompt.data.dataset import Dataset
from fedprompt.data.partition.base import Partition, Shard, checked
from fedprompt.errors import UserError
from fedprompt.ops.clustering import kmeans, nearest
from fedprompt.seeding import stream

Missing = Literal["drop_positive", "unknown"]


def label_clusters(dataset: Dataset, *, heterogeneity: float = 0.6, min_labels: int = 0, seed: int = 1) -> Partition:
    """One client a cluster of label vectors (Wang et al., 2026, FedMPT): round(heterogeneity * C) clients of C classes.

    k-means runs on the softmax of training pictures' label vectors; an unknown label counts as absent. A client's test
    pictures are those nearest to its centroid. `min_labels` leaves training pictures with fewer labels out.
    Raises UserError for a share that leaves no client, or for fewer different label vectors than clients.
    """
    if dataset.space.kind != "multi":
        raise UserError(
            f"label_clusters needs many labels a picture; for {dataset.name!r} use the rule 'class_chunks'."
        )
    if not 0 < heterogeneity <= 1 or min_labels < 0:
        raise UserError(
            f"label_clusters needs 0 < heterogeneity <= 1 and min_labels >= 0, not {heterogeneity} and {min_labels}."
        )
    base, clusters = list(dataset.base), max(1, round(heterogeneity * len(dataset.base)))
    shown = (dataset.targets == 1)[:, base]  # [N, K]
    rows = dataset.rows(split="train", domains=dataset.seen_domains)
    rows = rows[shown[rows].sum(dim=1) >= min_labels]
    # differs: the release gives test pictures the clusters of the training pictures at the same places
    asked = dataset.rows(split="test", domains=dataset.seen_domains)
    different = len(set(map(tuple, shown[rows].tolist())))
    if different < clusters:
        raise UserError(
            f"The training pictures of {dataset.name!r} have {different} different sets of labels, too few for "
            f"{clusters} clients; lower heterogeneity = {heterogeneity} or min_labels = {min_labels}."
        )
    vectors = shown.double().softmax(dim=1)  # [N, K]
    centroids = kmeans(vectors[rows], clusters, generator=stream(seed, "partition"))
    owner, tester = nearest(vectors[rows], centroids), nearest(vectors[asked], centroids)
    shards = (
        Shard(f"client-{number}", _rows(rows, owner, number), dataset.base, test=_rows(asked, tester, number))
        for number in range(clusters)
    )
    return checked(Partition("label_clusters", seed, tuple(shards)), dataset)


def _rows(rows: Tensor, owner: Tensor, number: int) -> tuple[int, ...]:
    return tuple(rows[owner == number].tolist())


def missing(dataset: Dataset, *, form: Missing, rate: float, seed: int) -> Tensor:
    """[N, C] labels of training pictures that nobody wrote down: each positive one, or each, with probability `rate`.

    A higher rate hides all that a lower one hides, and more. Raises UserError unless pictures have many labels.
    """
    if dataset.space.kind != "multi":
        raise UserError(
            f"Labels can be missing only where pictures have many, which those of {dataset.name!r} have not."
        )
    # differs: the release draws anew whenever a data set is opened, and masks most test sets too
    draws = torch.rand(dataset.targets.shape, generator=stream(seed, "annotation"))
    training = torch.zeros(len(dataset.targets), 1, dtype=torch.bool)
    training[dataset.rows(split="train")] = True
    exposed = dataset.targets == 1 if form == "drop_positive" else dataset.targets != -1
    return (draws < rate) & training & exposed


def hide(dataset: Dataset, hidden: Tensor, *, form: Missing) -> Dataset:
    """The data set as its annotators left it: what they missed [N, C] is absent (drop_positive) or unknown."""
    return replace(dataset, targets=dataset.targets.masked_fill(hidden, 0 if form == "drop_positive" else -1))
