"""Reading the tensors of a checkpoint file, and nothing else: code in it is refused before any of it is executed."""

from __future__ import annotations

import re
import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from fedprompt.errors import UserError
from fedprompt.file_system import open_file, require_file

Tensors = Mapping[str, Tensor]
NESTED = ("state_dict", "model_state_dict", "model")  # under which training scripts keep the weights
POINTER = b"version https://git-lfs"  # how a file begins that stands for one in Git LFS
LONGEST_START = 256
PRINTABLE = bytes((*range(32, 127), *b"\t\r\n"))
WRAPPERS = ("module.", "_orig_mod.")  # which torch puts before the names of a wrapped model
SIZED = {  # dimensions of the tensors whose shapes are the sizes of a model, by the end of their names
    "visual.conv1.weight": 4, "patch_embed.proj.weight": 4, "token_embedding.weight": 2, "word_embeddings.weight": 2,
    "positional_embedding": 2, "position_embeddings.weight": 2, "token_type_embeddings.weight": 2,
    "text_projection": 2, "head.proj.weight": 2, "c_fc.weight": 2, "fc1.weight": 2, "intermediate.dense.weight": 2,
}  # fmt: skip


def read_tensors(path: Path) -> Tensors:
    """The tensors of a .safetensors file, or of a .pt or .bin file by torch's reader of tensors alone, by name.

    Raises UserError for a TorchScript archive, a pickle that is more than tensors, and a file that is torn or no
    checkpoint.
    """
    require_file(path, "give the file of a checkpoint")
    found: object = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    for key in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    tensors = found if isinstance(found, Mapping) else {}
    others = [str(name) for name, value in tensors.items() if not isinstance(value, Tensor)]
    if not tensors or others:
        held = f", but {others[0]!r}, which is none" if others else ""
        raise UserError(f"{path} is no state dict: it does not hold tensors by name{held}; save model.state_dict().")
    return {_unwrapped(str(name)): tensor for name, tensor in tensors.items()}


def number_types(path: Path) -> Mapping[str, str]:
    """The type of each tensor of a .safetensors file, such as "F32", by name; UserError if the file is not whole."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(_damage(path, f"no whole file of safetensors ({error})")) from error


def _safetensors(path: Path) -> Tensors:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(_damage(path, f"no whole file of safetensors ({error})")) from error


def _pickled(path: Path) -> object:
    try:
        with warnings.catch_warnings(action="ignore"):  # of a TorchScript archive, which is refused with a sentence
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of any kind, as a damaged file may raise anything
        raise UserError(_refusal(path, str(error))) from error


def _refusal(path: Path, error: str) -> str:
    """Why torch's reader did not take a file, from its message."""
    if "TorchScript" in error:
        return (
            f"{path} is a TorchScript archive, which holds code, so it is not opened. On a machine where you trust "
            "it, save the tensors alone: torch.save(torch.jit.load(FILE).state_dict(), OUT); OpenAI's own models are "
            "on the Hub as openai/clip-vit-base-patch16 and others."
        )
    named = re.search(r"(?:Unsupported (?:global|class)\W+|GLOBAL )(?:GLOBAL )?([\w.]+)", error)
    if named or ("Weights only load failed" in error and not _is_text(_start(path))):
        what = f" ({named[1]})" if named else ""
        return (
            f"{path} is a pickle that holds more than tensors{what}; nothing in it was executed. Where you trust it, "
            "save model.state_dict() alone."
        )
    reason = textwrap.shorten(error.strip().partition("\n")[0].rstrip("."), 120, placeholder=" ...")
    return _damage(path, f"no whole checkpoint ({reason})" if reason else "no whole checkpoint")


def refuse_pointer(path: Path) -> None:
    """Raise UserError for a file that stands for one in Git LFS."""
    if _start(path).startswith(POINTER):
        raise UserError(
            f"{path} is a pointer of Git LFS, not the file that it stands for; run git lfs pull where it was cloned, "
            "or copy the file again."
        )


def _damage(path: Path, what: str) -> str:
    """The sentence on a file that is `what` by its reader, or by its beginning something else."""
    refuse_pointer(path)
    start = _start(path)
    if not start:
        return f"{path} is no whole checkpoint (it is empty); copy it again."
    if _is_text(start):
        return f"{path} is a text file, no checkpoint: it begins with {start[:20].decode()!a}; copy it again."
    return f"{path} is {what}; copy it again."


def _start(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read(LONGEST_START)


def _is_text(start: bytes) -> bool:
    """Whether a file that begins like this is one of text in ASCII, and no pickle in the oldest form."""
    return start.isascii() and not start.startswith((b"(", b"c")) and not start.translate(None, PRINTABLE)


def _unwrapped(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def check_dimensions(tensors: Tensors, name: str) -> None:
    """Raise UserError if a tensor from which sizes are read has another number of dimensions than it must have."""
    for key, tensor in tensors.items():
        wanted = next((count for end, count in SIZED.items() if key.endswith(end)), tensor.ndim)
        if tensor.ndim != wanted:
            raise UserError(
                f"The tensor {key!r} of {name} is {list(tensor.shape)}, but must have {wanted} dimensions; give a "
                "whole checkpoint of OpenAI or open_clip."
            )
