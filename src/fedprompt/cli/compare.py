"""The command `compare`: methods compared over several seeds, with equal tuning of all methods if wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedprompt.cli.config import (
    RAY,
    Settings,
    Spread,
    TrustCode,
    exit_without_results,
    load_trusted,
    parse_seeds,
    with_runtime,
)
from fedprompt.cli.spread import spread_jobs
from fedprompt.errors import UserError, plural, series
from fedprompt.records.output_folder import require_study_folder

if TYPE_CHECKING:
    from fedprompt.config.recipe import Recipe
    from fedprompt.report import Run
    from fedprompt.studies.sweep import Job

SEEDS = "1,2,3"
DEMO = ("compare_single", "compare_multi")
QUICK = ("train.rounds=2", "evaluate.local=false", "data.train=8", "data.test=4")


def compare(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE... | RUN...", help="Recipes to run with every seed, or folders of runs."),
    ] = None,
    demo: Annotated[bool, typer.Option(help="Compare all methods on the embedded data sets.")] = False,
    seeds: Annotated[
        str | None, typer.Option(metavar="SEEDS", help="Seeds, separated by commas (default: 1,2,3).")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Output folder (default: runs/compare).")] = None,
    processes: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Number of runs in parallel.")] = 1,
    quick: Annotated[bool, typer.Option(help="A quick check: one seed, two rounds, few images.")] = False,
    tune: Annotated[bool, typer.Option(help="First tune every method on the recipe's grid.")] = False,
    groups: Annotated[
        list[str] | None,
        typer.Option("--vary", metavar="NAME", help="Only this group of settings in [vary]."),
    ] = None,
    on: Spread = None,
    settings: Settings = None,
    trust_code: TrustCode = None,
) -> None:
    """Train every method of the recipes with every seed, or resume, and write tables and figures.

    A recipe with [vary] is run with each of its settings. Folders of runs are not trained again: only the tables are
    written.
    """
    names = [*(recipes or ()), *(DEMO if demo else ())]
    if not names:
        raise UserError("Name recipes to compare, or give --demo for the embedded data sets.")
    folder = out or Path("runs") / ("compare-quick" if quick else "compare")
    require_study_folder(folder)  # before the imports, which take seconds
    from fedprompt.studies.compare import finished_runs, jobs, plan

    if finished := [Path(name) for name in names if (Path(name) / "run.jsonl").is_file()]:
        if len(finished) < len(names):
            raise UserError("Give either recipes or folders of runs, not both.")
        ignored = {"--seeds": seeds, "--tune": tune, "--quick": quick, "--vary": groups, "--set": settings, "--on": on}
        if given := [name for name, value in ignored.items() if value]:
            options = series(given)
            typer.echo(f"Folders of runs are not trained again, so {options} had no effect.", err=True)
        _write({"runs": {"": _joined(finished)}}, folder)
        exit_without_results(finished)
        return
    if on == RAY and processes > 1:
        raise UserError("--jobs is for processes of this machine; on Ray, runtime.cpus says how many runs have room.")
    numbers = [1] if quick else parse_seeds(seeds or SEEDS)
    changes = [*(QUICK if quick else ()), *with_runtime(settings, on)]
    run_jobs = partial(_run_jobs, processes=processes, spreads=on == RAY)
    found = [load_trusted(name, changes, trust_code)[0] for name in names]
    if tune:
        found = _tuned(found, folder, run_jobs)
    studies = plan(found, numbers, folder, groups=groups or ())
    todo = jobs(studies)
    run_jobs(todo)
    _write(finished_runs(studies), folder)
    exit_without_results(job.folder for job in todo)


def _joined(folders: Sequence[Path]) -> tuple[Run, ...]:
    from fedprompt.report import read_run
    from fedprompt.report.comparison import by_seed

    return by_seed([read_run(folder) for folder in folders])


def _write(tables: Mapping[str, Mapping[str, Sequence[Run]]], folder: Path) -> None:
    from fedprompt.studies.compare import write_tables

    for path in write_tables(tables, folder):
        typer.echo(f"Written: {path}")
        if path.suffix == ".md":
            typer.echo(path.read_text(encoding="utf-8"))


def _run_jobs(todo: Sequence[Job], *, processes: int, spreads: bool) -> None:
    """Run the jobs that are not done, and resume those that have begun."""
    from fedprompt.api.progress import console_callbacks, plain_console
    from fedprompt.studies.sweep import check, run_in_parallel, run_job

    for job in todo:
        check(job)
    waiting = [job for job in todo if not job.done]
    typer.echo(f"{plural(len(todo), 'run')}, {len(todo) - len(waiting)} done.")
    if spreads:
        spread_jobs(waiting)
        return
    if processes > 1 and len(waiting) > 1:
        run_in_parallel(waiting, processes=processes, on_done=lambda job: typer.echo(f"Done: {job.folder}"))
        return
    with console_callbacks(plain_console(), quiet=False) as callbacks:
        for job in waiting:
            callbacks.on_message(f"{job.folder.name}:")
            run_job(job, callbacks=callbacks)


def _tuned(recipes: Sequence[Recipe], out: Path, run_jobs: Callable[[Sequence[Job]], None]) -> list[Recipe]:
    """The recipes with tuned settings for each method; each is also written to a file."""
    from fedprompt.records.atomic_files import write_atomic
    from fedprompt.report import read_run
    from fedprompt.studies.sweep import Job
    from fedprompt.studies.tuning import at_edges, search, tuned

    todo = [Job(search(recipe), out / f"{recipe.name}-tuning") for recipe in recipes]
    run_jobs(todo)
    found = [tuned(recipe, read_run(job.folder)) for recipe, job in zip(recipes, todo, strict=True)]
    for recipe in found:
        write_atomic(out / f"{recipe.name}.toml", recipe.to_toml(defaults=False))
        typer.echo(f"Written: {out / recipe.name}.toml")
        for sentence in at_edges(recipe):
            typer.echo(sentence, err=True)
    return found
