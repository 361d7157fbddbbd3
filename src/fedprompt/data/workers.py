"""Processes that decode pictures ahead of whoever looks at them: in order, a few batches ahead, memory flat."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedprompt.data.images import Images, ImageSource

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Prepare = Callable[[Sequence[Image.Image]], Pixels]
AHEAD = 4  # batches a worker that are decoded before they are asked for

_source: ImageSource
_prepare: Prepare


class Decoder:
    """Pictures as tensors, in order: by worker processes where there are several batches and workers, else here."""

    def __init__(self, prepare: Prepare, *, workers: int = 0) -> None:
        self.prepare = prepare
        self.workers = workers
        self._pool: Workers | None = None

    def map(self, batches: Sequence[Images]) -> Iterator[Tensor]:
        """What `prepare` makes of each batch of one source."""
        if not self.workers or len(batches) == 1:
            return (torch.from_numpy(self.prepare(list(batch))) for batch in batches)
        source = batches[0].source
        if self._pool is None or self._pool.source is not source:
            if self._pool is not None:
                self._pool.close()
            self._pool = Workers(self.workers, source, self.prepare)
        return map(torch.from_numpy, self._pool.map(batches))


class Workers:
    """`count` processes that open pictures of a source and prepare them; the source travels to each of them once."""

    def __init__(self, count: int, source: ImageSource, prepare: Prepare) -> None:
        self.count = count
        self.source = source
        # A copy of this process would inherit locks of threads that it does not have.
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context = multiprocessing.get_context(method)
        self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(source, prepare))

    def map(self, batches: Iterable[Images]) -> Iterator[Pixels]:
        """What `prepare` makes of each batch, in order; an error in a worker is raised here."""
        waiting: deque[Future[Pixels]] = deque()
        for batch in batches:
            waiting.append(self._pool.submit(_work, batch.rows, batch.mirrored))
            if len(waiting) > AHEAD * self.count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def close(self) -> None:
        """End the processes; what they have begun is finished first."""
        self._pool.shutdown(cancel_futures=True)


def _begin(source: ImageSource, prepare: Prepare) -> None:
    global _source, _prepare
    _source, _prepare = source, prepare


def _work(rows: tuple[int, ...], mirrored: tuple[bool, ...]) -> Pixels:
    return _prepare(list(Images(_source, rows, mirrored)))
