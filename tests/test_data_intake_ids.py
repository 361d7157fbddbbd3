"""Ids compared as text in one form, and what joins to nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprompt.data.intake.ids import Ids, by_value, flag, id_text, index_ids, joined, repeated
from fedprompt.data.intake.report import Mistakes
from fedprompt.errors import UserError

NAN = float("nan")


def index(*ids, mistakes=None, names=None) -> Ids:
    records = list(zip(ids, names or map(str, range(len(ids))), strict=True))
    own = mistakes or Mistakes("a.json")
    found = index_ids(records, key=lambda one: one[0], content=lambda one: one[1], what="images", mistakes=own)
    if mistakes is None:
        own.check()
    return found


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (7.0, "7"),
        ("7", "7"),
        (" 7 ", "7"),
        ("000007", "000007"),
        ("a-1", "a-1"),
        (-1, "-1"),
        (2**60, str(2**60)),
    ]
    + [(value, None) for value in (None, NAN, float("inf"), 0.5, True, [7], {}, "", "  ", float(2**60))],
)
def test_an_id_is_text_in_one_form(value, text):
    assert id_text(value) == text


@pytest.mark.parametrize("stored", [7, 7.0, "7", "000007", "7.0"])
@pytest.mark.parametrize("asked", [7, 7.0, "7", "000007"])
def test_numbers_are_one_id_however_they_are_written(stored, asked):
    assert index(stored, 8).find(asked) == 0
    assert index(stored, 8).find(9) is None and index(stored, 8).find(None) is None


def test_zeros_in_front_count_where_two_ids_differ_in_them_alone():
    ids = index("7", "007", "8")
    assert ids.find("7") == 0 and ids.find("007") == 1 and ids.find(7) == 0 and ids.find("0007") is None


def test_ids_need_not_be_numbers():
    assert index("c0ffee-1", "c0ffee-2").find("c0ffee-2") == 1


@pytest.mark.parametrize("bad", [None, NAN, 0.5, "", [1], True])
def test_records_without_an_id_are_told_in_one_sentence(bad):
    with pytest.raises(UserError, match=r"a.json: 2 of 3 images have no id that can be used"):
        index(bad, 1, bad)


def test_one_id_of_different_records_is_refused_and_a_record_repeated_word_for_word_is_not():
    with pytest.raises(UserError, match=r"a.json: 1 id of images is given to different ones, '1' for one; if files"):
        index(1, 2, "1", names=("a.jpg", "b.jpg", "c.jpg"))
    assert index(1, 2, 1, names=("a.jpg", "b.jpg", "a.jpg")).rows == {"1": 0, "2": 1}


def test_what_joins_to_nothing_is_counted_in_one_sentence():
    mistakes = Mistakes("a.json")
    assert joined(["1", 9, 2, "x"], index(1, 2), what="annotations", to="images", mistakes=mistakes) == [0, -1, 1, -1]
    with pytest.raises(UserError, match=r"a.json: 2 of 4 annotations name images that are not in the file, 9 for one"):
        mistakes.check()


def test_a_file_that_is_listed_twice_is_told():
    mistakes = Mistakes("a.json")
    repeated(["a.jpg", "b.jpg"], what="files", mistakes=mistakes)
    assert not len(mistakes)
    repeated(["a.jpg", "b.jpg", "a.jpg", "a.jpg"], what="files", mistakes=mistakes)
    with pytest.raises(UserError, match=r"a.json: 1 file is listed more than once, 'a.jpg' for one"):
        mistakes.check()


@pytest.mark.parametrize(
    ("value", "is_set"),
    [
        *((value, False) for value in (0, "0", False, "False", "no", None, "", 0.0, NAN)),
        *((value, True) for value in (1, "1", True, "true", "1.0")),
        *((value, None) for value in (2, "maybe")),
    ],
)
def test_a_mark_may_be_text(value, is_set):
    assert flag(value) is is_set


@given(st.integers(-(2**52), 2**52), st.integers(0, 4))
def test_the_value_of_a_number_is_its_form(number, zeros):
    text = f"{'-' if number < 0 else ''}{'0' * zeros}{abs(number)}"
    assert by_value(text) == by_value(id_text(float(number))) == str(number)
