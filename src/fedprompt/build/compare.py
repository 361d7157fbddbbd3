"""A comparison: recipes times seeds, each a run of its own that is begun, gone on with or left as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from fedprompt.build import runs
from fedprompt.build.desk import SILENT, Watch
from fedprompt.build.experiment import make_trials, resolve
from fedprompt.config import Recipe, load_recipe
from fedprompt.errors import UserError
from fedprompt.records import write_atomic
from fedprompt.report import Run, read_run
from fedprompt.report.comparison import as_csv, comparison, cost_figure, latex, markdown, seconds, uploaded


@dataclass(frozen=True)
class Job:
    """One run of a comparison: a recipe with its seed, and the folder it goes to."""

    recipe: Recipe
    folder: Path

    @property
    def done(self) -> bool:
        """Whether it has ended well."""
        if not (self.folder / "run.jsonl").is_file():
            return False
        end = read_run(self.folder).end
        return end is not None and end.status == "done"


def jobs(recipes: Sequence[Recipe], seeds: Sequence[int], out: Path) -> list[Job]:
    """Every recipe under every seed; UserError for two recipes of one name."""
    names = [recipe.name for recipe in recipes]
    if len(set(names)) != len(names):
        raise UserError(f"Of the recipes {', '.join(names)} two have one name; give each a name of its own.")
    return [
        Job(recipe.model_copy(update={"seed": seed}), out / f"{recipe.name}-{seed}")
        for recipe in recipes
        for seed in seeds
    ]


def check(job: Job) -> Recipe:
    """A job's whole recipe; UserError for a mistake in it, or when its folder holds a run with other settings."""
    recipe = resolve(job.recipe, origin=job.recipe.name)
    make_trials(recipe, origin=recipe.name)
    if job.folder.exists() and load_recipe(job.folder / runs.RECIPE).to_toml() != recipe.to_toml():
        raise UserError(f"{job.folder} holds a run with other settings; give another folder with --out.")
    return recipe


def conduct(job: Job, *, watch: Watch = SILENT) -> None:
    """Begin a run, or go on with it."""
    recipe = check(job)
    if job.folder.exists():
        runs.resume(job.folder, watch=watch)
    else:
        runs.start(recipe, job.folder, watch=watch, origin=recipe.name)


def conduct_together(todo: Sequence[Job], *, processes: int, told: Callable[[Job], None]) -> None:
    """Bring runs to their ends in several processes, which share the cores among them."""
    threads = max(1, torch.get_num_threads() // processes)
    with ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        asked = {pool.submit(conduct, job): job for job in todo}
        for finished in as_completed(asked):
            finished.result()
            told(asked[finished])


def write_tables(tables: Mapping[str, Sequence[Run]], out: Path) -> Iterator[Path]:
    """Write each named table (Markdown, LaTeX, CSV) and figures from its finished runs; yields what was written."""
    for name, finished in tables.items():
        found = comparison(finished)
        for ending, text in {
            ".md": markdown(found),
            ".tex": latex(found),
            ".csv": as_csv(found),
            "-bytes.svg": cost_figure(found, uploaded, "bytes sent by a client in all rounds"),
            "-seconds.svg": cost_figure(found, seconds, "seconds of training"),
        }.items():
            write_atomic(out / f"{name}{ending}", text)
            yield out / f"{name}{ending}"
