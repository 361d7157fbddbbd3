"""A non-IID partition by label co-occurrence: k-means clusters of label vectors (Wang et al., 2026, FedMPT)."""

from __future__ import annotations

from torch import Tensor

from fedprompt.data.dataset import Dataset
from fedprompt.data.partition.base import Partition, Shard
from fedprompt.errors import UserError
from fedprompt.ops.clustering import kmeans, nearest
from fedprompt.seeding import stream


def label_clusters(dataset: Dataset, *, heterogeneity: float = 0.6, min_labels: int = 0, seed: int = 1) -> Partition:
    """One client per cluster of label vectors: round(heterogeneity * K) clients for K base classes.

    k-means runs on the softmax of the label vectors of training images; an unknown label counts as absent. A client's
    test images are those nearest to its centroid. `min_labels` leaves out training images with fewer labels.
    Raises UserError for single-label data, options out of range, or fewer distinct label vectors than clients.
    """
    if dataset.space.kind != "multi":
        raise UserError(f"label_clusters needs multi-label data; for {dataset.name!r} use the rule 'class_chunks'.")
    if not 0 < heterogeneity <= 1 or min_labels < 0:
        raise UserError(
            f"label_clusters needs 0 < heterogeneity <= 1 and min_labels >= 0, not {heterogeneity} and {min_labels}."
        )
    base, clusters = list(dataset.base), max(1, round(heterogeneity * len(dataset.base)))
    present = (dataset.targets == 1)[:, base]  # [N, K]
    rows = dataset.rows(split="train", domains=dataset.seen_domains)
    rows = rows[present[rows].sum(dim=1) >= min_labels]
    # differs: the release gives test images the clusters of the training images at the same places
    test = dataset.rows(split="test", domains=dataset.seen_domains)
    distinct = len(set(map(tuple, present[rows].tolist())))
    if distinct < clusters:
        raise UserError(
            f"The training images of {dataset.name!r} have {distinct} different sets of labels, too few for "
            f"{clusters} clients; lower heterogeneity = {heterogeneity} or min_labels = {min_labels}."
        )
    vectors = present.double().softmax(dim=1)  # [N, K]
    centroids = kmeans(vectors[rows], clusters, generator=stream(seed, "partition"))
    owner, test_owner = nearest(vectors[rows], centroids), nearest(vectors[test], centroids)
    shards = (
        Shard(f"client-{number}", _owned(rows, owner, number), dataset.base, test=_owned(test, test_owner, number))
        for number in range(clusters)
    )
    return Partition("label_clusters", seed, tuple(shards)).checked(dataset)


def _owned(rows: Tensor, owner: Tensor, number: int) -> tuple[int, ...]:
    return tuple(rows[owner == number].tolist())
