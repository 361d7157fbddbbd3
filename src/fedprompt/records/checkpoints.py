"""Checkpoints of trials, and tensors in safetensors files with a checksum."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from fedprompt.errors import UserError
from fedprompt.file_system import require_file, too_large
from fedprompt.records.atomic_files import write_atomic
from fedprompt.updates import State

LARGEST_TENSORS = 16 << 30  # bytes of a checkpoint, with the personal states of all clients
ROUND = re.compile("[0-9]{8}")  # in the name of a checkpoint
# The name of a tensor in a checkpoint: shared/NAME, memory/NAME, suspected/NAME or personal/CLIENT/NAME.
ADDRESS = re.compile("(?P<kind>shared|memory|suspected|personal/(?P<client>[0-9]{1,9}))/(?P<name>.+)", re.DOTALL)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors and metadata to a safetensors file, atomically; the metadata get a checksum of the tensors."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, save(state, {**(metadata or {}), "sha256": _checksum(state)}))


def load_tensors(path: Path) -> tuple[State, dict[str, str]]:
    """Read what `save_tensors` wrote: (tensors, metadata). Raises UserError if the file is cut short or changed."""
    require_file(path, "restore it from a copy")
    if path.stat().st_size > LARGEST_TENSORS:
        raise UserError(too_large(path, LARGEST_TENSORS, "restore it from a copy"))
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            # The file's own memory may be unaligned, and products of unaligned matrices round differently.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"The file {path} cannot be read as safetensors ({error}); restore it from a copy.") from error
    if metadata.pop("sha256", None) != _checksum(tensors):
        raise UserError(f"The tensors in {path} do not match their checksum; restore the file from a copy.")
    return tensors, metadata


@dataclass(frozen=True)
class Checkpoint:
    """State of a trial after its last finished round: shared and personal states, and the server's memory.

    `suspected` are the tensors of the round that the next one may roll back.
    """

    round_number: int
    shared: State
    personal: dict[int, State]
    memory: State = field(default_factory=dict)
    suspected: State = field(default_factory=dict)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint to a file, atomically."""
    tensors = {f"shared/{name}": tensor for name, tensor in checkpoint.shared.items()}
    tensors |= {f"memory/{name}": tensor for name, tensor in checkpoint.memory.items()}
    tensors |= {f"suspected/{name}": tensor for name, tensor in checkpoint.suspected.items()}
    for client, state in checkpoint.personal.items():
        tensors |= {f"personal/{client}/{name}": tensor for name, tensor in state.items()}
    save_tensors(path, tensors)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read what `write_checkpoint` wrote; UserError if it is damaged or its name does not end in a round."""
    number = path.stem.rpartition("@")[2]
    if not ROUND.fullmatch(number):
        raise UserError(f"The name of {path} does not end in the eight digits of a round; restore it from a copy.")
    checkpoint = Checkpoint(int(number), {}, {})
    for address, tensor in load_tensors(path)[0].items():
        place = ADDRESS.fullmatch(address)
        if place is None:
            raise UserError(f"{path} holds a tensor {address!r} of no known kind; restore it from a copy.")
        if place["client"]:
            checkpoint.personal.setdefault(int(place["client"]), {})[place["name"]] = tensor
        else:
            getattr(checkpoint, place["kind"])[place["name"]] = tensor
    return checkpoint


def _checksum(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {state[name].dtype} {list(state[name].shape)}".encode())
        digest.update(state[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
