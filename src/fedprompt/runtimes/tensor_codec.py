"""Torch tensors to and from raw bytes, optionally narrowed to half precision; `screening.check_raw` checks them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from fedprompt.runtimes.payload import RawTensor
from fedprompt.updates import State

Upload = Literal["float32", "bfloat16", "float16"]  # the type in which a site sends its tensors


def encode(state: State, dtype: str | None = None) -> dict[str, RawTensor]:
    """Every tensor as raw bytes, in its own type or narrowed to `dtype`."""
    raws = {}
    for name, tensor in state.items():
        narrow = tensor.detach().cpu().to(getattr(torch, dtype) if dtype else tensor.dtype).contiguous()
        data = narrow.reshape(-1).view(torch.uint8).numpy().tobytes()  # [bytes]
        raws[name] = RawTensor(_type_name(narrow.dtype), tuple(narrow.shape), data)
    return raws


def decode(raws: Mapping[str, RawTensor]) -> State:
    """The tensors; their sizes and types must have been checked with `check_raw`."""
    return {
        name: torch.frombuffer(bytearray(raw.data), dtype=getattr(torch, raw.dtype)).reshape(raw.shape)  # [raw.shape]
        if raw.data
        else torch.empty(raw.shape, dtype=getattr(torch, raw.dtype))
        for name, raw in raws.items()
    }


def encode_change(after: State, before: State, upload: Upload) -> dict[str, RawTensor]:
    """What a site sends: the tensors that changed, as they are in float32, as differences in a narrower type."""
    changed = {name: tensor for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    if upload == "float32":
        return encode(changed)
    # A narrow type has few digits; they say more about a small difference than about a tensor that hardly moved.
    return encode({name: tensor - before[name] for name, tensor in changed.items()}, upload)


def decode_change(raws: Mapping[str, RawTensor], before: State, upload: Upload) -> State:
    """Undo `encode_change` at the server; the tensors must have passed `check_raw`."""
    sent = decode(raws)
    if upload == "float32":
        return sent
    return {name: before[name] + tensor.to(before[name].dtype) for name, tensor in sent.items()}


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
