"""The runs of a study as tasks on Ray: each in a process of its own, some at a time, on all nodes of a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fedprompt.config.recipe_tables import RuntimeTable
from fedprompt.errors import UserError
from fedprompt.file_system import open_file
from fedprompt.studies.sweep import Job, check, run_job
from fedprompt.text_files import load_json

TAIL = 1 << 20  # bytes of a run's records that are read for its progress
WAITING = "waiting"


@dataclass(frozen=True)
class FailedRun:
    """A run that failed, and why."""

    job: Job
    reason: str


def spread(todo: Sequence[Job], on_progress: Callable[[Mapping[Path, str]], None]) -> list[FailedRun]:
    """Run jobs on Ray, each with the cores and GPUs that [runtime] of its recipe names; returns those that failed.

    A run that fails does not stop the others. `on_progress` gets where each run stands, by its folder, about every
    second. Raises UserError for a mistake in any recipe, or where the cluster cannot be used, before the first starts.
    """
    tables = {job.recipe.runtime for job in todo}
    if len(tables) > 1:
        raise UserError("The recipes have different [runtime] tables; give all the same, as in --set runtime.cpus=1.")
    for job in todo:
        check(job)
    from fedprompt.runtimes.ray.cluster import require_ray

    require_ray()
    from fedprompt.runtimes.ray.tasks import run_tasks

    alone = {job.folder.absolute(): _in_one_process(job) for job in todo}
    states = dict.fromkeys(alone, WAITING)
    failed = []
    wants_gpu = any(job.recipe.backbone.device != "cpu" for job in todo)
    work = partial(_run, folder=Path.cwd())
    for ended in run_tasks(work, list(alone.values()), next(iter(tables)), wants_gpu=wants_gpu):
        if ended is not None:
            reason = ended.reason or _unseen(ended.piece)
            states[ended.piece.folder] = f"failed: {reason}" if reason else "done"
            failed += [FailedRun(ended.piece, reason)] if reason else []
        going = {folder: progress_of(folder) for folder, state in states.items() if not is_over(state)}
        states |= going
        on_progress({job.folder: states[job.folder.absolute()] for job in todo})
    return failed


def progress_of(folder: Path) -> str:
    """Where a run stands, by the last of its records that says so."""
    path = folder / "run.jsonl"
    if not path.is_file():
        return WAITING
    for line in reversed(_last_lines(path)):
        try:
            fields = load_json(line)
        except ValueError:  # cut at its start, or still being written
            continue
        if not isinstance(fields, dict):
            continue
        if fields.get("event") == "round":
            loss = fields.get("loss")
            shown = f", loss {loss:.4f}" if isinstance(loss, float) else ""
            return f"{fields.get('trial')}, round {fields.get('round')}{shown}"
        if fields.get("event") == "trial" and fields.get("status"):
            return f"{fields.get('trial')}, {fields.get('status')}"
    return "opening"


def _last_lines(path: Path) -> list[bytes]:
    with open_file(path) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        return file.read().splitlines()


def is_over(state: str) -> bool:
    """Whether a run in this state has ended."""
    return state == "done" or state.startswith("failed")


def _in_one_process(job: Job) -> Job:
    """The job as a task does it: the clients of its run are trained in the task's process."""
    recipe = job.recipe.model_copy(update={"runtime": RuntimeTable()})
    return replace(job, recipe=recipe, folder=job.folder.absolute())


def _run(job: Job, *, folder: Path) -> None:
    """Start or resume a run in this process, from the folder to which paths of its recipe are relative."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder} on this node; work in one on storage that all nodes share.")
    os.chdir(folder)
    run_job(job)


def _unseen(job: Job) -> str:
    """Why a run that is done does not count: its records are on another machine; "" if they are here."""
    if job.done:
        return ""
    return f"its records are not in {job.folder} here; give an --out on storage that all nodes share."
