"""What a partition rule of one's own may hand to clients: each training image once, and nothing that is tested on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import fedprompt as fp
from fedprompt.data.joined import join
from fedprompt.testing import tiny_clip, tiny_dataset

DATA = tiny_dataset()
TRAIN = DATA.rows(split="train", classes=DATA.base, domains=DATA.seen_domains).tolist()
TEST = DATA.rows(split="test", classes=DATA.base).tolist()


def rule_of(
    *rows: Sequence[object], classes: tuple[int, ...] = DATA.base, test: tuple[int, ...] | None = None
) -> Callable[..., fp.Partition]:
    def mine(dataset: fp.Dataset, *, seed: int = 1) -> fp.Partition:
        shards = [fp.Shard(f"c{n}", tuple(own), classes, test=test) for n, own in enumerate(rows)]  # type: ignore[arg-type]
        return fp.Partition("mine", seed, tuple(shards))

    return mine


WRONG: dict[str, tuple[Callable[..., fp.Partition], str]] = {
    "test images": (
        rule_of(TRAIN, TEST[:2]),
        "The rule 'mine' gives clients 2 rows that are not to be trained on: "
        f"row {TEST[0]} is of the split 'test'; take rows from data.rows(split=\"train\", classes=data.base",
    ),
    "out of range": (rule_of([*TRAIN, 10**6]), "1 row that is not to be trained on: 1000000 is no row of"),
    "below range": (rule_of([*TRAIN, -1]), "-1 is no row of"),
    "no number": (rule_of([*TRAIN, "1"]), "'1' is no row of"),
    "twice by one": (rule_of([*TRAIN, TRAIN[0]]), f"gives 1 row more than once, such as row {TRAIN[0]}; give each"),
    "twice by two": (rule_of(TRAIN, TRAIN[:3]), "The rule 'mine' gives 3 rows more than once"),
    "other classes": (rule_of(TRAIN, classes=DATA.base[:1]), "not among its classes, such as"),
    "no class": (rule_of(TRAIN, classes=(*DATA.base, 99)), "1 class that is not trained on, such as 99"),
    "training images as tests": (
        rule_of(TRAIN[1:], test=tuple(TRAIN[:1])),
        "gives clients 1 test row that is not of the test split",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_rule_hands_out_what_is_trained_on_once(case: str) -> None:
    rule, words = WRONG[case]
    with pytest.raises(fp.UserError) as error:
        fp.partition(DATA, rule)
    assert words in str(error.value)


def test_new_classes_unseen_domains_and_rows_left_out_are_not_trained_on() -> None:
    half = replace(DATA, base=DATA.base[:1], new=(*DATA.base[1:], *DATA.new))
    with pytest.raises(fp.UserError, match="is of the new class"):
        fp.partition(half, rule_of(TRAIN, classes=half.base))
    with pytest.raises(fp.UserError, match="is left out of the data set"):
        fp.partition(DATA.without(TRAIN[:1]), rule_of(TRAIN))
    domain = DATA.domains[TRAIN[0]]
    if domain:
        with pytest.raises(fp.UserError, match="is of the unseen domain"):
            fp.partition(replace(DATA, unseen_domains=(domain,)), rule_of(TRAIN))


def test_clients_made_by_hand_are_checked_in_training() -> None:
    clients = fp.Clients(DATA, rule_of(TRAIN, TEST[:1])(DATA), test=True)
    with pytest.raises(fp.UserError, match="The rule 'mine' gives clients 1 row that is not to be trained on"):
        fp.train("zeroshot", tiny_clip(), DATA, clients, progress=False)


def test_a_rule_that_hands_out_training_images_once_is_kept() -> None:
    clients = fp.partition(DATA, rule_of(TRAIN[::2], TRAIN[1::2], test=tuple(TEST)))
    assert [shard.rows for shard in clients.partition.shards] == [tuple(TRAIN[::2]), tuple(TRAIN[1::2])]


def test_the_recommended_rows_serve_data_with_several_labels_too() -> None:
    def mine(dataset: fp.Dataset, *, seed: int = 1) -> fp.Partition:
        rows = dataset.rows(split="train", classes=dataset.base, domains=dataset.seen_domains).tolist()
        return fp.Partition("mine", seed, (fp.Shard("all", tuple(rows), dataset.base),))

    data = tiny_dataset("multi")
    (client,) = fp.partition(data, mine)
    assert len(client.train) == len(data.rows(split="train", domains=data.seen_domains))
    assert len(data.examples(data.rows(split="test", classes=data.base), data.base))  # as in a loop of one's own


@pytest.mark.parametrize(
    ("options", "sentences"),
    [({"classes_per_client": 10, "shots": 400}, ("makes a single client", "no class has more than"))],
)
def test_what_a_rule_does_otherwise_than_asked_is_a_warning(
    options: dict[str, int], sentences: tuple[str, ...]
) -> None:
    with pytest.warns(UserWarning) as caught:
        fp.partition(DATA, "class_chunks", **options)
    said = [str(one.message) for one in caught]
    assert all(any(sentence in one for one in said) for sentence in sentences)
    assert {one.filename for one in caught} == {__file__}


def test_a_client_that_is_not_there_is_a_sentence() -> None:
    clients = fp.partition(DATA, "iid", clients=2)
    with pytest.raises(IndexError, match=r"There is no client 9; 2 clients have the numbers from 0 to 1\."):
        clients[9]
    assert len(list(clients)) == 2 and clients[-1].name == clients[1].name


def test_clients_of_joined_data_are_trained_as_they_were_given(tmp_path: Path) -> None:
    data = join([DATA, replace(DATA, name="other")])
    clients = fp.partition(data, "iid", clients=2)
    fp.train("zeroshot", tiny_clip(), data, clients, out=tmp_path / "run", progress=False)
    found = fp.Partition.from_json((tmp_path / "run" / "partition.json").read_text(encoding="utf-8"))
    assert found.shards == clients.partition.shards
    assert sum(len(shard.rows) for shard in found.shards) == 2 * len(TRAIN)
