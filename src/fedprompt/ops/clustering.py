"""k-means (Lloyd, 1982) from k-means++ starts (Arthur and Vassilvitskii, 2007), seeded and exactly repeatable."""

from __future__ import annotations

import torch
from torch import Tensor


def kmeans(points: Tensor, clusters: int, *, generator: torch.Generator, starts: int = 8, steps: int = 100) -> Tensor:
    """Centroids [clusters, F] of points [N, F] in float64, the best of several starts, each run to convergence.

    There must be at least as many distinct points as clusters; then no cluster is empty.
    """
    points = points.double()
    found = [_lloyd(points, _spread_out(points, clusters, generator), steps) for _ in range(starts)]
    return min(found, key=lambda centroids: float(_squares(points, centroids).min(dim=1).values.sum()))


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """[N] the nearest centroid of each point [N, F], the first of equally near ones."""
    return _squares(points.double(), centroids).argmin(dim=1)


def _squares(points: Tensor, centroids: Tensor) -> Tensor:
    # By differences: the faster product form makes equal distances unequal in the last bits.
    return torch.cdist(points, centroids, compute_mode="donot_use_mm_for_euclid_dist").square()  # [N, clusters]


def _spread_out(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++ seeding: points drawn with probability in proportion to the squared distance from those before."""
    chosen = points[torch.randint(len(points), (1,), generator=generator)]  # [1, F]
    while len(chosen) < clusters:
        gaps = _squares(points, chosen).min(dim=1).values
        assert gaps.any(), "there are fewer different points than clusters"
        chosen = torch.cat([chosen, points[torch.multinomial(gaps, 1, generator=generator)]])  # [clusters so far, F]
    return chosen


def _lloyd(points: Tensor, centroids: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        squares = _squares(points, centroids)
        own = squares.argmin(dim=1)
        sizes = torch.bincount(own, minlength=len(centroids))
        for lost in (sizes == 0).nonzero().flatten().tolist():
            # An empty cluster takes the point that is farthest from its centroid.
            farthest = int((squares.min(dim=1).values * (sizes[own] > 1)).argmax())
            sizes[own[farthest]] -= 1
            own[farthest], sizes[lost] = lost, 1
        moved = torch.zeros_like(centroids).index_add_(0, own, points) / sizes[:, None]
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids
