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

from fedprompt.data.images import Images

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Prepare = Callable[[Sequence[Image.Image]], Pixels]
AHEAD = 4  # batches a worker that are decoded before they are asked for

_prepare: Prepare


class Decoder:
    """Pictures as tensors, in order: by worker processes where there are several batches and workers, else here."""

    def __init__(self, prepare: Prepare, *, workers: int = 0) -> None:
        self.prepare = prepare
        self.workers = workers
        self._pool: Workers | None = None

    def map(self, batches: Sequence[Images]) -> Iterator[Tensor]:
        """What `prepare` makes of each batch."""
        if not self.workers or len(batches) == 1:
            return (torch.from_numpy(self.prepare(list(batch))) for batch in batches)
        if self._pool is None:
            self._pool = Workers(self.workers, self.prepare)
        return map(torch.from_numpy, self._pool.map(batches))


class Workers:
    """`count` processes that open pictures of any source and prepare them."""

    def __init__(self, count: int, prepare: Prepare) -> None:
        self.count = count
        # A copy of this process would inherit locks of threads that it does not have.
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context = multiprocessing.get_context(method)
        self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(prepare,))

    def map(self, batches: Iterable[Images]) -> Iterator[Pixels]:
        """What `prepare` makes of each batch, in order; an error in a worker is raised here."""
        waiting: deque[Future[Pixels]] = deque()
        for batch in batches:
            waiting.append(self._pool.submit(_work, _portable(batch)))
            if len(waiting) > AHEAD * self.count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def close(self) -> None:
        """End the processes; what they have begun is finished first."""
        self._pool.shutdown(cancel_futures=True)


def _portable(batch: Images) -> Images:
    """The batch without the rest of its source, if that can be left behind: a million paths are much to send."""
    take = getattr(batch.source, "take", None)
    return batch if take is None else Images(take(batch.rows), tuple(range(len(batch))), batch.mirrored)


def _begin(prepare: Prepare) -> None:
    global _prepare
    _prepare = prepare


def _work(batch: Images) -> Pixels:
    return _prepare(list(batch))
