"""Recipes: defaults, settings from the command line, and one sentence for every mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from fedprompt.config.blocks import check_options, options_model
from fedprompt.config.recipe import Recipe, find_recipe, load_recipe, parse_recipe
from fedprompt.config.settings import Fit
from fedprompt.errors import UserError
from fedprompt.experiments.plan import block_options

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
            r"\[train\] rounds = 'many' is not accepted: it must be a whole number\.",
        ),
        (MINIMAL + "[train]\nlr = -1.0", [], r"\[train\] lr = -1.0 is not accepted: it must be above 0\."),
        (MINIMAL, ["train.optimizer=adam"], r"optimizer = 'adam' is not accepted: it must be \"sgd\" or \"adamw\"\."),
        (MINIMAL, ["evaluate.local=perhaps"], r"local = 'perhaps' is not accepted: it must be true or false\."),
        (
            "name = 'a'\n[data]\nsource = 'x'\n[method]\nname = 'y'",
            [],
            r"recipe: lacks the table \[partition\]; add it",
        ),
        (MINIMAL.replace('name = "some_method"\n', ""), [], r"recipe: \[method\] lacks the key 'name'; add it"),
        ("name = 1 2", [], r"recipe is not valid TOML \(.*line 1"),
        (MINIMAL, ["rounds"], r"'rounds' is not of the form key=value"),
        (MINIMAL, ["compare.5.name=x"], r"names '5', which is not a table"),
        (MINIMAL, ["train.rounds.deep=1", "train.rounds=2", "train.rounds.deeper=1"], r"'deeper'|does not name a key"),
        (MINIMAL, ["evaluate.evry=2"], r"\[evaluate\] has no key 'evry'; did you mean 'every'\?"),
        (MINIMAL, ["lr=0.1"], r"recipe: has no key 'lr'; did you mean 'train\.lr'\?"),
        (MINIMAL, ["backbone.batch_size=8"], r"did you mean 'train\.batch_size' or 'evaluate\.batch_size'\?"),
        (MINIMAL, ["train.optimizer.lr=1"], r"it must be \"sgd\" or \"adamw\"; did you mean 'train\.lr'\?"),
        (MINIMAL, ["train.optimizer=sgd", "train.optimizer.lr=1"], r"key of a table; did you mean 'train\.lr'\?"),
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
            r"here: the_rule has no option 'token'; did you mean 'tokens'\? \(its options: tokens, kind, path\)",
        ),
        ({}, r"here: the_rule needs the option 'path'; add it"),
        ({"path": "x", "kind": "c"}, r"here: kind = 'c' is not accepted: it must be \"a\" or \"b\"\."),
        ({"path": "x", "tokens": 0.5}, r"here: tokens = 0\.5 is not accepted: it must be a whole number\."),
        ({"path": "x", "generator": 3}, r"the_rule has no option 'generator'"),
    ],
)
def test_each_option_mistake_is_one_sentence(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_options(build_piece, options, place="here", name="the_rule")


def take(*, shots: int | Literal["all"] = 8) -> None:
    """Stand in for a partition rule whose option has two types."""


def test_a_value_of_no_allowed_type_names_all_of_them() -> None:
    with pytest.raises(UserError, match=r'shots = \[\] is not accepted: it must be a whole number or "all"\.'):
        check_options(take, {"shots": []}, place="[partition]")


def fitted(text: str, settings: list[str], **options: set[str]) -> tuple[Recipe, list[str]]:
    """A recipe fitted to settings, with the options of known blocks, and the sentences about it."""
    said: list[str] = []
    fit = Fit(lambda table, name, values: options.get(name), said.append)
    return parse_recipe(text, settings, fit=fit), said


def test_another_choice_leaves_out_the_options_of_the_old_one_and_says_so() -> None:
    text = MINIMAL.replace('rule = "some_rule"', 'rule = "some_rule"\nshots = 8\nchunk = 5')
    recipe, said = fitted(text, ["partition.rule=iid"], iid={"clients", "shots"})
    assert recipe.partition.options == {"shots": 8}
    assert said == ["partition.rule = iid leaves out the option chunk of some_rule. It keeps shots."]
    recipe, said = fitted(text, ["partition.rule=iid", "partition.chunk=3"], iid={"clients"})
    assert recipe.partition.options == {"chunk": 3}, "what a setting asks for is left to the check of options"
    assert said == ["partition.rule = iid leaves out the option shots of some_rule."]
    for settings in ([], ["partition.rule=some_rule"], ["partition.rule=unknown"], ["seed=3"]):
        recipe, said = fitted(text, settings, iid={"clients"})
        assert recipe.partition.options == {"shots": 8, "chunk": 5} and not said


def test_an_option_stays_only_if_the_other_choice_can_have_its_value() -> None:
    text = MINIMAL.replace('"some_source"\npath = "pictures"', '"emoji"\ntrain = 4\ntest = 2\nseed = 2')
    said: list[str] = []
    for source, kept in (("sites", {"seed": 2}), ("scenes", {"train": 4, "test": 2, "seed": 2})):
        recipe = parse_recipe(text, [f"data.source={source}"], fit=Fit(block_options, said.append))
        assert recipe.data.options == kept
    assert said == ["data.source = sites leaves out the options train, test of emoji. It keeps seed."]


def test_keys_that_are_no_options_stay_when_a_source_or_an_attack_is_replaced() -> None:
    text = MINIMAL.replace('path = "pictures"', "unreadable = 0.5\nscans = true")
    text += '[train.server.attack]\nname = "sign_flip"\nadversaries = 3\nscale = 2.0\n'
    settings = ["data.source=coco", "train.server.attack.name=alie"]
    recipe, said = fitted(text, settings, coco={"path"}, alie=set())
    assert recipe.data.unreadable == 0.5 and not recipe.data.options
    assert recipe.train.server.attack is not None and recipe.train.server.attack.adversaries == 3
    assert len(said) == 2 and not recipe.train.server.attack.options


def test_a_compared_method_that_becomes_the_main_one_brings_its_own_settings() -> None:
    recipe, said = fitted(MINIMAL, ["method.name=other", "method.depth=2"], other={"depth"})
    assert recipe.method.name == "other" and recipe.method.train == {"lr": 0.1} and not recipe.compare
    assert recipe.method.options == {"depth": 2}
    assert said == ["method.name = other takes the table of other in compare, with its options."]


def test_a_file_that_does_not_exist_is_said_not_to_exist() -> None:
    with pytest.raises(UserError, match=r"^The file nofile\.toml does not exist;"):
        find_recipe("nofile.toml")
    with pytest.raises(UserError, match=r"^There is no recipe 'dem'; did you mean 'demo'\?"):
        find_recipe("dem")


def test_a_folder_with_a_recipes_name_does_not_hide_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_recipe("demo").name == "demo.toml"
