"""Image decoding in worker processes: batches in order, a few ahead, in bounded memory."""

from __future__ import annotations

import functools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedprompt.child_processes import start_worker
from fedprompt.data.images import Images

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Prepare = Callable[[Sequence[Image.Image]], Pixels]
Result = TypeVar("Result")
AHEAD = 4  # batches per worker that are decoded in advance

_work: Callable[[Images], Any]


class Decoder:
    """Images as tensors, in order: by worker processes if there are several batches and workers, else in this one."""

    def __init__(self, prepare: Prepare, *, workers: int = 0) -> None:
        self.prepare = prepare
        self.workers = workers
        self._pool: Workers[Pixels] | None = None

    def map(self, batches: Sequence[Images]) -> Iterator[Tensor]:
        """`prepare` of each batch."""
        if not self.workers or len(batches) == 1:
            return (torch.from_numpy(self.prepare(list(batch))) for batch in batches)
        if self._pool is None:
            self._pool = Workers(self.workers, functools.partial(_prepare_batch, self.prepare))
        return map(torch.from_numpy, self._pool.map(batches))


class Workers(Generic[Result]):
    """A pool of `count` processes that call `work`, which must be picklable, on batches of images of any source."""

    def __init__(self, count: int, work: Callable[[Images], Result]) -> None:
        self.count = count
        # A copy of this process would inherit locks of threads that it does not have.
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context = multiprocessing.get_context(method)
        self._pool = ProcessPoolExecutor(
            count, mp_context=context, initializer=start_worker, initargs=(_set_work, work)
        )

    def map(self, batches: Iterable[Images]) -> Iterator[Result]:
        """`work` of each batch, in order; an error in a worker is raised here."""
        waiting: deque[Future[Result]] = deque()
        for batch in batches:
            waiting.append(self._pool.submit(_run_work, _portable(batch)))
            if len(waiting) > AHEAD * self.count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def close(self) -> None:
        """End the processes; work in progress is finished first."""
        self._pool.shutdown(cancel_futures=True)


def _prepare_batch(prepare: Prepare, batch: Images) -> Pixels:
    return prepare(list(batch))


def _portable(batch: Images) -> Images:
    """The batch with only its own part of the source: sending a million paths takes long."""
    return Images(batch.source.take(batch.rows), tuple(range(len(batch))), batch.mirrored)


def _set_work(work: Callable[[Images], Any]) -> None:
    global _work
    _work = work


def _run_work(batch: Images) -> Any:
    return _work(batch)
