"""The command `tune`: methods and learning rates for one's own data, on held-out images, and a run with the best."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedprompt.cli.config import (
    RecipeName,
    Runtime,
    Settings,
    exit_without_results,
    finite,
    load,
    typed_command,
    with_runtime,
)
from fedprompt.errors import UserError
from fedprompt.records.output_folder import FINAL, require_study_folder

if TYPE_CHECKING:
    from fedprompt.studies.tune_run import Tuned


def tune(
    recipe: RecipeName,
    method: Annotated[
        str | None, typer.Option("--method", "-m", metavar="NAMES", help="Methods, by commas (default: the recipe's).")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            min=0.01,
            callback=finite,
            help="Time for search and final run (default: the recipe's).",
        ),
    ] = None,
    draws: Annotated[
        int,
        typer.Option(
            "--draws", min=0, help="Points that Optuna draws for each method from the ranges of the grid (0: the grid)."
        ),
    ] = 0,
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Output folder, to go on in too (default: runs/NAME-tune)."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    on: Runtime = None,
) -> None:
    """Search learning rates on held-out training images, then train with the best and test; goes on after a stop.

    Test images are scored in the final run alone. Rates are those of `compare`, or the recipe's [tuning] grid; with
    --draws, Optuna draws from between the ends of that grid.
    """
    # before the imports: a mistake in the recipe or the folder is refused without torch
    wanted = with_runtime(settings, on)
    plan = load(recipe, wanted, opens=True)
    folder = out or Path("runs") / f"{plan.recipe.name}-tune"
    require_study_folder(folder)
    from fedprompt.api.progress import console_callbacks, plain_console
    from fedprompt.cli.console import print_results
    from fedprompt.studies.tune import Wanted
    from fedprompt.studies.tune_run import search_and_train

    with console_callbacks(plain_console(), quiet=quiet) as callbacks:
        tuned = search_and_train(
            plan.recipe,
            Wanted(parse_names(method), minutes, draws),
            folder,
            origin=plan.origin,
            callbacks=callbacks,
            command=typed_command("tune", recipe, wanted, folder / FINAL, minutes=minutes),
        )
    if not quiet:
        _print(tuned)
        for sentence in tuned.remarks:
            typer.echo(sentence)
        print_results(tuned.final)
        typer.echo(f"The best again, alone: {tuned.command}")
    exit_without_results([tuned.final])


def parse_names(text: str | None) -> list[str]:
    """The names of --method; UserError for an empty one."""
    names = [name.strip() for name in text.split(",")] if text is not None else []
    if "" in names:
        raise UserError(f"--method {text!r} has an empty name; write e.g. --method fedvpt,promptfl.")
    return names


def _print(tuned: Tuned) -> None:
    from rich.table import Table
    from rich.text import Text

    from fedprompt.api.progress import plain_console
    from fedprompt.studies.tune_results import result_rows

    head, rows = result_rows(tuned.results)
    table = Table(*head, title=f"Held-out images: {tuned.caption}", caption="* the rate that is kept")
    for row in rows:
        table.add_row(*(Text(f"{cell.text} *", style="bold") if cell.best else Text(cell.text) for cell in row))
    plain_console().print(table)
