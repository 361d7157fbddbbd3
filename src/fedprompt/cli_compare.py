"""The commands `compare` and `tuned`: methods side by side over seeds, and what a run over a grid would choose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedprompt.cli_config import Settings
from fedprompt.errors import UserError

DEMO = ("compare_single", "compare_multi")
QUICK = ("train.rounds=2", "evaluate.local=false", "data.train=8", "data.test=4")


def compare(
    recipes: Annotated[
        list[str] | None, typer.Argument(metavar="RECIPE...", help="Recipes; by default the demo's two comparisons.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "1,2,3",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; runs/compare by default.")] = None,
    processes: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs at a time.")] = 1,
    quick: Annotated[bool, typer.Option(help="One seed, two rounds and few pictures: does everything work?")] = False,
    settings: Settings = None,
) -> None:
    """Train every method of the recipes under every seed and write tables and figures; go on with what was begun."""
    from rich.console import Console

    from fedprompt.build.compare import check, conduct, conduct_together, jobs, write_tables
    from fedprompt.terminal import watching

    folder = out or Path("runs") / ("compare-quick" if quick else "compare")
    numbers = [1] if quick else _numbers(seeds)
    todo = jobs(recipes or DEMO, numbers, folder, [*(QUICK if quick else ()), *(settings or ())])
    for job in todo:
        check(job)
    waiting = [job for job in todo if not job.done]
    typer.echo(f"{len(todo)} runs, {len(todo) - len(waiting)} of them done.")
    if processes > 1:
        conduct_together(waiting, processes=processes, told=lambda job: typer.echo(f"Done: {job.folder}"))
    else:
        for job in waiting:
            typer.echo(f"{job.recipe}, seed {job.seed}:")
            with watching(Console(markup=False, highlight=False), quiet=False) as watch:
                conduct(job, watch=watch)
    for path in write_tables(todo, folder):
        typer.echo(f"Written: {path}")
        if path.suffix == ".md":
            typer.echo(path.read_text(encoding="utf-8"))


def tuned(run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run with a [grid].")]) -> None:
    """Print what a run over a grid chooses for each method, as a recipe writes it."""
    from fedprompt.report import read_run
    from fedprompt.report.comparison import chosen

    found = read_run(run)
    grid = found.header.recipe.get("grid")
    if not isinstance(grid, dict) or not grid:
        raise UserError(f"The run {run} has no [grid] to choose from; run a recipe that has one.")
    for trial in chosen(found).values():
        values = ", ".join(f"{key} = {trial.about.settings[key]}" for key in grid if key in trial.about.settings)
        typer.echo(f'name = "{trial.about.method}", train = {{ {values} }}')


def _numbers(seeds: str) -> list[int]:
    try:
        return [int(seed) for seed in seeds.split(",")]
    except ValueError as error:
        raise typer.BadParameter(
            f"{seeds!r} are no whole numbers separated by commas.", param_hint="--seeds"
        ) from error
