"""The commands `config list`, `show`, `validate` and `schema`, and the recipe arguments of all commands."""

from __future__ import annotations

import functools
import math
import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedprompt.errors import UserError, did_you_mean
from fedprompt.file_system import is_file, is_folder, obstacle
from fedprompt.text_files import data_setting, json_text

if TYPE_CHECKING:
    from fedprompt.config.recipe import Recipe
    from fedprompt.config.recipe_tables import Toml
    from fedprompt.config.settings import Fit
    from fedprompt.experiments.plan import Plan
    from fedprompt.records.event_fields import CommandRecord

recipes = typer.Typer(no_args_is_help=True, help="List, show and check recipes without running them.")


def _recipes_of(start: str) -> list[str]:
    """Names of embedded recipes that begin with a text, for the completion of shells."""
    from fedprompt.config.recipe import bundled_recipes

    return [name for name in bundled_recipes() if name.startswith(start)]


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A TOML file, or the name of an embedded recipe.", autocompletion=_recipes_of
    ),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key, e.g. train.rounds=5.")
]

TrustCode = Annotated[
    list[str] | None,
    typer.Option(
        "--trust-code",
        metavar="MODULE",
        envvar="FEDPROMPT_TRUST_CODE",
        help="Allow code outside fedprompt that a file names: a module, or a package with its modules.",
    ),
]

RAY = "ray"
Runtime = Annotated[
    str | None, typer.Option("--on", metavar="RUNTIME", help='Where clients are trained: "ray" or "simulator".')
]
Spread = Annotated[
    str | None,
    typer.Option(
        "--on", metavar="RUNTIME", help='"ray" has the runs done in parallel on Ray, each in its own process.'
    ),
]


def is_runtime(name: str) -> bool:
    """Whether a name is that of a runtime of simulated clients."""
    from fedprompt.config.recipe_tables import RUNTIME_NAMES

    return name in RUNTIME_NAMES


def require_runtime(name: str) -> str:
    """The name of a runtime; UserError for another one."""
    from fedprompt.config.recipe_tables import RUNTIME_NAMES

    if name not in RUNTIME_NAMES:
        raise UserError(
            f"--on {name} names no runtime{did_you_mean(name, RUNTIME_NAMES)} (known: {', '.join(RUNTIME_NAMES)})."
        )
    return name


def with_runtime(settings: Sequence[str] | None, on: str | None) -> list[str]:
    """Settings and the one that --on stands for; UserError for an unknown runtime, or if they name another one."""
    given = list(settings or ())
    if on is None:
        return given
    from fedprompt.config.settings import parsed_value

    wanted = f"runtime.name={require_runtime(on)}"
    for setting in given:
        key, _, value = setting.partition("=")
        if key.strip() == "runtime.name" and parsed_value(value.strip()) != on:
            raise UserError(f"--on {on} and --set {setting} contradict each other; leave one of them out.")
    return [*given, wanted]


def deployment_of(on: str | None) -> Path | None:
    """The folder of the deployment that --on names; None if it names a runtime, UserError if neither."""
    if on is None or is_runtime(on):
        return None
    from fedprompt.config.recipe_tables import RUNTIME_NAMES

    if not Path(on).exists():
        raise UserError(
            f"--on {on} is neither the folder of a deployment nor a runtime{did_you_mean(on, RUNTIME_NAMES)} (known: "
            f"{', '.join(RUNTIME_NAMES)})."
        )
    return Path(on)


def load(
    name: str,
    settings: list[str] | None,
    trust_code: list[str] | None = None,
    *,
    reads: bool = False,
    opens: bool = False,
) -> Plan:
    """The plan of a recipe with settings; UserError for any mistake in them.

    For a command that `reads` data, data that are not there are refused before torch is imported, which takes seconds;
    for one that also `opens` the backbone, so is a backbone that cannot be had.
    """
    recipe, origin = load_trusted(name, settings or (), trust_code)
    if reads or opens:
        require_data(recipe)
    if opens:
        require_backbone(recipe.backbone.path)
    from fedprompt.experiments.experiment import with_absolute_backbone
    from fedprompt.experiments.plan import resolve

    return resolve(with_absolute_backbone(recipe) if opens else recipe, origin=origin)


def typed_command(
    name: str, recipe: str, settings: Sequence[str] | None, folder: Path, *, minutes: float | None = None
) -> CommandRecord:
    """The command as the user typed it, for the commands that a verdict proposes."""
    from fedprompt.records.event_fields import CommandRecord

    return CommandRecord(
        name=name, recipe=recipe, settings=tuple(settings or ()), folder=str(folder), minutes=minutes or 0.0
    )


def load_trusted(name: str, settings: Sequence[str], trust_code: Sequence[str] | None) -> tuple[Recipe, str]:
    """A recipe with settings, and its name for messages.

    Raises UserError for any mistake in them, and for code outside fedprompt that is neither trusted nor named in the
    settings, which the user has typed.
    """
    from fedprompt.config.block_files import require_known_options
    from fedprompt.config.method_files import require_known_methods
    from fedprompt.config.outside_code import named_code, require_trusted, typed
    from fedprompt.config.recipe import find_recipe, load_recipe

    _refuse_data(name)
    path = find_recipe(name)
    recipe = load_recipe(path, settings, fit=console_fit())
    names = named_code(recipe)
    require_trusted(names, (*(trust_code or ()), *typed(names, settings)), place=path.name)
    require_known_methods(recipe, origin=path.name)
    require_known_options(recipe, origin=path.name)
    return recipe, path.name


def _refuse_data(name: str) -> None:
    """UserError with the command to type if a folder or a table of images is given in place of a recipe."""
    from fedprompt.config.recipe import bundled_recipes

    path = Path(name).expanduser()
    if name in bundled_recipes() or path.suffix.lower() == ".toml" or not (is_file(path) or is_folder(path)):
        return
    from fedprompt.data.intake.other_form import train_command
    from fedprompt.data.intake.tables import is_table

    folder = is_folder(path)
    if folder and (path / "run.jsonl").is_file():
        raise UserError(f"{name} is the folder of a run, not a recipe; give {path / 'recipe.toml'} to train it again.")
    if not folder and not is_table(path):
        return  # which is no recipe either, and refused as such
    raise UserError(
        f"{name} is a {'folder' if folder else 'table'}, not a recipe. To train on its images: {train_command(path)} "
        f"(fedprompt check {shlex.quote(name)} says what is understood of it)."
    )


def require_data(recipe: Recipe) -> None:
    """UserError if the `path` of a recipe's data does not exist; one that may be an id on the Hub is not checked."""
    path = recipe.data.options.get("path")
    if not isinstance(path, str) or re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?|\w+://.*|", path):
        return
    if (what := obstacle(Path(path).expanduser(), "file")) and ("exist" in what or "is not a path" in what):
        raise UserError(f"{path} {what}; give the path of your images with {data_setting('path', 'PATH')}.")


def require_backbone(path: str) -> None:
    """UserError if the backbone of a recipe is not the embedded one, no folder, and not to be had from the Hub."""
    from fedprompt.clip.hub import require_available
    from fedprompt.demo import DEMO

    if path != DEMO:
        require_available(path)


def console_fit() -> Fit:
    """Fits recipes to settings that choose another building block, and prints what is left out."""
    from fedprompt.config.settings import Fit

    return Fit(_block_options, note=functools.partial(typer.echo, err=True))


def _block_options(table: str, name: str, values: Toml) -> Collection[str] | None:
    from fedprompt.config.method_files import method_files, written_options

    if table == "method" and name in method_files():
        known = written_options(name)
        if known is not None and not set(known) & set(values):
            return known  # no value has to be compared with the type of its option
    elif table == "method" and "." not in name:
        return None
    from fedprompt.experiments.plan import block_options  # imports torch, and most settings need no look at options

    return block_options(table, name, values)


def backbone_side(path: str) -> int:
    """The side in pixels of the images that the backbone of a recipe reads."""
    from fedprompt.clip.hub import input_side
    from fedprompt.demo import DEMO, weights_folder

    return input_side(weights_folder() if path == DEMO else path)


@recipes.command("list")
def list_recipes() -> None:
    """List the recipes that come with fedprompt, one line each: fedprompt run NAME trains one."""
    from fedprompt.config.recipe import bundled_recipes, load_recipe

    found = {name: load_recipe(path).about for name, path in bundled_recipes().items()}
    width = max(map(len, found))
    for name, about in found.items():
        typer.echo(f"{name:<{width}}  {about}")


@recipes.command()
def show(recipe: RecipeName, settings: Settings = None, trust_code: TrustCode = None) -> None:
    """Print a recipe with every default written out."""
    typer.echo(load(recipe, settings, trust_code).recipe.to_toml(), nl=False)


@recipes.command()
def validate(recipe: RecipeName, settings: Settings = None, trust_code: TrustCode = None) -> None:
    """Check a recipe's keys, options and names without reading its data."""
    plan = load(recipe, settings, trust_code)
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
