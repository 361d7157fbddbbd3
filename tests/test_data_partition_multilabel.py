"""Clients by the company labels keep, many labels dealt out by one, and labels that annotators missed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.data.dataset import Dataset
from fedprompt.data.labels import LabelSpace
from fedprompt.data.partition.base import Partition, dirichlet
from fedprompt.data.partition.label_clusters import hide, label_clusters, missing
from fedprompt.errors import UserError
from fedprompt.seeding import stream
from test_data_partition import Blank

CLASSES = 5


def scenes(seed: int = 0, *, rows: int = 60, kind: str = "multi") -> Dataset:
    """Labels in two groups that keep together, some pictures without any, some unknown, every third for testing."""
    draws = torch.rand(rows, CLASSES, generator=stream(seed, "labels"))
    group = torch.arange(rows)[:, None] % 2
    targets = (draws < torch.where(torch.arange(CLASSES) // 3 == group, 0.6, 0.05)).to(torch.int8)
    targets[draws > 0.97] = -1
    return Dataset(
        name="toy",
        source=Blank(rows),
        space=LabelSpace(tuple(f"class {label}" for label in range(CLASSES)), kind=kind),
        targets=targets if kind == "multi" else torch.arange(rows) % CLASSES,
        splits=tuple("test" if row % 3 == 2 else "train" for row in range(rows)),
        domains=("",) * rows,
        base=tuple(range(CLASSES)),
    )


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**40), st.sampled_from([0.2, 0.6, 1.0]))
def test_clusters_hold_every_picture_once_and_test_pictures_follow_the_centroids(seed: int, share: float) -> None:
    data = scenes(seed)
    partition = label_clusters(data, heterogeneity=share, seed=seed)
    assert len(partition.shards) == round(share * CLASSES)
    assert sorted(row for shard in partition.shards for row in shard.rows) == data.rows(split="train").tolist()
    assert sorted(row for shard in partition.shards for row in shard.test) == data.rows(split="test").tolist()
    assert all(shard.classes == data.base for shard in partition.shards)
    vectors = (data.targets == 1).double().softmax(dim=1)
    centres = torch.stack([vectors[list(shard.rows)].mean(dim=0) for shard in partition.shards])
    for number, shard in enumerate(partition.shards):
        for row in (*shard.rows, *shard.test):
            gaps = (vectors[row] - centres).norm(dim=1)
            assert gaps[number] <= gaps.min() + 1e-9
    assert Partition.from_json(partition.to_json()) == partition
    assert label_clusters(data, heterogeneity=share, seed=seed) == partition


def test_clusters_may_leave_poor_pictures_out() -> None:
    data = scenes()
    rows = [row for shard in label_clusters(data, heterogeneity=0.4, min_labels=2).shards for row in shard.rows]
    assert rows and all((data.targets[row] == 1).sum() >= 2 for row in rows)
    asked = [row for shard in label_clusters(data, heterogeneity=0.4, min_labels=2).shards for row in shard.test]
    assert sorted(asked) == data.rows(split="test").tolist(), "tests are not filtered"


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**40), st.sampled_from([0.05, 0.5, 100.0]))
def test_dirichlet_deals_out_every_picture_of_many_labels_once(seed: int, alpha: float) -> None:
    data = scenes(seed)
    partition = dirichlet(data, clients=4, alpha=alpha, seed=seed)
    assert sorted(row for shard in partition.shards for row in shard.rows) == data.rows(split="train").tolist()
    assert all(shard.rows for shard in partition.shards)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**40), st.sampled_from(["drop_positive", "unknown"]))
def test_missing_labels_are_those_of_training_pictures(seed: int, form: str) -> None:
    data = scenes(seed, rows=300)
    few, many = (missing(data, form=form, rate=rate, seed=seed) for rate in (0.3, 0.9))
    assert not (few & ~many).any(), "a higher rate hides all that a lower one does"
    after, tested = hide(data, many, form=form).targets, data.rows(split="test")
    assert torch.equal(after[tested], data.targets[tested])
    assert torch.equal(after[~many], data.targets[~many])
    if form == "drop_positive":
        assert (data.targets[many] == 1).all() and (after[many] == 0).all()
    else:
        assert (data.targets[many] != -1).all() and (after[many] == -1).all()
    exposed = data.targets[data.rows(split="train")]
    exposed = exposed == 1 if form == "drop_positive" else exposed != -1
    assert abs(many.sum() / exposed.sum() - 0.9) < 0.12
    assert torch.equal(missing(data, form=form, rate=0.3, seed=seed), few)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"heterogeneity": 0.0}, "needs 0 < heterogeneity <= 1"),
        ({"heterogeneity": 1.2}, "needs 0 < heterogeneity <= 1"),
        ({"min_labels": -1}, "min_labels >= 0"),
        ({"heterogeneity": 1.0, "min_labels": CLASSES}, "too few for 5 clients; lower heterogeneity = 1.0"),
    ],
)
def test_clusters_that_cannot_be_are_refused(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        label_clusters(scenes(), **options)


def test_one_label_a_picture_is_no_multi_label_task() -> None:
    single = scenes(kind="single")
    with pytest.raises(UserError, match="use the rule 'class_chunks'"):
        label_clusters(single)
    with pytest.raises(UserError, match="those of 'toy' have not"):
        missing(single, form="unknown", rate=0.5, seed=0)
