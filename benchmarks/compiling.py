"""Benchmark of `torch.compile` on the blocks of an image tower: seconds of a pass, and of compiling it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from benchmarks.backbone import SIZES, make_clip

Pass = Callable[[Tensor], Tensor]


def compiling(*, size: str = "vit-b-16", batch: int = 8, repeats: int = 5, device: str = "cpu") -> dict[str, float]:
    """Milliseconds per pass as it is and compiled, in turn, and the seconds that the first compiled pass takes more."""
    clip = make_clip(size, "ours", batch=batch).to(device)
    tower, pixels = clip.image_tower, SIZES[size][1]
    with torch.no_grad():
        tokens = tower.enter(tower.embed(torch.randn(batch, 3, pixels, pixels, device=device)))
    eager: Pass = partial(tower.run, start=0, stop=tower.blocks)
    fast: Pass = torch.compile(eager)
    return _timed("without gradient", _forward, eager, fast, tokens, repeats) | _timed(
        "with gradient", _backward, eager, fast, tokens, repeats
    )


def _timed(
    what: str, work: Callable[[Pass, Tensor], None], eager: Pass, fast: Pass, tokens: Tensor, repeats: int
) -> dict[str, float]:
    first = [_seconds(work, one, tokens) for one in (eager, fast)]
    turns = [[_seconds(work, one, tokens) for one in (eager, fast)] for _ in range(repeats)]
    plain, compiled = (median(seconds) for seconds in zip(*turns, strict=True))
    return {
        f"{what} (ms)": 1000 * plain,
        f"{what}, compiled (ms)": 1000 * compiled,
        f"{what}: times as fast": plain / compiled,
        f"{what}: compiling (s)": max(0.0, first[1] - compiled),
    }


def _seconds(work: Callable[[Pass, Tensor], None], run: Pass, tokens: Tensor) -> float:
    started = time.perf_counter()
    work(run, tokens)
    wait(tokens.device)
    return time.perf_counter() - started


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _forward(run: Pass, tokens: Tensor) -> None:
    with torch.no_grad():
        run(tokens)


def _backward(run: Pass, tokens: Tensor) -> None:
    given = tokens.detach().requires_grad_()
    run(given).sum().backward()
