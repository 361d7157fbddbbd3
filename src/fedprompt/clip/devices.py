"""Devices: finding the one that a configuration names, what it can compute in, and copies that do not wait for it."""

from __future__ import annotations

import os
import re

import torch
from torch import Tensor

from fedprompt.clip.precision import DTYPES, Precision
from fedprompt.errors import UserError, did_you_mean, plural, wording

KINDS = ("auto", "cpu", "cuda", "mps")
ALL_GPUS = "cuda:*"
NAMES = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def find_device(name: str, precision: Precision = "float32") -> torch.device:
    """The device of that name: "cpu", "cuda", "cuda:1", "mps", or "auto" for the first CUDA GPU, else the processor.

    Raises UserError if this machine or PyTorch lacks it, or it does not compute in that precision. On a GPU, products
    of float32 are then in float32 (not TF32) and, where there are several algorithms, the repeatable one is taken.
    """
    if name == ALL_GPUS:
        raise UserError(
            f'{_key("device")} = "{name}" is not for one process: a run on Ray gives each GPU an actor, and '
            'the clients are spread over the actors; use "cuda" and --on ray (in Python: on="ray").'
        )
    if not NAMES.fullmatch(name):
        raise UserError(
            f"There is no device {name!r}{did_you_mean(name, KINDS)} "
            f'({_key("device")} = "auto", "cpu", "cuda", "cuda:1" for the second GPU, or "mps").'
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if problem := _absence(name):
        raise UserError(problem)
    device = torch.device(name)
    if problem := _imprecision(device, precision):
        raise UserError(problem)
    if device.type == "cuda":
        _make_repeatable()
    return device


def _key(name: str) -> str:
    """A key of [backbone] as its caller names it: a recipe's, or a keyword of `load_clip`."""
    return name if wording() == "keywords" else f"backbone.{name}"


def _absence(name: str) -> str:
    """Why there is no such device here, in a sentence; "" if there is."""
    kind, _, number = name.partition(":")
    if kind == "mps" and not torch.backends.mps.is_available():
        return f'{_key("device")} = "mps" needs a Mac with an Apple GPU, which this machine is not; use "auto".'
    if kind != "cuda":
        return ""
    if not torch.cuda.is_available():
        return (
            f'{_key("device")} = "{name}" needs an NVIDIA GPU, its driver and a PyTorch for it, but PyTorch '
            f'{torch.__version__} finds none; use "cpu", or install PyTorch for CUDA.'
        )
    count = torch.cuda.device_count()
    if int(number or 0) >= count:
        return (
            f'{_key("device")} = "{name}" does not exist: this machine has {plural(count, "GPU")}, counted from 0, so '
            f'the last is "cuda:{count - 1}".'
        )
    return ""


def _imprecision(device: torch.device, precision: Precision) -> str:
    """Why a device does not compute in a precision, in a sentence; "" if it does."""
    if precision == "float16" and device.type == "cpu":
        return (
            f'{_key("precision")} = "float16" is for GPUs: a processor computes it by way of float32, slower than '
            'either; use "bfloat16" or "float32", or a GPU.'
        )
    if precision != "bfloat16" or device.type == "cpu":
        return ""
    if device.type == "cuda":
        known = torch.cuda.get_device_capability(device) >= (8, 0)
        title = torch.cuda.get_device_name(device)
    else:
        known, title = _multiplies(device, DTYPES[precision]), "This GPU"
    refused = f'{_key("precision")} = "bfloat16" is refused; use "float16" or "float32"'
    return "" if known else f"{title} does not compute in bfloat16, so {refused}."


def _multiplies(device: torch.device, dtype: torch.dtype) -> bool:
    try:
        ones = torch.ones(2, 2, device=device, dtype=dtype)
        return float((ones @ ones).sum()) == 8
    except (RuntimeError, TypeError):
        return False


def _make_repeatable() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is computed
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    # An operation without a repeatable algorithm warns, instead of failing after hours of training.
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; the processor goes on meanwhile, since a CUDA copy from pinned memory is asynchronous.

    The tensor itself if it is there already.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
