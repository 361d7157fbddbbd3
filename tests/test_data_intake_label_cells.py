"""Cells that hold labels: every dialect read right, and what may be read in two ways refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprompt.data.intake.label_cells import (
    LabelColumn,
    is_missing,
    looks_like_several,
    read_label_column,
    truth,
    truth_columns,
)
from fedprompt.data.intake.report import Mistakes
from fedprompt.data.intake.typed_labels import Dialect, TypedLabels, read_typed_labels
from fedprompt.errors import UserError

NAN, INF = float("nan"), float("inf")


def column(cells, **options) -> LabelColumn:
    mistakes = Mistakes("a.csv")
    found = read_label_column(cells, mistakes=mistakes, lines=range(2, 2 + len(cells)), **options)
    mistakes.check()
    return found


HAZE = (("haze", "primary"), ("primary",), ("haze",), ("clear", "haze"))


@pytest.mark.parametrize(
    ("write", "form"),
    [
        (lambda labels: str(list(labels)), "lists"),
        (lambda labels: json.dumps(labels), "lists"),
        (lambda labels: str(np.array(labels)), "lists"),
        (lambda labels: str(tuple(labels)), "lists"),
        (lambda labels: list(labels), "lists"),
        (";".join, "names between semicolons or bars"),
        ("|".join, "names between semicolons or bars"),
        (" ; ".join, "names between semicolons or bars"),
        (",".join, "names between commas"),
        (", ".join, "names between commas"),
        (" ".join, "names between blanks"),
        ("/".join, "names between slashes"),
        ("#".join, "names between number signs"),
    ],
)
def test_every_dialect_says_the_same(write, form):
    found = column([write(labels) for labels in HAZE])
    assert found.labels == HAZE and found.form == form


def test_a_text_without_a_sign_between_is_one_name_with_blanks_in_it():
    assert column(["polar bear", "red fox"]).labels == (("polar bear",), ("red fox",))
    assert column(["F-16A/B", "F/A-18"]).labels == (("F-16A/B",), ("F/A-18",))


def test_no_label_at_all_and_no_known_label_are_two_things():
    assert column(["haze", "", "[]", "nan", "None", None, NAN]).labels == (("haze",), (), (), None, None, None, None)
    assert column(["none", "haze"]).labels == (("none",), ("haze",))
    assert column(["None", "haze"], names=("None", "haze")).labels == (("None",), ("haze",))


@pytest.mark.parametrize("cell", ["nan", "NaN", "None", "null", "NULL", "<NA>", "N/A", "#N/A", " nan ", None, NAN])
def test_words_that_stand_for_a_missing_value_are_no_class(cell):
    assert is_missing(cell) and truth(cell) == -1


def test_a_comma_that_may_be_part_of_a_name_is_settled_by_the_user():
    for cells in (["fox, red", "bear"], ["fox, red"]):
        with pytest.raises(UserError, match=r"'fox, red' may be one class or several; .*data.separator=\",\"'"):
            column(cells)
    assert column(["fox, red", "bear"], separator=",").labels == (("fox", "red"), ("bear",))
    assert column(["fox, red", "bear"], separator="none").labels == (("fox, red",), ("bear",))
    assert column(["fox, red", "bear"], names=("fox, red", "bear")).labels == (("fox, red",), ("bear",))


def test_two_separators_at_once_are_refused():
    with pytest.raises(UserError, match=r"may be one class or several"):
        column(["haze,primary", "haze", "primary", "road/water", "road", "water"])
    with pytest.raises(UserError, match=r"may be one class or several"):
        column(["haze;primary,water", "primary", "water"])


def test_more_combinations_than_parts_are_combinations():
    tags = ["clear primary", "clear water", "haze primary", "haze water", "clear primary water"]
    assert column(tags).labels[4] == ("clear", "primary", "water")
    with pytest.raises(UserError, match=r"may be one class or several"):
        column([f"{first},{second}/x" for first in "abc" for second in "abc"] + ["x"] + [f"{one}" for one in "abc"])


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ("[haze, primary]", "is a list that cannot be read"),
        ("{'haze': 1}", "is a list that cannot be read"),
        ("array(['haze'], dtype=object)", "is a list that cannot be read"),
        ("['haze', nan]", "is a list that cannot be read"),
        ('["haze", null]', "None is not a class name"),
        ("['haze', '']", "an empty name"),
        ("[1, 2]", "1 is not a class name"),
        ("haze;nan", "'nan' stands for a missing label beside others"),
        (3, "3 is not a label"),
        (0.9, "0.9 is not a label"),
    ],
)
def test_a_cell_that_cannot_be_read_is_refused_with_its_line(cell, sentence):
    with pytest.raises(UserError, match=r"line 3, column 'labels'") as caught:
        column(["primary", cell])
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "write",
    [
        lambda marks: " ".join(map(str, marks)),
        lambda marks: ",".join(map(str, marks)),
        lambda marks: ";".join(map(str, marks)),
        str,
        lambda marks: str(np.array(marks)),
        lambda marks: str(np.array(marks, dtype=float)),
        list,
        lambda marks: [bool(mark) for mark in marks],
    ],
)
def test_vectors_of_0_and_1_over_known_classes_are_vectors(write):
    found = column([write([1, 0, 1]), write([0, 0, 0])], names=("a", "b", "c"))
    assert found.vectors == ((1, 0, 1), (0, 0, 0)) and found.form == "vectors of 0 and 1"
    unknown = column([write([1, 0, 1]), None], names=("a", "b", "c"))
    assert unknown.vectors == ((1, 0, 1), (-1, -1, -1))
    assert column([[0, NAN, 1]], names=("a", "b", "c")).vectors == ((0, -1, 1),)


@pytest.mark.parametrize("cells", [["0.9 0.2 0.6"], [[0.9, 0.2, 0.6]], [[0, 2, 1]], [[0, 255, 1]], [[0, 1]]])
def test_numbers_that_are_no_truth_values_make_no_vector(cells):
    mistakes = Mistakes("a")
    found = read_label_column(cells, mistakes=mistakes, names=("a", "b", "c"))
    assert not found.vectors and (len(mistakes) or found.labels == (("0.9 0.2 0.6",),))


@pytest.mark.parametrize(
    ("cells", "several"),
    [
        (["haze", "primary", "haze, primary"], "haze, primary"),
        (["haze", "['haze', 'primary']"], "['haze', 'primary']"),
        (["haze", '["haze"]'], '["haze"]'),
        (["a", "b", "a|b"], "a|b"),
        (["clear primary", "clear water", "haze primary", "haze water", "clear primary water"], "clear primary"),
        (["polar bear", "red fox"], ""),
        (["fox, red", "bear"], ""),
        (["fire", "truck", "fire truck"], "fire truck"),
    ],
)
def test_a_column_of_one_label_each_is_looked_at_for_cells_of_several(cells, several):
    assert looks_like_several(cells) == several
    assert not looks_like_several(cells, names=cells)


@pytest.mark.parametrize(
    ("cell", "mark"),
    [
        ("1", 1),
        ("0", 0),
        ("-1", -1),
        ("", -1),
        (" ", -1),
        ("1.0", 1),
        ("0.", 0),
        (1, 1),
        (0.0, 0),
        (True, 1),
        (False, 0),
    ]
    + [("True", 1), ("FALSE", 0), (np.int64(1), 1), (np.float32(0), 0), (np.bool_(1), 1), (NAN, -1)]
    + [(cell, None) for cell in ("0.9", "2", "255", "inf", "yes?", "²", ".0.", 0.9, 255, INF, -2, "1e0", [1])],
)
def test_only_0_1_minus_1_and_blank_are_truth_values(cell, mark):
    assert truth(cell) == mark


def test_a_threshold_turns_scores_into_truth_values_and_refuses_what_is_no_number():
    cells = ("0.9", 0.2, "0.5", "", None, "inf", "high", True)
    assert [truth(cell, threshold=0.5) for cell in cells] == [1, 0, 1, -1, -1, None, None, 1]


def test_columns_of_classes_are_refused_where_a_cell_is_no_truth_value():
    mistakes = Mistakes("a.csv")
    rows = [{"dog": "1", "cat": "0.9"}, {"dog": "", "cat": "0"}]
    assert truth_columns(rows, ["dog", "cat"], mistakes=mistakes, lines=[2, 3])[1] == [-1, 0]
    with pytest.raises(
        UserError, match=r"a.csv, line 2, column 'cat': '0.9' is neither 1, 0, -1 nor blank; give --set data.thres"
    ):
        mistakes.check()


@pytest.mark.parametrize("blank", [[], [{"dog": "", "cat": "1"}]])
def test_1_and_minus_1_alone_may_mean_present_and_absent_and_are_refused(blank):
    mistakes = Mistakes("a.csv")
    truth_columns(
        [{"dog": "1", "cat": "-1"}, *blank], ["dog", "cat"], mistakes=mistakes, lines=[2, 3][: 1 + len(blank)]
    )
    with pytest.raises(UserError, match=r"values are 1 and -1 and never 0.*write 0 where it is absent"):
        mistakes.check()


NAME = st.text(alphabet="abcdefgh", min_size=1, max_size=6).filter(lambda name: not is_missing(name))


@given(st.lists(st.lists(NAME, max_size=4, unique=True), min_size=1, max_size=12), st.data())
def test_a_table_of_labels_says_the_same_in_every_dialect(rows, data):
    writers = [str, json.dumps, ";".join, "|".join]
    # A separator that is none of ours is told from other rows: each name stands alone in one of them.
    alone = [[name] for name in sorted({name for labels in rows for name in labels})]
    write = data.draw(st.sampled_from([*writers, ",".join, " ".join, "/".join]))
    found = column([write(labels) for labels in [*rows, *alone]])
    assert [list(labels) for labels in found.labels] == [*rows, *alone]


def test_a_name_with_a_sign_in_it_of_which_one_part_is_a_name_too_is_refused():
    with pytest.raises(
        UserError, match=r"'dog/fox' may be one class or several; say which with --set data.separator=/"
    ):
        column(["dog", "dog/fox", "cat"])
    assert column(["dog", "dog/fox"], separator="/").labels == (("dog",), ("dog", "fox"))
    assert column(["dog", "dog/fox"], separator="none").labels == (("dog",), ("dog/fox",))
    assert column(["dog", "AC/DC"]).labels == (("dog",), ("AC/DC",))


def test_a_name_of_two_words_of_which_one_is_a_name_too_is_said():
    found = column(["truck", "fire truck", "red fox"])
    assert found.labels == (("truck",), ("fire truck",), ("red fox",))
    assert found.remarks == (
        "a.csv: 'fire truck' is read as one class beside 'truck'; give --set 'data.separator=\" \"' if it is two "
        "labels.",
    )
    assert column(["truck", "fire truck"], names=("truck", "fire truck")).remarks == ()


def test_two_signs_that_may_both_stand_between_labels_are_refused():
    with pytest.raises(UserError, match=r'some have ";" and some "\|" between them; say which it is with `separator`'):
        column(["cat; dog", "cat|fox"])
    assert column(["cat; dog", "cat|fox"], separator=";").labels == (("cat", "dog"), ("cat|fox",))


@pytest.mark.parametrize("cell", ["0.9", "-1", "1e5", "inf", "[0.9]", "['0.9']", "cat; 0.9"])
def test_a_number_that_no_class_is_called_by_is_none(cell):
    with pytest.raises(
        UserError, match=r"line 3, column 'labels': .* is (a number and no class is called so|not a cla)"
    ):
        column(["cat", cell])


def typed(values, names=(), **dialect) -> TypedLabels:
    mistakes = Mistakes("a.parquet", place="row {}".format)
    found = read_typed_labels(values, names, dialect=Dialect(**dialect), mistakes=mistakes)
    mistakes.check()
    return found


def test_lists_that_are_class_numbers_or_values_per_class_are_refused_where_both_fit():
    names = ("cat", "dog")
    with pytest.raises(UserError, match=r"every list may be class numbers, and may be 0 and 1 per class; write names"):
        typed([[0, 1], [1, 0]], names)
    assert typed([[0, 1], [1, 0]], names, threshold=0.5).targets == [[0, 1], [1, 0]]
    assert typed([[0, 1], [1, 1]], names).targets == [[0, 1], [1, 1]]
    assert typed([[0, 1], [1]], names).targets == [[1, 1], [0, 1]]
    assert typed([[False, True], [True, False]], names).targets == [[0, 1], [1, 0]]
    assert typed([[0, 1], [1, 0]], names, lists="vectors").targets == [[0, 1], [1, 0]]
