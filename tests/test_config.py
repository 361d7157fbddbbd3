"""Recipes: defaults, settings from the command line, and one sentence for every mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from fedprompt.config.blocks import check_options, options_model
from fedprompt.config.recipe import find_recipe, load_recipe, parse_recipe
from fedprompt.errors import UserError

MINIMAL = """
name = "tiny"
[data]
source = "some_source"
path = "pictures"
[partition]
rule = "some_rule"
[method]
name = "some_method"
tokens = 4
[[compare]]
name = "other"
train = {lr = 0.1}
"""


def build_piece(
    dataset: object, *, tokens: int = 4, kind: Literal["a", "b"] = "a", path: str, generator: object = None
) -> None:
    """Stand in for a method or a reader."""


def test_defaults_are_written_out_and_read_back() -> None:
    recipe = parse_recipe(MINIMAL)
    assert recipe.backbone.path == "demo" and recipe.train.rounds == 100
    assert recipe.data.options == {"path": "pictures"} and recipe.method.options == {"tokens": 4}
    assert recipe.compare[0].train == {"lr": 0.1} and recipe.compare[0].title == "other"
    assert parse_recipe(recipe.to_toml()) == recipe


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("train.rounds=3", 3),
        ("train.lr = 1e-2", 0.01),
        ("name=words", "words"),
        ("seed=7", 7),
        ("method.tokens=9", 9),
        ("compare.0.train.lr=0.5", 0.5),
    ],
)
def test_settings_override_keys(setting: str, value: object) -> None:
    place: object = parse_recipe(MINIMAL, [setting]).model_dump()
    for step in setting.split("=")[0].strip().split("."):
        place = place[int(step)] if step.isdigit() else place[step]  # type: ignore[index]
    assert place == value


@pytest.mark.parametrize(
    ("text", "settings", "sentence"),
    [
        (
            MINIMAL + "[train]\nround = 3",
            [],
            r"recipe: \[train\] has no key 'round'; did you mean 'rounds'\? \(known: rounds, .*\)",
        ),
        ("nam = 1\n" + MINIMAL, [], r"recipe: has no key 'nam'; did you mean 'name'\?"),
        (
            MINIMAL + "[train]\nrounds = 'many'",
            [],
            r"\[train\] rounds = 'many' is not accepted: input should be a valid integer",
        ),
        (MINIMAL + "[train]\nlr = -1.0", [], r"\[train\] lr = -1.0 is not accepted: input should be greater than 0"),
        ("name = 'a'\n[data]\nsource = 'x'\n[method]\nname = 'y'", [], r"recipe: lacks the key 'partition'; add it"),
        ("name = 1 2", [], r"recipe is not valid TOML \(.*line 1"),
        (MINIMAL, ["rounds"], r"'rounds' is not of the form key=value"),
        (MINIMAL, ["compare.5.name=x"], r"names '5', which is not a table"),
        (MINIMAL, ["train.rounds.deep=1", "train.rounds=2", "train.rounds.deeper=1"], r"'deeper'|does not name a key"),
        (MINIMAL, ["evaluate.evry=2"], r"\[evaluate\] has no key 'evry'; did you mean 'every'\?"),
    ],
)
def test_each_mistake_is_one_sentence(text: str, settings: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        parse_recipe(text, settings)
    assert "\n" not in str(caught.value).strip()


def test_a_recipe_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.toml does not exist"):
        load_recipe(tmp_path / "nowhere.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.toml is text in no encoding that is known"):
        load_recipe(tmp_path / "binary.toml")


def test_the_signature_is_the_configuration() -> None:
    assert list(options_model(build_piece).model_fields) == ["tokens", "kind", "path"]
    assert check_options(build_piece, {"path": "x"}, place="here") == {
        "tokens": 4,
        "kind": "a",
        "path": "x",
    }


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"path": "x", "token": 4},
            r"here: there is no option 'token'; did you mean 'tokens'\? \(options: tokens, kind, path\)",
        ),
        ({}, r"here: the option 'path' is missing"),
        ({"path": "x", "kind": "c"}, r"here: kind = 'c' is not accepted: input should be 'a' or 'b'"),
        ({"path": "x", "generator": 3}, r"there is no option 'generator'"),
    ],
)
def test_each_option_mistake_is_one_sentence(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_options(build_piece, options, place="here")


def test_a_folder_with_a_recipes_name_does_not_hide_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_recipe("demo").name == "demo.toml"
