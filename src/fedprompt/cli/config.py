"""The commands `config show`, `config validate` and `config schema`, and the recipe arguments of all commands."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedprompt.errors import UserError
from fedprompt.text_files import json_text

if TYPE_CHECKING:
    from fedprompt.config.settings import Fit
    from fedprompt.experiments.plan import Plan

recipes = typer.Typer(no_args_is_help=True, help="Show and check recipes without running them.")

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A TOML file, or the name of an embedded recipe.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key, e.g. train.rounds=5.")
]


def load(name: str, settings: list[str] | None) -> Plan:
    """The plan of a recipe with settings; UserError for any mistake in them."""
    from fedprompt.config.recipe import find_recipe, load_recipe
    from fedprompt.experiments.plan import resolve

    path = find_recipe(name)
    return resolve(load_recipe(path, settings or (), fit=console_fit()), origin=path.name)


def console_fit() -> Fit:
    """Fits recipes to settings that choose another building block, and prints what is left out."""
    from fedprompt.config.settings import Fit
    from fedprompt.experiments.plan import block_options

    return Fit(block_options, note=functools.partial(typer.echo, err=True))


@recipes.command()
def show(recipe: RecipeName, settings: Settings = None) -> None:
    """Print a recipe with every default written out."""
    typer.echo(load(recipe, settings).recipe.to_toml(), nl=False)


@recipes.command()
def validate(recipe: RecipeName, settings: Settings = None) -> None:
    """Check a recipe's keys, options and names without reading its data."""
    plan = load(recipe, settings)
    names = ", ".join(trial.name for trial in plan.trials)
    typer.echo(f"{plan.origin} is valid: {names} on {plan.source.name}.")


@recipes.command()
def schema() -> None:
    """Print the JSON schema of recipes, for use in editors."""
    from fedprompt.experiments.recipe_schema import recipe_schema

    typer.echo(json_text(recipe_schema(), indent=2))


def finite(option: typer.CallbackParam, value: float | None) -> float | None:
    """Callback of an option that is a number: UserError for NaN and infinity, which pass a range."""
    if value is not None and not math.isfinite(value):
        raise UserError(f"{option.opts[0]} {value} is not a finite number; give one.")
    return value


def exit_without_results(folders: Iterable[Path]) -> None:
    """Say which finished runs trained or tested nothing, and exit with code 1 if there are any."""
    from fedprompt.records.outcome import missing_results
    from fedprompt.report import read_run

    found = [(folder, sentence) for folder in folders for sentence in missing_results(read_run(folder))]
    for folder, sentence in found:
        typer.echo(f"{folder}: {sentence}", err=True)
    if found:
        raise typer.Exit(1)


def parse_seeds(text: str) -> list[int]:
    """The numbers of --seeds; UserError for anything but whole numbers separated by commas."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds {text!r} is not a list of whole numbers; write e.g. --seeds 1,2,3.") from error
