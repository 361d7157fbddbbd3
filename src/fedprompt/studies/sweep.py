"""Sweeps: many runs, each in a folder of its own, that are started, resumed, or skipped if they are done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

import torch

from fedprompt.config.recipe import Recipe, load_recipe
from fedprompt.errors import UserError
from fedprompt.experiments import run as runs
from fedprompt.experiments.context import NO_CALLBACKS, RunCallbacks
from fedprompt.experiments.plan import Plan, resolve
from fedprompt.records.event_fields import ExpectedFigure
from fedprompt.report import Run, read_run


@dataclass(frozen=True)
class Job:
    """A recipe with its seed, and the folder its run goes to; `label` says what it differs in from others.

    `expected` are published figures that this run has by itself.
    """

    recipe: Recipe
    folder: Path
    label: str = ""
    expected: tuple[ExpectedFigure, ...] = ()

    @property
    def run(self) -> Run | None:
        """What has been recorded, or None before it begins."""
        return read_run(self.folder) if (self.folder / "run.jsonl").is_file() else None

    @property
    def done(self) -> bool:
        """Whether it has ended well."""
        run = self.run
        return run is not None and run.end is not None and run.end.status == "done"


def check(job: Job) -> Plan:
    """The plan of a job; UserError for a mistake in its recipe, or if its folder holds a run with other settings."""
    plan = resolve(job.recipe, origin=job.recipe.name)
    begun = job.folder / runs.RECIPE
    if begun.is_file() and load_recipe(begun).to_toml() != plan.recipe.to_toml():
        raise UserError(f"{job.folder} holds a run with other settings; give another folder with --out, or delete it.")
    return plan


def conduct(job: Job, *, callbacks: RunCallbacks = NO_CALLBACKS) -> None:
    """Start a run, or resume it; UserError as `check`."""
    plan = check(job)
    if (job.folder / "run.jsonl").is_file():
        runs.resume(job.folder, callbacks=callbacks)
    else:
        runs.start(plan, job.folder, callbacks=callbacks, expected=job.expected)


def conduct_all(todo: Sequence[Job], *, callbacks: RunCallbacks = NO_CALLBACKS) -> Iterator[tuple[int, float | None]]:
    """Do what is not done yet, one by one; yields how many are done and the seconds that are left.

    Raises UserError as `check`, of any job, before the first begins.
    """
    for job in todo:
        check(job)
    spent: list[float] = []
    for number, job in enumerate(todo, start=1):
        started = time.perf_counter()
        if not job.done:
            conduct(job, callbacks=callbacks)
            spent.append(time.perf_counter() - started)
        yield number, fmean(spent) * (len(todo) - number) if spent else None


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
