"""Sweeps: many runs, each in its own folder, that are started, resumed or left as they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

import torch

from fedprompt.child_processes import start_worker
from fedprompt.config.recipe import Recipe, load_recipe
from fedprompt.config.recipe_tables import RuntimeTable
from fedprompt.errors import UserError, option
from fedprompt.experiments import run as runs
from fedprompt.experiments.context import NO_CALLBACKS, RunCallbacks
from fedprompt.experiments.given import NOTHING, Given
from fedprompt.experiments.plan import Plan
from fedprompt.records.event_fields import CommandRecord, ExpectedFigure
from fedprompt.report import Run, read_run


@dataclass(frozen=True)
class Job:
    """A run of a sweep: its recipe with a seed, and its folder; `label` names how it differs from the others.

    `expected` are published figures of this run alone, `command` is what the user typed, and `given` is what a caller
    has opened.
    """

    recipe: Recipe
    folder: Path
    label: str = ""
    expected: tuple[ExpectedFigure, ...] = ()
    command: CommandRecord | None = None
    given: Given = NOTHING

    @property
    def run(self) -> Run | None:
        """The records of the run so far; None before it begins."""
        return read_run(self.folder) if (self.folder / "run.jsonl").is_file() else None

    @property
    def done(self) -> bool:
        """Whether the run has finished without an error."""
        run = self.run
        return run is not None and run.end is not None and run.end.status == "done"


def check(job: Job) -> Plan:
    """The plan of a job. Raises UserError for a mistake in its recipe, or if its folder holds another run."""
    plan = job.given.plan(job.recipe, origin=job.recipe.name)
    begun = job.folder / runs.RECIPE
    if begun.is_file() and _that_counts(load_recipe(begun)) != _that_counts(plan.recipe):
        raise UserError(
            f"{job.folder} holds a run with other settings; give another folder with {option('out')}, or delete it."
        )
    return plan


def _that_counts(recipe: Recipe) -> str:
    """The recipe as text without its runtime, which no result depends on."""
    return recipe.model_copy(update={"runtime": RuntimeTable()}).to_toml()


def run_job(job: Job, *, callbacks: RunCallbacks = NO_CALLBACKS) -> None:
    """Start or resume a run. Raises UserError like `check`."""
    plan = check(job)
    if (job.folder / "run.jsonl").is_file():
        # Its recipe is the job's, but for the runtime.
        runtime = plan.recipe.runtime
        runs.resume(job.folder, callbacks=callbacks, trusted=None, given=job.given, runtime=runtime)
    else:
        runs.start(plan, job.folder, callbacks=callbacks, expected=job.expected, given=job.given, command=job.command)


def run_all(todo: Sequence[Job], *, callbacks: RunCallbacks = NO_CALLBACKS) -> Iterator[tuple[int, float | None]]:
    """Run the jobs that are not done, one by one; yields the number done and an estimate of the seconds left.

    Raises UserError like `check`, for any of the jobs, before the first starts.
    """
    for job in todo:
        check(job)
    spent: list[float] = []
    for number, job in enumerate(todo, start=1):
        started = time.perf_counter()
        if not job.done:
            run_job(job, callbacks=callbacks)
            spent.append(time.perf_counter() - started)
        yield number, fmean(spent) * (len(todo) - number) if spent else None


def run_in_parallel(todo: Sequence[Job], *, processes: int, on_done: Callable[[Job], None]) -> None:
    """Run jobs in several processes, which share the cores and end with this one."""
    threads = max(1, torch.get_num_threads() // processes)
    with ProcessPoolExecutor(
        processes,
        mp_context=get_context("spawn"),
        initializer=start_worker,
        initargs=(torch.set_num_threads, threads),
    ) as pool:
        submitted = {pool.submit(run_job, job): job for job in todo}
        for finished in as_completed(submitted):
            finished.result()
            on_done(submitted[finished])
