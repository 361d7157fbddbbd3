from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedprompt.data.dataset import Dataset, multi_hot
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace, relative_clause, with_attribute
from fedprompt.errors import UserError


class Stripes:
    """Pictures whose left half is black and right half is white."""

    fingerprint = "stripes"

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def open(self, row: int) -> Image.Image:
        image = Image.new("RGB", (2, 1))
        image.putpixel((1, 0), (255, 255, 255))
        return image

    def describe(self, row: int) -> str:
        return f"stripe {row}"


def make(**changed) -> Dataset:
    values = {
        "name": "toy",
        "source": Stripes(4),
        "space": LabelSpace(("a", "b", "c"), attributes={"c": ("has legs",)}),
        "targets": torch.tensor([0, 1, 2, 1]),
        "splits": ("train", "train", "test", "test"),
        "domains": ("x", "y", "y", "x"),
        "base": (0, 1),
        "new": (2,),
    }
    return Dataset(**(values | changed))


@pytest.mark.parametrize("row", [4, -1, "a", 1.0])
def test_leaving_out_a_row_that_is_not_there_is_refused(row: object) -> None:
    with pytest.raises(UserError, match=r"has no row .*; rows are whole numbers from 0 to 3\.$"):
        make().without([1, row])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(0, 3)), min_size=1, max_size=30))
def test_rows_are_those_a_loop_would_find(cells):
    cells = [*cells, ("a", "x", 0), ("b", "z", 0)]
    splits, domains, labels = zip(*cells, strict=True)
    data = make(
        source=Stripes(len(cells)),
        space=LabelSpace(tuple("abcd")),
        targets=torch.tensor(labels),
        splits=splits,
        domains=domains,
    )
    # Every split and domain is there: others are refused.
    wanted = [row for row, cell in enumerate(cells) if cell[0] == "a" and cell[1] in "xz" and cell[2] in (1, 3)]
    assert data.rows(split="a", domains=("z", "x"), classes=(3, 1)).tolist() == wanted
    assert data.rows(split="b").tolist() == [row for row, cell in enumerate(cells) if cell[0] == "b"]
    assert data.rows(split="a", domains=()).tolist() == data.rows(split="test").tolist() == []


def test_rows_of_data_with_several_labels_take_all_base_classes_and_no_fewer():
    data = make(
        space=LabelSpace(("a", "b", "c"), kind="multi"),
        targets=multi_hot([(0,), (1, 2), (), (0, 1)], 3),
        unseen_domains=(),
    )
    for classes in (data.base, (*data.base, *data.new), None):
        assert data.rows(split="train", classes=classes).tolist() == [0, 1]
        assert data.rows(split="train", classes=classes, domains=("y",)).tolist() == [1]
    with pytest.raises(UserError, match=r"several labels each.*give classes=data\.base.*'b' is missing"):
        data.rows(split="train", classes=(0, 2))


def test_seen_domains_leave_out_the_unseen_ones():
    assert make().seen_domains == ("x", "y")
    assert make(unseen_domains=("x",)).seen_domains == ("y",)
    assert make(domains=("",) * 4).seen_domains == ("",)


def test_examples_are_relabelled_to_their_candidates():
    examples = make().examples(torch.tensor([3, 2]), (2, 1))
    assert examples.space.names == ("c", "b") and examples.targets.tolist() == [1, 0]
    assert examples.space.attributes == {"c": ("has legs",)} and examples.images.rows == (3, 2)
    assert len(examples) == 2 and make().examples(torch.tensor([0])).space == make().space
    with pytest.raises(UserError, match="is no candidate; add it, or leave out the row"):
        make().examples(torch.tensor([0]), (2, 1))


def test_examples_of_many_labels_choose_columns():
    data = make(
        space=LabelSpace(("a", "b", "c"), kind="multi"),
        targets=torch.tensor([[1, 0, -1], [0, 1, 1], [0, 0, 0], [1, 1, 1]], dtype=torch.int8),
    )
    assert data.examples(torch.tensor([0, 1]), (2, 0)).targets.tolist() == [[-1, 1], [1, 0]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"targets": torch.tensor([0])}, "4 images but 1 targets"),
        ({"splits": ("train",)}, "4 images but 1 splits"),
        ({"domains": ()}, "4 images but 0 domains"),
        ({"base": (), "new": (1,)}, "at least one base class"),
        ({"base": (0, 2)}, "distinct"),
        ({"new": (3,)}, "from 0 to 2"),
        ({"unseen_domains": ("yy",)}, "no domain 'yy'"),
    ],
)
def test_a_data_set_that_does_not_add_up_is_named(changed, message):
    with pytest.raises(UserError, match=f"'toy'.*{message}"):
        make(**changed)


def test_images_are_taken_and_mirrored_by_position():
    images = Images(Stripes(9), (4, 7, 5))
    assert images.keys.tolist() == [8, 14, 10]
    mixed = images.flipped(torch.tensor([False, True, False]))
    assert mixed.keys.tolist() == [8, 15, 10] and mixed.flipped(torch.tensor([True, True, False])).keys.tolist() == [
        9,
        14,
        10,
    ]
    taken = mixed.take(torch.tensor([1, 1, 0]))
    assert taken == mixed.take([1, 1, 0]) and taken.rows == (7, 7, 4) and taken.mirrored == (True, True, False)
    assert images.flipped().flipped().keys.equal(images.keys)
    assert [image.getpixel((0, 0))[0] for image in taken] == [255, 255, 0]
    assert taken.describe(2) == "stripe 4"


@given(st.lists(st.tuples(st.integers(0, 2**40), st.booleans()), unique=True, max_size=20))
def test_no_two_views_share_a_key(views):
    rows, mirrored = zip(*views, strict=True) if views else ((), ())
    assert len(set(Images(Stripes(1), rows, mirrored).keys.tolist())) == len(views)


@pytest.mark.parametrize(
    ("phrase", "sentence"),
    [
        ("arched windows", "a dog, which has arched windows."),
        ("a tail", "a dog, which is a tail."),
        ("An old hand", "a dog, which is An old hand."),
        ("used for hunting", "a dog, which is used for hunting."),
        ("often barks", "a dog, which often barks."),
        ("may bite", "a dog, which may bite."),
    ],
)
def test_phrases_become_clauses_by_their_first_word(phrase, sentence):
    assert with_attribute("a dog.", phrase) == sentence
    assert relative_clause(phrase) == sentence.removeprefix("a dog, ").removesuffix(".")


def test_names_fill_the_template_as_they_are():
    assert LabelSpace(("a_{x}", "{}"), template="{}, {} in {{}}").texts() == (
        "a {x}, a {x} in {a {x}}",
        "{}, {} in {{}}",
    )


@pytest.mark.parametrize(
    ("names", "template", "message"),
    [((), "{}", "at least one class"), (("a", "b", "a"), "{}", "'a' stands 2 times"), (("a",), "photo", "has no {}")],
)
def test_wrong_label_spaces_are_named(names, template, message):
    with pytest.raises(UserError, match=message):
        LabelSpace(names, template=template)


@given(st.lists(st.sets(st.integers(0, 4)), max_size=6))
def test_labels_become_rows_of_ones(labels):
    found = multi_hot(labels, 5)
    assert found.shape == (len(labels), 5) and found.dtype == torch.int8
    assert [set(row.nonzero().flatten().tolist()) for row in found] == labels


@pytest.mark.parametrize("name", ["cat\n", "\u202egod", "\x00", "dog\u200f"])
def test_a_class_name_is_what_is_seen(name):
    with pytest.raises(UserError, match="invisible characters"):
        LabelSpace(("cat", name))
    assert LabelSpace(("a\u200cb", "F-16A/B", "con")).names  # a joiner is part of how some words are written
