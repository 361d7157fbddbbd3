"""Class names in one form, lists of them, and columns that hold names or numbers."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprompt.data.intake.class_names import (
    class_number,
    is_measure,
    labels_of,
    normal_name,
    odd_numbers,
    read_class_list,
    understand_names,
)
from fedprompt.data.intake.report import Mistakes
from fedprompt.errors import UserError


@pytest.mark.parametrize(
    "spelling",
    [
        "red fox",
        " red fox",
        "red fox ",
        "red\u00a0fox",
        "\ufeffred fox",
        "red  fox",
        "red\tfox",
        "red fox\u200b",
        "red fox\n",
    ],
)
def test_blanks_of_all_kinds_make_no_class_of_their_own(spelling):
    assert normal_name(spelling) == "red fox"


def test_composed_and_decomposed_letters_are_one_class_and_that_is_said():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    found = understand_names([composed, decomposed, "bar"], place="a.csv")
    assert found.names == ("bar", composed) and found.of[decomposed] == composed
    assert found.remarks == (r"a.csv: 2 spellings of 'café' are one class: 'caf\xe9', 'cafe\u0301'.",)


@pytest.mark.parametrize(("one", "other"), [("Road", "road"), ("polar_bear", "polar bear"), ("STRASSE", "straße")])
def test_names_that_look_alike_stay_two_classes_and_are_warned_of(one, other):
    found = understand_names([one, other, "sky"], place="a.csv")
    assert set(found.names) == {one, other, "sky"}
    assert len(found.remarks) == 1 and "are different classes" in found.remarks[0]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20))
def test_the_normal_form_is_its_own_normal_form(text):
    once = normal_name(text)
    assert normal_name(once) == once and once == once.strip()
    assert normal_name(unicodedata.normalize("NFD", text)) == once


@pytest.mark.parametrize(
    ("value", "number"),
    [("3", 3), (3, 3), (3.0, 3), ("3.0", 3), (np.int64(3), 3), (np.float32(3), 3), ("007", 7)]
    + [(value, None) for value in ("²", "٣", "-1", "1e1", "", "0.9", "nan", "3 ", 0.9, -1, float("nan"))]
    + [(value, None) for value in (float("inf"), True, None, [3], np.bool_(1))],
)
def test_a_class_number_is_a_whole_number_and_nothing_else(value, number):
    assert class_number(value) == number


def labels(cells, names, lines=None) -> list[int]:
    mistakes = Mistakes("a.csv")
    found = labels_of(cells, names, mistakes=mistakes, lines=lines)
    mistakes.check()
    return found


def test_labels_are_names_or_numbers_from_0_on():
    assert labels(["cat", "dog ", "cat"], ["cat", "dog"]) == [0, 1, 0]
    assert labels(["0", "1", "1.0"], ["cat", "dog"]) == [0, 1, 1]
    assert labels([0, 1, 1.0], ["cat", "dog"]) == [0, 1, 1]
    assert labels(["2", "1"], ["1", "2"]) == [1, 0]
    assert labels([0, 1], ["0", "1"]) == [0, 1]


@pytest.mark.parametrize(
    ("cells", "names", "sentence"),
    [
        (["1", "2", "3"], ["cat", "dog", "fox"], "run from 1 to 3 where the 3 classes count from 0"),
        (["0", "1", "2"], ["1", "2", "3"], "the labels are numbers, and so are names of classes"),
        ([0, 1, 2], ["1", "2", "3"], "the labels are numbers, and so are names of classes"),
        (["cat", "1"], ["cat", "dog"], "line 3: the label is the number 1, and other labels are names"),
        (["0", "5"], ["cat", "dog"], "line 3: there is no class 5; the 2 classes count from 0"),
        (["cat", "dgo"], ["cat", "dog"], "line 3: there is no class 'dgo'; did you mean 'dog'"),
        (["0", "0.9"], ["cat", "dog"], "there is no class '0.9'"),
        (["0", "²"], ["cat", "dog"], "there is no class '²'"),
        ([0, None], ["cat", "dog"], "there is no class None"),
        ([0, 255], ["cat", "dog"], "there is no class 255"),
        ([0, True], ["cat", "dog"], "there is no class True"),
    ],
)
def test_labels_that_can_be_read_in_two_ways_or_none_are_refused(cells, names, sentence):
    with pytest.raises(UserError) as caught:
        labels(cells, names, lines=range(2, 9))
    assert sentence in str(caught.value)


def test_a_list_of_classes_has_one_name_per_line():
    path = Path("classes.txt")
    assert read_class_list("cat\r\n\r\n dog \nred\u00a0fox", path=path).names == ("cat", "dog", "red fox")
    assert read_class_list("cat\fdog\nfox\u2028red", path=path).names == ("cat\fdog", "fox\u2028red")
    with pytest.raises(UserError, match=r"classes.txt, line 3: the class 'cat' already stands in line 1"):
        read_class_list("cat\ndog\ncat ", path=path)
    with pytest.raises(UserError, match=r"classes.txt is empty"):
        read_class_list("\n \n", path=path)


@pytest.mark.parametrize("text", ["1 cat\n2 red fox", "0 cat\n1 red fox", "1: cat\n2: red fox", "0,cat\n1,red fox"])
def test_numbers_that_count_the_lines_of_a_list_are_no_part_of_the_names(text):
    found = read_class_list(text, path=Path("classes.txt"))
    assert found.names == ("cat", "red fox") and "count lines" in found.remarks[0]


def test_other_numbers_in_a_list_are_part_of_the_names():
    found = read_class_list("7 up\n9 lives", path=Path("classes.txt"))
    assert found.names == ("7 up", "9 lives") and not found.remarks
    assert read_class_list("1\n2\n3", path=Path("classes.txt")).names == ("1", "2", "3")


def test_numbers_among_words_are_said_where_nobody_has_listed_the_classes():
    assert odd_numbers(("7", "cat", "dog"), "a.csv") == ["a.csv: 1 of 3 classes are called by numbers, '7' for one."]
    assert odd_numbers(("7", "8"), "a.csv") == odd_numbers(("cat", "dog"), "a.csv") == []
    assert understand_names(["7", "cat"], place="a").remarks == (
        "a: 1 of 2 classes are called by numbers, '7' for one.",
    )


@pytest.mark.parametrize("text", ["0.9", "-1", "+3", "1e5", "inf", "-Infinity", ".5", "1.5"])
def test_some_numbers_are_no_names(text):
    assert is_measure(text)


@pytest.mark.parametrize("text", ["7", "007", "7.0", "7 up", "info", "e5", "1-2", "", "a1"])
def test_other_numbers_may_be_names(text):
    assert not is_measure(text)
