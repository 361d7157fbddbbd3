"""The command `tune`: methods and learning rates for one's own data, on held-out images, and a run with the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedprompt.cli.config import RecipeName, Settings, exit_without_results, finite, load, typed_command
from fedprompt.errors import UserError

if TYPE_CHECKING:
    from fedprompt.studies.tune import Result, Rounds, Tuning


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
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Output folder, to go on in too (default: runs/NAME-tune)."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Search learning rates on held-out training images, then train with the best and test; goes on after a stop.

    Test images are scored in the final run alone. Rates are those of `compare`, or the recipe's [tuning] grid.
    """
    plan = load(recipe, settings)  # before the imports: a mistake in the recipe is refused without torch
    from fedprompt.api.progress import console_callbacks, plain_console
    from fedprompt.cli.console import print_results
    from fedprompt.records.reading import read_run
    from fedprompt.studies import tune as study
    from fedprompt.studies.sweep import check, run_job

    folder, console = out or Path("runs") / f"{plan.recipe.name}-tune", plain_console()
    with console_callbacks(console, quiet=quiet) as callbacks:
        tuning, experiment = study.make_tuning(
            plan.recipe, parse_names(method), folder, origin=plan.origin, callbacks=callbacks
        )
        rounds = study.plan_rounds(tuning, experiment, minutes or plan.recipe.minutes or None, callbacks=callbacks)
        callbacks.on_message(rounds.sentence)
        job = tuning.search_job(rounds.search)
        check(job)
        if not job.done:
            run_job(job, callbacks=callbacks)
        tuning = replace(tuning, command=typed_command("tune", recipe, settings, tuning.out / "final"))
        found = study.results(tuning, experiment.plan, read_run(job.folder))
        final = tuning.final_job(found, rounds.final)
        check(final)
        command = _write(tuning, found, rounds)
        if not final.done:
            run_job(final, callbacks=callbacks)
    if not quiet:
        _print(tuning, found)
        for sentence in study.kept_defaults(tuning, found, rounds.search):
            typer.echo(sentence)
        print_results(final.folder)
        typer.echo(f"The best again, alone: {command}")
    exit_without_results([final.folder])


def parse_names(text: str | None) -> list[str]:
    """The names of --method; UserError for an empty one."""
    names = [name.strip() for name in text.split(",")] if text is not None else []
    if "" in names:
        raise UserError(f"--method {text!r} has an empty name; write e.g. --method fedvpt,promptfl.")
    return names


def _write(tuning: Tuning, found: Sequence[Result], rounds: Rounds) -> str:
    """Write the table and the recipe of the best method; returns the command that trains it."""
    from fedprompt.records.run_folder import write_atomic
    from fedprompt.studies.tune import kept_defaults, markdown, result_rows

    best = tuning.out / "best.toml"
    write_atomic(best, tuning.best_recipe(found, rounds.final).to_toml(defaults=False))
    command = f"fedprompt run {best}"
    kept = " ".join(kept_defaults(tuning, found, rounds.search))
    notes = {"Held-out images": _caption(tuning), "Rounds": rounds.sentence, "The best": f"`{command}`"}
    notes |= {"Defaults": kept} if kept else {}
    write_atomic(tuning.out / "tuning.md", markdown(*result_rows(tuning, found), notes))
    return command


def _caption(tuning: Tuning) -> str:
    from fedprompt.studies.tune import metric_of

    return f"{metric_of(tuning)} in percent; no test image was scored."


def _print(tuning: Tuning, found: Sequence[Result]) -> None:
    from rich.table import Table
    from rich.text import Text

    from fedprompt.api.progress import plain_console
    from fedprompt.studies.tune import result_rows

    head, rows = result_rows(tuning, found)
    table = Table(*head, title=f"Held-out images: {_caption(tuning)}", caption="* the rate that is kept")
    for row in rows:
        table.add_row(*(Text(f"{cell.text} *", style="bold") if cell.best else Text(cell.text) for cell in row))
    plain_console().print(table)
