from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedprompt.data.dataset import Dataset
from fedprompt.data.labels import LabelSpace
from fedprompt.data.partition.base import (
    Partition,
    by_domain,
    class_chunks,
    counts,
    dirichlet,
    heterogeneity,
    iid,
    table,
)
from fedprompt.errors import UserError


class Blank:
    """A source of that many grey pictures."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.fingerprint = f"blank-{length}"

    def __len__(self) -> int:
        return self.length

    def open(self, row: int) -> Image.Image:
        return Image.new("RGB", (8, 8), (row % 256,) * 3)

    def describe(self, row: int) -> str:
        return f"row {row}"


def dataset(classes: int, *, each: int = 3, domains: tuple[str, ...] = ("",), new: int = 0, unseen=()) -> Dataset:
    """`each` training pictures and one test picture of every class in every domain."""
    cells = [
        (label, domain, split)
        for label in range(classes + new)
        for domain in domains
        for split in ["train"] * each + ["test"]
    ]
    return Dataset(
        name="toy",
        source=Blank(len(cells)),
        space=LabelSpace(tuple(f"class {label}" for label in range(classes + new))),
        targets=torch.tensor([label for label, _, _ in cells]),
        splits=tuple(split for _, _, split in cells),
        domains=tuple(domain for _, domain, _ in cells),
        base=tuple(range(classes)),
        new=tuple(range(classes, classes + new)),
        unseen_domains=unseen,
    )


# The nine data sets of the FedTPG protocol: base classes -> (clients, classes of the last one) at n = 20, 10, 5
PUBLISHED = {
    "Caltech101": (50, (2, 30), (5, 10), (10, 5)),
    "OxfordFlowers": (51, (3, 11), (5, 11), (10, 6)),
    "FGVCAircraft": (50, (2, 30), (5, 10), (10, 5)),
    "UCF101": (51, (3, 11), (5, 11), (10, 6)),
    "OxfordPets": (19, (1, 19), (2, 9), (4, 4)),
    "Food101": (51, (3, 11), (5, 11), (10, 6)),
    "DTD": (24, (1, 24), (2, 14), (5, 4)),
    "StanfordCars": (98, (5, 18), (10, 8), (20, 3)),
    "SUN397": (199, (10, 19), (20, 9), (40, 4)),
}


@pytest.mark.parametrize(("classes", "wide", "middle", "narrow"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_class_chunks_give_the_published_numbers_of_clients(classes, wide, middle, narrow):
    data = dataset(classes, each=1)
    for size, (clients, last) in zip((20, 10, 5), (wide, middle, narrow), strict=True):
        shards = class_chunks(data, classes_per_client=size, seed=1).shards
        assert (len(shards), len(shards[-1].classes)) == (clients, last)
        assert all(len(shard.classes) == size for shard in shards[:-1])


def test_published_totals():
    sizes = [classes for classes, *_ in PUBLISHED.values()]
    for n, total in ((20, 30), (10, 59), (5, 119)):
        assert sum(max(1, round(size / n)) for size in sizes) == total


RULES = {
    "class_chunks": lambda data, seed: class_chunks(data, classes_per_client=2, shots=2, seed=seed),
    "by_domain": lambda data, seed: by_domain(data, classes_per_client=2, shots=2, seed=seed),
    "iid": lambda data, seed: iid(data, clients=3, seed=seed),
    "dirichlet": lambda data, seed: dirichlet(data, clients=3, alpha=0.3, seed=seed),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@given(seed=st.integers(0, 2**40), classes=st.integers(2, 7))
@settings(max_examples=15, deadline=None)
def test_every_rule_deals_base_pictures_of_seen_domains_once(rule, seed, classes):
    data = dataset(classes, domains=("a", "b", "c"), new=2, unseen=("c",))
    partition = rule(data, seed)
    rows = [row for shard in partition.shards for row in shard.rows]
    assert len(rows) == len(set(rows))
    allowed = set(data.rows(split="train", classes=data.base, domains=("a", "b")).tolist())
    assert set(rows) <= allowed
    assert {int(data.targets[row]) for row in rows} == set(data.base)  # no class is lost
    for shard in partition.shards:
        assert shard.rows and {int(data.targets[row]) for row in shard.rows} <= set(shard.classes)
        assert not shard.domain or {data.domains[row] for row in shard.rows} == {shard.domain}
    assert rule(data, seed) == partition
    assert Partition.from_json(partition.to_json()) == partition
    held = [[int(data.targets[row]) for row in shard.rows] for shard in partition.shards]
    assert counts(partition, data).tolist() == [[own.count(label) for label in data.base] for own in held]


def test_class_chunks_are_disjoint_and_shots_stay_when_a_class_is_added():
    small, large = dataset(6), dataset(8)
    shards = class_chunks(small, classes_per_client=2, shots=2).shards
    classes = [label for shard in shards for label in shard.classes]
    assert sorted(classes) == list(range(6))
    assert class_chunks(large, classes_per_client=2, shots=2).shards[:3] == shards


@pytest.mark.parametrize("rule", [iid, dirichlet])
def test_every_picture_is_dealt_out(rule):
    data = dataset(5, each=9, domains=("a", "b"), unseen=("b",))
    partition = rule(data, clients=7)
    rows = sorted(row for shard in partition.shards for row in shard.rows)
    assert rows == data.rows(split="train", domains=("a",)).tolist()
    assert {shard.classes for shard in partition.shards} == {data.base}
    few = rule(data, clients=7, shots=4)
    assert counts(few, data).sum(dim=0).tolist() == [4] * 5


def test_iid_sizes_differ_by_one_at_most():
    sizes = [len(shard.rows) for shard in iid(dataset(5, each=9), clients=7).shards]
    assert sorted(sizes) == [6] * 4 + [7] * 3


def test_fewer_shots_are_the_first_of_more():
    data = dataset(4, each=20)
    four, eight = (class_chunks(data, classes_per_client=2, shots=shots).shards for shots in (4, 8))
    for fewer, more in zip(four, eight, strict=True):
        assert set(fewer.rows) < set(more.rows)


def test_by_domain_leaves_out_a_client_that_would_have_no_pictures():
    data = dataset(4, domains=("a", "b"))
    bare = [domain == "b" and label > 1 for domain, label in zip(data.domains, data.targets.tolist(), strict=True)]
    data = dataclasses.replace(
        data, splits=tuple("test" if out else word for out, word in zip(bare, data.splits, strict=True))
    )
    partition = by_domain(data, classes_per_client=2)
    assert [(shard.name, shard.classes) for shard in partition.shards] == [
        ("a-0", (0, 1)),
        ("a-1", (2, 3)),
        ("b-0", (0, 1)),
    ]


def test_a_class_with_fewer_pictures_than_shots_gives_all():
    shards = class_chunks(dataset(4, each=3), classes_per_client=2, shots=8).shards
    assert [len(shard.rows) for shard in shards] == [6, 6]


def test_iid_and_dirichlet_differ_as_their_names_say():
    data = dataset(10, each=30)
    alike = heterogeneity(dirichlet(data, clients=5, alpha=1000.0), data)
    unlike = heterogeneity(dirichlet(data, clients=5, alpha=0.05), data)
    assert alike < 0.1 < heterogeneity(iid(data, clients=5), data) + 0.1
    assert unlike > 0.5
    assert heterogeneity(class_chunks(data, classes_per_client=2, shots="all"), data) == pytest.approx(0.8)


def test_dirichlet_leaves_no_client_without_a_picture():
    data = dataset(2, each=6)
    assert all(shard.rows for shard in dirichlet(data, clients=12, alpha=0.01).shards)


def test_iid_deals_out_scenes_with_many_labels():
    data = dataset(3)
    many = dataclasses.replace(
        data, space=dataclasses.replace(data.space, kind="multi"), targets=torch.eye(3, dtype=torch.int8)[data.targets]
    )
    partition = iid(many, clients=3)
    assert sorted(row for shard in partition.shards for row in shard.rows) == many.rows(split="train").tolist()
    held = [list(shard.rows) for shard in partition.shards]
    assert counts(partition, many).tolist() == [(many.targets[rows] == 1).sum(dim=0).tolist() for rows in held]
    with pytest.raises(UserError, match="use the rule 'label_clusters'"):
        class_chunks(many)
    with pytest.raises(UserError, match="leave the option out"):
        iid(many, shots=2)


def test_table_lists_the_first_clients_and_counts_all():
    data = dataset(4, each=20)
    rows = table(iid(data, clients=80), data)
    assert len(rows) == 52 and rows[-1][0] == "all 80" and rows[-1][2] == "80"


def test_table_has_a_heading_a_row_a_client_and_a_sum():
    data = dataset(4)
    rows = table(class_chunks(data, classes_per_client=2, shots=2), data)
    assert [row[2] for row in rows] == ["pictures", "4", "4", "8"]
    assert {len(row) for row in rows} == {5}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda data: iid(data, clients=1000), "1000 clients cannot share the 12"),
        (lambda data: iid(data, clients=0), "0 clients cannot share"),
        (lambda data: dirichlet(data, alpha=0.0), "needs alpha > 0"),
        (lambda data: class_chunks(data, classes_per_client=0), "at least 1, not 0"),
        (lambda data: class_chunks(data, shots=0), "shots must be at least 1"),
        (lambda data: by_domain(data), "has no domains"),
        (lambda data: Partition.from_json("{}"), "cannot be read"),
        (lambda data: Partition.from_json(json.dumps([1])), "cannot be read"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(UserError, match=message):
        call(dataset(4))


def test_a_class_without_training_pictures_is_named():
    data = dataset(2)
    splits = tuple(
        "test" if label == 1 else split for label, split in zip(data.targets.tolist(), data.splits, strict=True)
    )
    with pytest.raises(UserError, match="no training pictures of class 1"):
        class_chunks(dataclasses.replace(data, splits=splits), classes_per_client=1)
