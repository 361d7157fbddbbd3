"""Numbers in settings: NaN, infinity and huge values in every key of every table, block and deployment file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_origin

import pytest
from pydantic import BaseModel

from fedprompt import methods
from fedprompt.config.blocks import bind, options_model
from fedprompt.config.recipe import Recipe, checked, parse_recipe
from fedprompt.config.registry import (
    AGGREGATION_RULES,
    ATTACKS,
    PARTITION_RULES,
    PRIVACY,
    SERVER_OPTIMIZERS,
    SOURCES,
)
from fedprompt.config.settings import apply_settings, setting
from fedprompt.config.values import LARGEST, LARGEST_INTEGER, Infinity, table_in
from fedprompt.deploy.settings import Deployment, SiteFile
from fedprompt.errors import UserError
from fedprompt.experiments.plan import resolve
from fedprompt.seeding import stream
from fedprompt.testing.federation import shared_clip
from fedprompt.testing.tiny import tiny_dataset

IMPOSSIBLE = (math.nan, math.inf, -math.inf, 1e300, -1e300, 10**30, -(10**30), 10**400)
HUGE = (LARGEST, LARGEST_INTEGER, 10**12)
REGISTRIES = {
    "source": SOURCES,
    "partition rule": PARTITION_RULES,
    "aggregation rule": AGGREGATION_RULES,
    "server optimizer": SERVER_OPTIMIZERS,
    "privacy": PRIVACY,
    "attack": ATTACKS,
}
BLOCKS = {f"{kind}: {name}": one for kind, all_ in REGISTRIES.items() for name, one in all_.builders.items()}
BLOCKS |= {f"method: {name}": methods.load(name) for name in methods.names()}
RECIPE = """
name = "tiny"
[data]
source = "emoji"
[partition]
rule = "dirichlet"
[method]
name = "promptfl"
"""


def paths(model: type[BaseModel], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every key of a model and of the tables in it."""
    for name, field in model.model_fields.items():
        table = table_in(field.annotation)
        if table is None:
            yield (*before, name)
        else:
            yield from paths(table, (*before, name))


def with_value(model: type[BaseModel], path: tuple[str, ...], value: object) -> dict[str, Any]:
    """Tables with a value at a path, and the other keys that these tables must have."""
    tables = filled(model)
    inner = table_in(model.model_fields[path[0]].annotation)
    if inner is not None:
        value = with_value(inner, path[1:], value)
        value = [value] if get_origin(model.model_fields[path[0]].annotation) is tuple else value
    return {**tables, path[0]: value}


def filled(model: type[BaseModel]) -> dict[str, Any]:
    """A value for each key that has no default."""
    samples = {Path: "somewhere", str: "x", float: 0.5, int: 1}
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if field.is_required():
            table, kind = table_in(field.annotation), get_origin(field.annotation) or field.annotation
            empty = ("x",) if kind is tuple else {}
            found[name] = filled(table) if table is not None else samples.get(kind, empty)
            if name == "superlink":
                found[name] = "host:1"  # the one text with a form of its own
    return found


@pytest.mark.parametrize("model", [Recipe, Deployment, SiteFile])
def test_every_key_of_every_table_refuses_what_is_no_number_of_a_setting(model: type[BaseModel]) -> None:
    for path in paths(model):
        for value in IMPOSSIBLE:
            with pytest.raises(UserError) as caught:
                checked(model, with_value(model, path, value), origin="x.toml")
            assert path[-1] in str(caught.value) and "\n" not in str(caught.value), (path, value, str(caught.value))


@pytest.mark.parametrize("name", BLOCKS)
def test_every_option_of_every_block_refuses_what_is_no_number_of_a_setting(name: str) -> None:
    builder = BLOCKS[name]
    for option, field in options_model(builder).model_fields.items():
        meant = any(isinstance(mark, Infinity) for mark in field.metadata)
        for value in IMPOSSIBLE:
            options = {**filled(options_model(builder)), option: value}
            if meant and value == math.inf:
                assert bind(name, builder, options, place="[x]").options[option] == math.inf
                continue
            with pytest.raises(UserError, match=rf"\b{option}\b"):
                bind(name, builder, options, place="[x]")


def foreign(default: object) -> tuple[object, ...]:
    """Values that are easily taken for one of the default's type."""
    if isinstance(default, bool):
        return (1, 0, 1.0, "true", "yes")
    return (True, str(default), f" {default} ", "1e3") if isinstance(default, int | float) else ()


@pytest.mark.parametrize("model", [Recipe, Deployment, SiteFile])
def test_text_is_no_number_and_a_truth_value_is_neither(model: type[BaseModel]) -> None:
    seen = 0
    for path in paths(model):
        found = model
        for name in path[:-1]:
            found = table_in(found.model_fields[name].annotation) or found
        for value in foreign(found.model_fields[path[-1]].default):
            seen += 1
            with pytest.raises(UserError, match=rf"{path[-1]} = .* is not accepted: it must be (a|true)"):
                checked(model, with_value(model, path, value), origin="x.toml")
    assert seen > 10


@pytest.mark.parametrize("name", BLOCKS)
def test_text_is_no_number_and_a_truth_value_is_neither_in_options(name: str) -> None:
    for option, field in options_model(BLOCKS[name]).model_fields.items():
        for value in foreign(field.default):
            options = {**filled(options_model(BLOCKS[name])), option: value}
            with pytest.raises(UserError, match=rf"{option} = .* is not accepted: it must be (a|true)"):
                bind(name, BLOCKS[name], options, place="[x]")


def build(name: str, options: Mapping[str, object]) -> Iterator[object]:
    """The block as a run builds it; a partition rule of data of each kind, and no source: that would need files."""
    kind, block = name.split(": ")[0], bind(name, BLOCKS[name], options, place="[x]")
    if kind == "method":
        yield block(shared_clip(), generator=stream(0, "method"))
    elif kind == "partition rule":
        yield block(tiny_dataset("multi" if block.builder.__name__ == "label_clusters" else "single"))
    elif kind != "source":
        yield block()


@pytest.mark.parametrize("name", BLOCKS)
def test_the_largest_numbers_work_or_are_refused_by_name(name: str) -> None:
    for option in options_model(BLOCKS[name]).model_fields:
        for value in HUGE:
            try:
                list(build(name, {**filled(options_model(BLOCKS[name])), option: value}))
            except UserError as refusal:
                assert option in str(refusal), (option, value, str(refusal))


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("train.lr=inf", r"\[train\] lr = inf is not accepted: give a finite number\."),
        ("train.lr=nan", r"\[train\] lr = nan is not accepted: give a finite number\."),
        ("train.proximal=inf", r"\[train\] proximal = inf is not accepted"),
        ("train.weight_decay=inf", r"\[train\] weight_decay = inf is not accepted"),
        ("backbone.memory_gb=inf", r"\[backbone\] memory_gb = inf is not accepted"),
        ("data.unreadable=nan", r"\[data\] unreadable = nan is not accepted"),
        ("partition.alpha=nan", r"\[partition\] alpha = nan is not accepted: give a finite number\."),
        ("partition.alpha=-inf", r"\[partition\] alpha = -inf is not accepted"),
        ("method.train={lr=inf}", r"\[method\] train = \{'lr': inf\} is not accepted: lr: give a finite number\."),
        ("tuning.grid={lr=[0.1, nan]}", r"\[tuning\] grid = .* is not accepted: lr: give a finite number\."),
        ('train.server.aggregate={name="trimmed_mean",share=nan}', r"\[train.server.aggregate\] share = nan is not"),
        ('train.server.attack={name="sign_flip",scale=inf}', r"\[train.server.attack\] scale = inf is not"),
        ("train.lr=1e300", r"\[train\] lr = 1e\+300 is not accepted: no setting may be larger than 1e\+30\."),
        ("train.rounds=10000000000000000000", r"\[train\] rounds = 10{19} is not accepted: no setting may be larger"),
    ],
)
def test_a_number_that_cannot_be_meant_is_refused_with_its_key(setting: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        resolve(parse_recipe(RECIPE, [setting]))


def test_infinity_is_meant_where_it_is_the_word_for_iid() -> None:
    plan = resolve(parse_recipe(RECIPE, ["partition.alpha=inf"]))
    assert plan.rule.options["alpha"] == math.inf
    again = parse_recipe(plan.recipe.to_toml())
    assert again.partition.options["alpha"] == math.inf and resolve(again) == plan


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (
            "data.path=2024",
            r"""\[data\] path = 2024 is not accepted: it must be text, so quote it: path = "2024", """
            r"""or --set 'data.path="2024"' on the command line\.""",
        ),
        ("backbone.path=2024", r"""--set 'backbone.path="2024"' on the command line\."""),
        ("about=true", r"""--set 'about="true"' on the command line\."""),
        ("data.path=2024-10-01", r"""--set 'data.path="2024-10-01"' on the command line\."""),
    ],
)
def test_text_that_reads_as_a_number_is_shown_in_quotes(setting: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        resolve(parse_recipe(RECIPE.replace("emoji", "image_folder"), [setting]))
    if setting == "data.path=2024":
        plan = resolve(parse_recipe(RECIPE.replace("emoji", "image_folder"), ['data.path="2024"']))
        assert plan.source.options["path"].name == "2024"


def test_one_value_that_fits_no_type_of_its_key_is_one_mistake() -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(RECIPE, ["descriptions.conditions={a=1}"])
    assert "[descriptions] conditions = {'a': 1} is not accepted" in str(caught.value)
    assert "more mistake" not in str(caught.value)


def test_a_setting_made_of_a_value_is_read_as_that_value() -> None:
    for value in (
        3,
        0.001,
        True,
        "a = 'b' \"c\"",
        "two\nlines",
        [1, "b"],
        {"lr": [0.1, 0.2], "a key": {"b": 1}},
        (),
        {},
    ):
        tables: dict[str, object] = {}
        apply_settings(tables, [setting("place.key", value)], keys=())
        assert tables == {"place": {"key": list(value) if isinstance(value, tuple) else value}}
    with pytest.raises(UserError, match="is no value of a recipe"):
        setting("train.lr", None)
    with pytest.raises(UserError, match="is no value of a recipe"):
        setting("tuning.grid", {"lr": [object()]})
