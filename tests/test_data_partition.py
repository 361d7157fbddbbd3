"""The battery that every registered partition rule passes. It names no rule: a new one is tested by existing."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.config.registry import PARTITION_RULES
from fedprompt.data.dataset import Dataset
from fedprompt.data.partition.base import Partition, class_counts
from fedprompt.errors import UserError
from toy_datasets import multi_label, single_label

DOMAINS = ("north", "south", "east")
DATASETS: dict[str, Callable[[int], Dataset]] = {
    "single-label": lambda seed: single_label(2 + seed % 6, each=6, domains=DOMAINS, new=2, unseen=("east",)),
    "multi-label": lambda seed: multi_label(seed, rows=180, new=2, domains=(*DOMAINS, "west"), unseen=("east",)),
}
BUILDERS = dict(PARTITION_RULES.builders)


def partition_of(name: str, dataset: Dataset, seed: int) -> Partition | None:
    """What a rule with default options makes of the data set; None if it refuses this kind of data set."""
    builder = BUILDERS[name]
    seeded = {"seed": seed} if "seed" in inspect.signature(builder).parameters else {}
    try:
        return builder(dataset, **seeded)
    except UserError as error:
        assert dataset.name in str(error), "a refusal names the data set"
        return None


@pytest.mark.parametrize("kind", DATASETS)
@pytest.mark.parametrize("name", BUILDERS)
@given(seed=st.integers(0, 2**40))
@settings(max_examples=12)
def test_every_rule_is_deterministic_and_assigns_base_images_of_seen_domains_once(name, kind, seed):
    dataset = DATASETS[kind](seed)
    partition = partition_of(name, dataset, seed)
    if partition is None:
        return
    assert partition.rule == name and partition.shards
    assert partition_of(name, dataset, seed) == partition
    assert Partition.from_json(partition.to_json()) == partition
    rows = [row for shard in partition.shards for row in shard.rows]
    assert len(rows) == len(set(rows))
    allowed = dataset.rows(
        split="train",
        classes=dataset.base if dataset.space.kind == "single" else None,
        domains=dataset.seen_domains,
    )
    assert set(rows) <= set(allowed.tolist())
    for shard in partition.shards:
        assert shard.rows and set(shard.classes) <= set(dataset.base)
        assert not shard.domain or {dataset.domains[row] for row in shard.rows} == {shard.domain}
        assert set(shard.test or ()) <= set(dataset.rows(split="test", domains=dataset.seen_domains).tolist())
        if dataset.space.kind == "single":
            assert {int(dataset.targets[row]) for row in shard.rows} <= set(shard.classes)
    positive = dataset.targets == 1 if dataset.space.kind == "multi" else None
    for shard, counts in zip(partition.shards, class_counts(partition, dataset).tolist(), strict=True):
        for label, count in zip(dataset.base, counts, strict=True):
            present = dataset.targets == label if positive is None else positive[:, label]
            assert count == int(present[list(shard.rows)].sum())


@pytest.mark.parametrize("name", BUILDERS)
def test_every_rule_takes_single_label_or_multi_label_data(name):
    assert any(partition_of(name, make(1), 1) is not None for make in DATASETS.values())


@pytest.mark.parametrize("name", BUILDERS)
def test_every_rule_without_rows_keeps_the_other_rows_of_each_client(name):
    for make in DATASETS.values():
        if partition := partition_of(name, make(1), 1):
            lost = partition.shards[0].rows[0]
            shards = partition.without([lost]).shards
            assert shards[0].rows == partition.shards[0].rows[1:] and shards[1:] == partition.shards[1:]
