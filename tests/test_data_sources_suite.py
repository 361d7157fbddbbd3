from __future__ import annotations

import pytest
import torch

from fedprompt.data.dataset import Dataset
from fedprompt.data.labels import LabelSpace
from fedprompt.data.partition.by_domain import by_domain
from fedprompt.data.partition.class_chunks import class_chunks
from fedprompt.data.sources.suite import join, suite
from fedprompt.errors import UserError
from fedprompt.experiments.test_sets import make_test_sets
from trees import TREES

# Classes of the nine sets of base-to-new and the clients that FedTPG's protocol makes of them: total and last size.
NINE = {
    "caltech101": (100, (2, 30), (5, 10), (10, 5)),
    "oxford_flowers": (102, (3, 11), (5, 11), (10, 6)),
    "fgvc_aircraft": (100, (2, 30), (5, 10), (10, 5)),
    "ucf101": (101, (3, 11), (5, 11), (10, 6)),
    "oxford_pets": (37, (1, 19), (2, 9), (4, 4)),
    "food101": (101, (3, 11), (5, 11), (10, 6)),
    "dtd": (47, (1, 24), (2, 14), (5, 4)),
    "stanford_cars": (196, (5, 18), (10, 8), (20, 3)),
    "sun397": (397, (10, 19), (20, 9), (40, 4)),
}


class Nothing:
    def __init__(self, count):
        self.count = count

    fingerprint = "nothing"

    def __len__(self):
        return self.count

    def open(self, row):
        raise AssertionError("nobody looks")

    def describe(self, row):
        return str(row)


def fake(name, classes, *, base=None, domains=("",), unseen=(), train=True):
    """An image for training and one for testing of every class in every domain."""
    each = [(label, split, domain) for domain in domains for label in range(classes) for split in ("train", "test")]
    known = -(-classes // 2) if base is None else base
    return Dataset(
        name=name,
        source=Nothing(len(each)),
        space=LabelSpace(tuple(f"{name} {label}" for label in range(classes))),
        targets=torch.tensor([label for label, _, _ in each]),
        splits=tuple(split if train or split == "test" else "val" for _, split, _ in each),
        domains=tuple(domain for _, _, domain in each),
        base=tuple(range(known)),
        new=tuple(range(known, classes)),
        unseen_domains=unseen,
    )


@pytest.mark.parametrize(("size", "place", "total"), [(20, 1, 30), (10, 2, 59), (5, 3, 119)])
def test_nine_sets_make_as_many_clients_as_published(size, place, total):
    joined = join([fake(name, row[0]) for name, row in NINE.items()])
    partition = joined.partition_parts(lambda part: class_chunks(part, classes_per_client=size, shots=8))
    assert len(partition.shards) == total
    for name, row in NINE.items():
        own = [shard for shard in partition.shards if shard.name.startswith(f"{name}-")]
        assert (len(own), len(own[-1].classes)) == row[place]
        labels = [label for shard in own for label in shard.classes]
        assert labels == sorted(labels) and len(labels) == -(-row[0] // 2)
    rows = [row for shard in partition.shards for row in shard.rows]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize(
    ("classes", "sources", "size", "clients"),
    [(7, 3, 20, 3), (65, 3, 20, 9), (5, 3, 20, 3), (10, 3, 20, 3), (345, 5, 20, 85), (65, 1, 20, 3), (345, 1, 20, 17)],
)
def test_domains_make_as_many_clients_as_published(classes, sources, size, clients):
    places = tuple(f"domain {number}" for number in range(sources + 1))
    data = fake("several", classes, base=classes, domains=places, unseen=places[sources:])
    assert len(by_domain(data, classes_per_client=size, shots=8).shards) == clients


@pytest.mark.parametrize(("size", "clients"), [(5, 200), (20, 50)])
def test_imagenet_makes_as_many_clients_as_published(size, clients):
    assert len(class_chunks(fake("many", 1000, base=1000), classes_per_client=size).shards) == clients


def test_a_joined_set_answers_with_its_parts():
    joined = join([fake("a", 3), fake("b", 2), fake("c", 4, base=4, train=False)])
    assert joined.base == (0, 1, 3) and joined.new == (2, 4)  # of c, nothing is trained or held out
    assert joined.space.names[3] == "b: b 0" and joined.source.describe(6) == "0"
    partition = joined.partition_parts(lambda part: class_chunks(part, classes_per_client=1))
    assert [shard.name for shard in partition.shards] == ["a-0", "a-1", "b-0"]
    found = joined.examples(torch.tensor(partition.shards[2].rows), partition.shards[2].classes)
    assert found.space.names == ("b 0",) and found.images.rows == (0,) and found.targets.tolist() == [0]
    asked = [(question.split, question.part, question.examples.space.names) for question in make_test_sets(joined)]
    assert asked == [
        ("base", "a", ("a 0", "a 1")),
        ("new", "a", ("a 2",)),
        ("base", "b", ("b 0",)),
        ("new", "b", ("b 1",)),
        ("unseen", "c", ("c 0", "c 1", "c 2", "c 3")),
    ]
    with pytest.raises(UserError, match="no candidate classes in common"):
        joined.examples(torch.tensor([0, 8]))


def test_a_suite_reads_sets_and_targets(tmp_path):
    for name in ("dtd", "eurosat", "imagenet_a"):
        TREES[name](tmp_path)
    joined = suite(root=tmp_path, sets=("dtd",), targets=("eurosat", "imagenet_a"))
    assert [part.has_training_images for part in joined.parts] == [True, False, False]
    assert {question.split for question in make_test_sets(joined)} == {"base", "new", "unseen"}
    assert joined.source.open(len(joined.source) - 1).mode == "RGB" and len(joined.source.fingerprint) == 32
    with pytest.raises(UserError, match="different data sets"):
        suite(root=tmp_path, sets=("dtd",), targets=("dtd",))
    with pytest.raises(UserError, match="not in the suite"):
        suite(root=tmp_path, sets=("dtd",), options={"eurosat": {}})
    TREES["voc2007"](tmp_path)
    with pytest.raises(UserError, match="is multi-label"):
        suite(root=tmp_path, sets=("voc2007",))


def test_all_sets_that_are_not_there_are_named_at_once(tmp_path):
    TREES["dtd"](tmp_path)
    with pytest.raises(UserError, match=r"2 of 3 data sets are not in(.|\n)*food101: http(.|\n)*imagenet: http"):
        suite(root=tmp_path, sets=("dtd", "food101"), targets=("imagenet",))
    with pytest.raises(UserError, match=r"(?s)Food101 is not in.*Expected tree"):
        suite(root=tmp_path, sets=("dtd", "food101"))
