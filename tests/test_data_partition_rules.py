"""Partition rules one by one: published numbers of clients, few-shot sampling, Dirichlet label skew, clusters."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.data.partition.base import Partition, class_counts, heterogeneity, partition_table
from fedprompt.data.partition.by_domain import by_domain
from fedprompt.data.partition.by_site import by_site
from fedprompt.data.partition.class_chunks import class_chunks
from fedprompt.data.partition.dirichlet import dirichlet
from fedprompt.data.partition.domains_or_dirichlet import NO_DOMAIN, domains_or_dirichlet
from fedprompt.data.partition.iid import iid
from fedprompt.data.partition.label_clusters import label_clusters
from fedprompt.errors import UserError
from toy_datasets import multi_label, single_label

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
    data = single_label(classes, each=1)
    for size, (clients, last) in zip((20, 10, 5), (wide, middle, narrow), strict=True):
        shards = class_chunks(data, classes_per_client=size, seed=1).shards
        assert (len(shards), len(shards[-1].classes)) == (clients, last)
        assert all(len(shard.classes) == size for shard in shards[:-1])


def test_published_totals():
    sizes = [classes for classes, *_ in PUBLISHED.values()]
    for n, total in ((20, 30), (10, 59), (5, 119)):
        assert sum(max(1, round(size / n)) for size in sizes) == total


def test_class_chunks_are_disjoint_and_shots_stay_when_a_class_is_added():
    small, large = single_label(6), single_label(8)
    shards = class_chunks(small, classes_per_client=2, shots=2).shards
    classes = [label for shard in shards for label in shard.classes]
    assert sorted(classes) == list(range(6))
    assert class_chunks(large, classes_per_client=2, shots=2).shards[:3] == shards


@pytest.mark.parametrize("rule", [iid, dirichlet])
def test_every_image_is_assigned(rule):
    data = single_label(5, each=9, domains=("a", "b"), unseen=("b",))
    partition = rule(data, clients=7)
    rows = sorted(row for shard in partition.shards for row in shard.rows)
    assert rows == data.rows(split="train", domains=("a",)).tolist()
    assert {shard.classes for shard in partition.shards} == {data.base}
    few = rule(data, clients=7, shots=4)
    assert class_counts(few, data).sum(dim=0).tolist() == [4] * 5


def test_iid_sizes_differ_by_one_at_most():
    sizes = [len(shard.rows) for shard in iid(single_label(5, each=9), clients=7).shards]
    assert sorted(sizes) == [6] * 4 + [7] * 3


def test_fewer_shots_are_the_first_of_more():
    data = single_label(4, each=20)
    four, eight = (class_chunks(data, classes_per_client=2, shots=shots).shards for shots in (4, 8))
    for fewer, more in zip(four, eight, strict=True):
        assert set(fewer.rows) < set(more.rows)


def test_by_domain_leaves_out_a_client_that_would_have_no_images():
    data = single_label(4, domains=("a", "b"))
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


def test_a_class_with_fewer_images_than_shots_gives_all():
    shards = class_chunks(single_label(4, each=3), classes_per_client=2, shots=8).shards
    assert [len(shard.rows) for shard in shards] == [6, 6]


def test_iid_and_dirichlet_differ_as_their_names_say():
    data = single_label(10, each=30)
    alike = heterogeneity(dirichlet(data, clients=5, alpha=1000.0), data)
    unlike = heterogeneity(dirichlet(data, clients=5, alpha=0.05), data)
    assert alike < 0.1 < heterogeneity(iid(data, clients=5), data) + 0.1
    assert unlike > 0.5
    assert heterogeneity(class_chunks(data, classes_per_client=2, shots="all"), data) == pytest.approx(0.8)


def test_dirichlet_leaves_no_client_without_a_image():
    data = single_label(2, each=6)
    assert all(shard.rows for shard in dirichlet(data, clients=12, alpha=0.01).shards)


def test_iid_assigns_multi_label_images():
    data = single_label(3)
    many = dataclasses.replace(
        data, space=dataclasses.replace(data.space, kind="multi"), targets=torch.eye(3, dtype=torch.int8)[data.targets]
    )
    partition = iid(many, clients=3)
    assert sorted(row for shard in partition.shards for row in shard.rows) == many.rows(split="train").tolist()
    held = [list(shard.rows) for shard in partition.shards]
    assert class_counts(partition, many).tolist() == [(many.targets[rows] == 1).sum(dim=0).tolist() for rows in held]
    with pytest.raises(UserError, match="use the rule 'label_clusters'"):
        class_chunks(many)
    with pytest.raises(UserError, match="leave the option out"):
        iid(many, shots=2)


def test_table_lists_the_first_clients_and_counts_all():
    data = single_label(4, each=20)
    rows = partition_table(iid(data, clients=80), data)
    assert len(rows) == 52 and rows[-1][0] == "all 80" and rows[-1][2] == "80"


def test_table_has_a_heading_a_row_per_client_and_a_sum():
    data = single_label(4)
    rows = partition_table(class_chunks(data, classes_per_client=2, shots=2), data)
    assert [row[2] for row in rows] == ["images", "4", "4", "8"]
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
        call(single_label(4))


def test_a_class_without_training_images_is_named():
    data = single_label(2)
    splits = tuple(
        "test" if label == 1 else split for label, split in zip(data.targets.tolist(), data.splits, strict=True)
    )
    with pytest.raises(UserError, match="no training images of class 1"):
        class_chunks(dataclasses.replace(data, splits=splits), classes_per_client=1)


@settings(max_examples=20)
@given(st.integers(0, 2**40), st.sampled_from([0.2, 0.6, 1.0]))
def test_clusters_hold_every_image_once_and_test_images_follow_the_centroids(seed: int, share: float) -> None:
    data = multi_label(seed)
    partition = label_clusters(data, heterogeneity=share, seed=seed)
    assert len(partition.shards) == round(share * 5)
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


def test_clusters_may_leave_out_images_with_few_labels() -> None:
    data = multi_label()
    rows = [row for shard in label_clusters(data, heterogeneity=0.4, min_labels=2).shards for row in shard.rows]
    assert rows and all((data.targets[row] == 1).sum() >= 2 for row in rows)
    asked = [row for shard in label_clusters(data, heterogeneity=0.4, min_labels=2).shards for row in shard.test]
    assert sorted(asked) == data.rows(split="test").tolist(), "tests are not filtered"


@settings(max_examples=20)
@given(st.integers(0, 2**40), st.sampled_from([0.05, 0.5, 100.0]))
def test_dirichlet_assigns_every_multi_label_image_once(seed: int, alpha: float) -> None:
    data = multi_label(seed)
    partition = dirichlet(data, clients=4, alpha=alpha, seed=seed)
    assert sorted(row for shard in partition.shards for row in shard.rows) == data.rows(split="train").tolist()
    assert all(shard.rows for shard in partition.shards)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"heterogeneity": 0.0}, "needs 0 < heterogeneity <= 1"),
        ({"heterogeneity": 1.2}, "needs 0 < heterogeneity <= 1"),
        ({"min_labels": -1}, "min_labels >= 0"),
        ({"heterogeneity": 1.0, "min_labels": 5}, "too few for 5 clients; lower heterogeneity = 1.0"),
    ],
)
def test_clusters_that_cannot_be_are_refused(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        label_clusters(multi_label(), **options)


def test_a_site_that_is_elsewhere_is_a_client_without_rows_here():
    data = single_label(3, domains=("rome", "oslo", "server"))
    assert [shard.name for shard in by_site(data).shards] == ["oslo", "rome"]
    away, here = by_site(data, sites=("oslo", "bern")).shards
    assert (away.name, away.rows, here.name) == ("bern", (), "oslo") and len(here.rows) == 9
    with pytest.raises(UserError, match="no domains that could be sites"):
        by_site(single_label(3))


def test_rules_for_one_kind_of_labels_name_a_rule_for_the_other():
    with pytest.raises(UserError, match="use the rule 'class_chunks'"):
        label_clusters(single_label(3))
    with pytest.raises(UserError, match="use the rule 'label_clusters'"):
        class_chunks(multi_label())


def test_dirichlet_with_infinite_alpha_is_iid() -> None:
    data = single_label(7, each=13)  # 91 images
    partition = dirichlet(data, clients=4, alpha=math.inf)
    counts = class_counts(partition, data)
    assert counts.sum(dim=1).tolist() == [23, 23, 23, 22]
    assert int(counts.max() - counts.min()) == 1  # every class is shared out evenly
    assert sorted(row for shard in partition.shards for row in shard.rows) == data.rows(split="train").tolist()
    assert dirichlet(data, clients=4, alpha=math.inf, seed=2) != partition


@pytest.mark.parametrize("alpha", [1e30, 1e15, 1e-30, 1e-300])
def test_dirichlet_with_any_finite_alpha_assigns_every_image(alpha: float) -> None:
    data = single_label(7, each=13)
    sizes = class_counts(dirichlet(data, clients=4, alpha=alpha), data).sum(dim=1)
    assert int(sizes.sum()) == 91 and (alpha < 1 or int(sizes.max() - sizes.min()) <= 7)


def test_domains_are_the_clients_where_there_are_several():
    data = single_label(3, each=4, domains=("art", "photo", "sketch"), unseen=("sketch",))
    shards = domains_or_dirichlet(data).shards
    assert [(shard.name, shard.domain, shard.classes) for shard in shards] == [
        ("art", "art", (0, 1, 2)),
        ("photo", "photo", (0, 1, 2)),
    ]
    assert [len(shard.rows) for shard in shards] == [12, 12]


@pytest.mark.parametrize("domains", [("",), ("photo",), ("photo", "sketch")])
def test_one_domain_is_split_by_label_skew(domains):
    data = single_label(4, each=30, domains=domains, unseen=domains[1:])
    found, drawn = domains_or_dirichlet(data, seed=3), dirichlet(data, clients=3, seed=3)
    assert [(shard.rows, shard.domain) for shard in found.shards] == [(shard.rows, "") for shard in drawn.shards]


@pytest.mark.parametrize(
    ("classes", "each", "clients"),
    [(1, 1, 1), (1, 2, 2), (3, 1, 2), (20, 3, 2), (10, 12, 3), (10, 33, 8), (40, 50, 10)],
)
def test_the_number_of_clients_follows_from_the_number_of_images(classes, each, clients):
    found = domains_or_dirichlet(single_label(classes, each=each))
    assert len(found.shards) == clients and sum(len(shard.rows) for shard in found.shards) == classes * each


def test_a_number_of_clients_that_is_stated_is_taken():
    assert len(domains_or_dirichlet(single_label(4, each=10), clients=7).shards) == 7
    with pytest.raises(UserError, match="clients >= 0, not -1"):
        domains_or_dirichlet(single_label(4), clients=-1)


@pytest.mark.parametrize("data", [single_label(6, each=40), multi_label(rows=300)], ids=["single", "multi"])
def test_clients_are_tested_on_all_test_images_each_once(data):
    shards = domains_or_dirichlet(data, clients=4).shards
    rows = [row for shard in shards for row in shard.test]
    assert sorted(rows) == data.rows(split="test").tolist()


def test_a_clients_test_images_have_its_label_distribution():
    data = single_label(3, each=30)
    data = dataclasses.replace(data, splits=tuple("test" if row % 2 else "train" for row in range(len(data.splits))))
    for shard in domains_or_dirichlet(data, clients=3, alpha=0.2).shards:
        trained, tested = (torch.bincount(data.targets[list(rows)], minlength=3) for rows in (shard.rows, shard.test))
        assert (trained - tested).abs().max() <= 2, (trained, tested)


def test_shots_limit_who_holds_what_but_not_the_test_images():
    data = single_label(5, each=20)
    shards = domains_or_dirichlet(data, clients=2, shots=3).shards
    assert sum(len(shard.rows) for shard in shards) == 15
    assert sum(len(shard.test) for shard in shards) == len(data.rows(split="test"))


def test_images_without_a_domain_are_a_client_beside_the_domains():
    data = single_label(2, each=3, domains=("photo", ""))
    first, other = domains_or_dirichlet(data).shards
    assert (first.name, other.name, other.domain) == ("photo", NO_DOMAIN, "")
    assert {data.domains[row] for row in (*other.rows, *other.test)} == {""}


def test_by_domain_warns_of_a_single_client():
    (warning,) = by_domain(single_label(3, domains=("photo",)), shots="all").warnings
    assert "makes a single client" in warning and "'photo'" in warning
    assert not by_domain(single_label(3, domains=("photo", "art")), shots="all").warnings
