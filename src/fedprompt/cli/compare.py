"""The command `compare`: methods side by side over seeds, after a search for settings that is the same for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedprompt.cli.config import Settings, parse_seeds
from fedprompt.errors import UserError

if TYPE_CHECKING:
    from fedprompt.config.recipe import Recipe
    from fedprompt.report import Run
    from fedprompt.studies.sweep import Job

DEMO = ("compare_single", "compare_multi")
QUICK = ("train.rounds=2", "evaluate.local=false", "data.train=8", "data.test=4")


def compare(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE... | RUN...", help="Recipes to train under every seed, or folders of runs."),
    ] = None,
    demo: Annotated[bool, typer.Option(help="Every method on the embedded pictures, single and many labels.")] = False,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "1,2,3",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; runs/compare by default.")] = None,
    processes: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs at a time.")] = 1,
    quick: Annotated[bool, typer.Option(help="One seed, two rounds, few pictures: does everything work?")] = False,
    tune: Annotated[bool, typer.Option(help="First try every method at every point of the recipe's grid.")] = False,
    settings: Settings = None,
) -> None:
    """Train every method of the recipes under every seed and write tables and figures; go on with what was begun.

    Of runs that are there already, of one seed or many, only the table is made.
    """
    from fedprompt.config.recipe import find_recipe, load_recipe
    from fedprompt.report import read_run
    from fedprompt.studies.compare import jobs

    names = [*(recipes or ()), *(DEMO if demo else ())]
    if not names:
        raise UserError("Name recipes to compare over, or give --demo for the embedded pictures.")
    folder = out or Path("runs") / ("compare-quick" if quick else "compare")
    if finished := [Path(name) for name in names if (Path(name) / "run.jsonl").is_file()]:
        if len(finished) < len(names):
            raise UserError("Name recipes or folders of runs, not both; a table is of one or the other.")
        _write({"runs": _joined(finished)}, folder)
        return
    numbers = [1] if quick else parse_seeds(seeds)
    found = [load_recipe(find_recipe(name), [*(QUICK if quick else ()), *(settings or ())]) for name in names]
    if tune:
        found = _tuned(found, folder, processes)
    todo = jobs(found, numbers, folder)
    _run_jobs(todo, processes)
    _write(
        {recipe.name: [read_run(job.folder) for job in todo if job.recipe.name == recipe.name] for recipe in found},
        folder,
    )


def _joined(folders: Sequence[Path]) -> tuple[Run, ...]:
    from fedprompt.report import read_run
    from fedprompt.report.comparison import by_seed

    return by_seed([read_run(folder) for folder in folders])


def _write(tables: Mapping[str, Sequence[Run]], folder: Path) -> None:
    from fedprompt.studies.compare import write_tables

    for path in write_tables(tables, folder):
        typer.echo(f"Written: {path}")
        if path.suffix == ".md":
            typer.echo(path.read_text(encoding="utf-8"))


def _run_jobs(todo: Sequence[Job], processes: int) -> None:
    """Bring runs to their ends, those that have begun already too."""
    from fedprompt.cli.console import console_callbacks, plain_console
    from fedprompt.studies.sweep import check, conduct, conduct_together

    for job in todo:
        check(job)
    waiting = [job for job in todo if not job.done]
    typer.echo(f"{len(todo)} runs, {len(todo) - len(waiting)} of them done.")
    if processes > 1 and len(waiting) > 1:
        conduct_together(waiting, processes=processes, told=lambda job: typer.echo(f"Done: {job.folder}"))
        return
    for job in waiting:
        typer.echo(f"{job.folder.name}:")
        with console_callbacks(plain_console(), quiet=False) as callbacks:
            conduct(job, callbacks=callbacks)


def _tuned(recipes: Sequence[Recipe], out: Path, processes: int) -> list[Recipe]:
    """The recipes with the settings that a search chooses for each method; each is also written as a file."""
    from fedprompt.records.run_folder import write_atomic
    from fedprompt.report import read_run
    from fedprompt.studies.sweep import Job
    from fedprompt.studies.tuning import search, tuned

    todo = [Job(search(recipe), out / f"{recipe.name}-tuning") for recipe in recipes]
    _run_jobs(todo, processes)
    found = [tuned(recipe, read_run(job.folder)) for recipe, job in zip(recipes, todo, strict=True)]
    for recipe in found:
        write_atomic(out / f"{recipe.name}.toml", recipe.to_toml(defaults=False))
        typer.echo(f"Written: {out / recipe.name}.toml")
    return found
