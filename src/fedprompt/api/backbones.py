"""Loading a CLIP backbone: the embedded one, a folder, or one of the Hugging Face Hub."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from typing import TYPE_CHECKING, Literal

from fedprompt.arguments import as_path
from fedprompt.config.recipe import checked
from fedprompt.config.recipe_tables import BackboneTable
from fedprompt.errors import worded

if TYPE_CHECKING:  # importing it takes seconds, which `load_clip` says
    from fedprompt.clip.model import Clip

PATIENCE = 2.0  # seconds without a word


@contextmanager
def _said_if_slow(text: str) -> Iterator[None]:
    """Write a line to the standard error if the block takes long."""
    timer = Timer(PATIENCE, lambda: sys.stderr.write(f"{text} ...\n"))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@worded("keywords")
def load_clip(  # noqa: PLR0913  (the keys of [backbone])
    path: str | os.PathLike[str] = "demo",
    *,
    device: str = "auto",
    batch: int = 1,
    workers: int = 0,
    memory_gb: float = 2.0,
    memory_on: Literal["cpu", "device"] = "cpu",
    disk: str | os.PathLike[str] | None = None,
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    activations_gb: float = 0.0,
) -> Clip:
    """Load a frozen CLIP with its feature cache.

    `path` is "demo" (the embedded CLIP), a Hugging Face folder, a checkpoint of OpenAI or open_clip, or a Hub id.
    `device` is "cpu", "cuda", "cuda:1", "mps", or "auto": an NVIDIA GPU if there is one, else the CPU. Frozen features
    are computed `batch` rows at a time (only 1 is exact to the last bit) and are kept in `memory_gb` GiB of memory, the
    CPU's or with `memory_on="device"` the GPU's, and, if `disk` names a folder, on disk. `workers` processes decode
    images. The towers compute in `precision`, in which features are also kept; what is given to a method, and what it
    trains, is float32. In a training step the image tower keeps `activations_gb` GiB for gradients, or all if that is
    0, and computes what does not fit again.
    Raises UserError if there is no CLIP or device of that name, the device does not compute in that precision, or an
    option is out of range.

    Examples:
        >>> import fedprompt as fp
        >>> clip = fp.load_clip()
        >>> clip.text_features(["a photo of a cat.", "a photo of a dog."]).shape
        torch.Size([2, 128])
    """
    table = {
        "path": path if isinstance(path, str) else str(as_path(path, "path")),
        "device": device,
        "batch": batch,
        "workers": workers,
        "memory_gb": memory_gb,
        "memory_on": memory_on,
        "disk": None if disk is None else str(as_path(disk, "disk")),
        "precision": precision,
        "activations_gb": activations_gb,
    }
    wanted = checked(BackboneTable, table, origin="load_clip")
    with _said_if_slow(f"Opening the backbone {wanted.path}"):
        from fedprompt.experiments.experiment import load_backbone

        return load_backbone(wanted)
