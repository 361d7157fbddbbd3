"""Independent pieces of work as Ray tasks, each in a process of its own: the runs of a study."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayTaskError

from fedprompt.config.recipe_tables import RuntimeTable
from fedprompt.errors import UserError
from fedprompt.runtimes.ray.actor import Process
from fedprompt.runtimes.ray.alive import NOTICE, POLL, Watch
from fedprompt.runtimes.ray.cluster import actors_and_gpus, connected
from fedprompt.runtimes.ray.pool import MEMORY_ADVICE, is_out_of_memory, last_line, ran_out_of_memory

Piece = TypeVar("Piece")
RETRIES = 3  # of a piece of work whose process or node died


@dataclass(frozen=True)
class Ended(Generic[Piece]):
    """A piece of work that is done, or why it failed."""

    piece: Piece
    reason: str = ""


def run_tasks(
    work: Callable[[Piece], None], pieces: Sequence[Piece], table: RuntimeTable, *, wants_gpu: bool
) -> Iterator[Ended[Piece] | None]:
    """Do the work for every piece; yields those that end, and None about every second.

    A piece that fails does not stop the others; one whose process or node died is tried again. Raises UserError if the
    cluster cannot be used or has no room for a single piece, or if Ray itself ends.
    """
    with connected() as nodes:
        _, gpus = actors_and_gpus(table.model_copy(update={"actors": 0}), nodes, wants_gpu=wants_gpu)
        task = ray.remote(_work).options(
            num_cpus=table.cpus, num_gpus=gpus, max_retries=RETRIES, scheduling_strategy="SPREAD"
        )
        process = Process.like_this(table.threads, gpus)
        # In boxes, which Ray does not open by itself: the process must know first where modules are.
        running = {task.remote(process, (ray.put((work, piece)),)): piece for piece in pieces}
        watch = Watch()
        while running:
            ended, _ = ray.wait(list(running), num_returns=1, timeout=POLL)
            if not ended:
                watch.require()
                yield None
            for one in ended:
                yield Ended(running.pop(one), _failure(one, watch))


def _work(process: Process, box: tuple[Any, ...]) -> None:
    process.begin()
    work, piece = ray.get(box[0])
    work(piece)


def _failure(reference: Any, watch: Watch) -> str:
    """Why a task failed, "" if it did not; UserError if that is the end of Ray itself."""
    if failure := _reason(reference):
        watch.require(notice=NOTICE)
    return failure


def _reason(reference: Any) -> str:
    try:
        ray.get(reference)
    except RayTaskError as error:
        cause = error.cause
        if is_out_of_memory(cause):
            return f"it ran out of memory ({last_line(cause)}). {MEMORY_ADVICE}"
        return str(cause) if isinstance(cause, UserError) else f"{type(cause).__name__}: {last_line(cause)}"
    except ray.exceptions.RayError as error:
        if ran_out_of_memory(error):
            return f"its node had no memory left ({last_line(error)}). {MEMORY_ADVICE}"
        return f"its process died {RETRIES + 1} times ({last_line(error)})"
    return ""
