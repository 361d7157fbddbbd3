from __future__ import annotations

import json

import pytest

from fedprompt.data.conditions import read_conditions
from fedprompt.demo.lexicon import CONDITIONS
from fedprompt.errors import UserError

FILE = {"format_version": 1, "conditions": ["light", "place "], "model": "me", "prompts": [], "sentences": ["A dog."]}


def read(folder, **changes):
    (folder / "conditions.json").write_text(json.dumps(FILE | changes))
    return read_conditions(folder / "conditions.json")


def test_conditions_keep_their_order(tmp_path):
    assert read(tmp_path) == ("light", "place")
    assert len(read_conditions(CONDITIONS)) == 5, "the demo has its own"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"conditions": ["light", " "]}, "Condition 2 of .*conditions.json is empty"),
        ({"conditions": ["light", "size", "Light"]}, "Condition 3 of .* repeats condition 1, 'Light'"),
        ({"conditions": []}, "There are no conditions in"),
        ({"conditions": "light"}, r"another form \(conditions: "),
        ({"notes": 1}, r"another form \(notes: "),
        ({"format_version": 2}, "are of format 2, and 1 is read here"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        read(tmp_path, **changes)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_conditions(tmp_path / "no.json")
