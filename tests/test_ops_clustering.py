from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from fedprompt.ops.clustering import kmeans, nearest
from fedprompt.seeding import stream


def inertia(points: torch.Tensor, centroids: torch.Tensor) -> float:
    return float((points.double() - centroids[nearest(points, centroids)]).square().sum())


def test_on_average_as_tight_as_scikit_learn() -> None:
    """Either may end in a worse local optimum on a single draw, so means over draws are compared."""
    ours, theirs = 0.0, 0.0
    for seed in range(60):
        clusters, count = 1 + seed % 7, 8 + seed % 33
        points = torch.randn(count, 3, generator=stream(seed, "points")) + 4 * torch.arange(count)[:, None] % 3
        ours += inertia(points, kmeans(points, clusters, generator=stream(seed)))
        theirs += KMeans(clusters, n_init=8, random_state=0).fit(points.double().numpy()).inertia_
    assert ours <= 1.01 * theirs


@settings(max_examples=25)
@given(st.lists(st.integers(0, 15), min_size=1, max_size=40), st.integers(0, 99))
def test_every_cluster_has_a_point_and_equal_points_stay_together(numbers: list[int], seed: int) -> None:
    points = torch.tensor([[number >> bit & 1 for bit in range(4)] for number in numbers]).float()
    clusters = len(set(numbers))
    for count in (1, -(-clusters // 2), clusters):
        centroids = kmeans(points, count, generator=stream(seed))
        own = nearest(points, centroids)
        assert sorted(set(own.tolist())) == list(range(count))
        for row, column in ((a, b) for a in range(len(own)) for b in range(a)):
            assert numbers[row] != numbers[column] or own[row] == own[column]
    assert inertia(points, centroids) == pytest.approx(0)


def test_the_same_stream_gives_the_same_bits() -> None:
    points = torch.rand(50, 6, generator=stream(0))
    first, second = (kmeans(points, 5, generator=stream(1)) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, kmeans(points, 5, generator=stream(2)))
