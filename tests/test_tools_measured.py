"""Measured tables written into pages, and tuned rates into recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools.markdown import ROOT, SOURCE
from tools.measured import BLOCK, COMPARED, RATES, fill, with_rates

from fedprompt.config.recipe import Recipe, load_recipe, parse_recipe
from fedprompt.studies.tuning import search

PAGE = "Before.\n\n<!-- measured: compare/a.md -->\n\nold\n\n<!-- end of measured -->\n\nAfter.\n"


def test_a_table_replaces_what_stood_in_its_place_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare" / "a.md").write_text("| method |\n| --- |\n")
    filled, missing = fill(PAGE, tmp_path)
    assert missing == [] and filled == PAGE.replace("old", "| method |\n| --- |")
    assert fill(filled, tmp_path) == (filled, [])


def test_a_table_without_its_runs_stays_and_is_named(tmp_path: Path) -> None:
    assert fill(PAGE, tmp_path) == (PAGE, ["compare/a.md"])


def test_every_mark_in_the_pages_is_closed() -> None:
    for page in ROOT.glob("docs/*.md"):
        text = page.read_text(encoding="utf-8")
        assert len(BLOCK.findall(text)) == text.count("<!-- measured:") == text.count("<!-- end of measured -->")


@pytest.mark.parametrize("name", COMPARED)
def test_tuned_rates_of_every_method_are_written_and_nothing_else(name: str) -> None:
    text = (SOURCE / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    recipe = parse_recipe(text)
    assert search(recipe).compare  # it has a grid
    changed = recipe.model_copy(
        update={
            "method": recipe.method.model_copy(update={"train": {"lr": 0.125}}),
            "compare": tuple(
                method.model_copy(update={"train": method.train | {"lr": number / 64}}) if method.train else method
                for number, method in enumerate(recipe.compare)
            ),
        }
    )
    assert parse_recipe(with_rates(text, changed)) == changed
    assert with_rates(text, recipe) == text


@pytest.mark.parametrize(("found", "takers"), RATES.items())
def test_studies_of_settings_take_the_rates_of_the_comparison(found: str, takers: tuple[str, ...]) -> None:
    tuned = load_recipe(SOURCE / "recipes" / f"{found}.toml")
    for taker in takers:
        text = (SOURCE / "recipes" / f"{taker}.toml").read_text(encoding="utf-8")
        assert with_rates(text, tuned) == text


def test_a_recipe_written_by_a_search_is_read(tmp_path: Path) -> None:
    path = tmp_path / "compare_single.toml"
    recipe: Recipe = load_recipe(SOURCE / "recipes" / "compare_single.toml")
    path.write_text(recipe.to_toml(defaults=False), encoding="utf-8")
    text = (SOURCE / "recipes" / "compare_single.toml").read_text(encoding="utf-8")
    assert with_rates(text, load_recipe(path)) == text
