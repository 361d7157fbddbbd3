"""The number of threads that fits a backbone: one where the products are small."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedprompt.clip.model import Clip

SMALL = 256  # width of image towers that a second thread does not speed up, one image at a time


def use_fitting_threads(clip: Clip) -> None:
    """Use one thread for a small backbone that reads one image at a time on the CPU, unless OMP_NUM_THREADS is set.

    On two quiet cores the demo takes 68 s with one thread and 86 s with two (each the mean of two, in turn).
    """
    small = clip.device.type == "cpu" and clip.batch == 1 and clip.image_width <= SMALL
    if small and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


@contextmanager
def fitting_threads(clip: Clip) -> Iterator[None]:
    """The threads that fit a backbone, and those of before again at the end."""
    before = torch.get_num_threads()
    use_fitting_threads(clip)
    try:
        yield
    finally:
        torch.set_num_threads(before)
