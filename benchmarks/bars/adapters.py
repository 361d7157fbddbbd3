"""Adapters from somebody who means harm: each must be refused quickly, in little memory, and must not run anything."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError
from fedprompt.records.adapter import AdapterCard, load_adapter, load_tensors, save_adapter

STATE = {"context": torch.zeros(16, 512)}
WEIGHTS, CARD, WORDS = "adapter_model.safetensors", "adapter_config.json", "attributes.json"
PRINT = "f" * 64
MANY = 10**6
CLAIM = 100 * 10**9  # bytes
Forge = Callable[[Path], None]  # changes a copy of an honest adapter


class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.canary,)


def measure(folder: Path) -> dict[str, float | str]:
    """Which forged adapters were accepted, what the worst took in seconds and MiB, whether the canary was touched."""
    save_honest(folder / "honest")
    load(folder / "honest")
    canary, accepted, seconds, grown = folder / "canary", [], [], []
    kinds = forgeries(canary)
    for name, forge in kinds.items():
        forge(shutil.copytree(folder / "honest", folder / name))
    for name in kinds:
        before, started = peak(), time.perf_counter()
        try:
            load(folder / name)
            accepted.append(name)
        except UserError:
            pass
        seconds.append(time.perf_counter() - started)
        grown.append(peak() - before)
    return {
        "kinds": len(kinds),
        "accepted": ", ".join(accepted),
        "seconds": max(seconds),
        "grown": sum(grown),  # at most what the worst took
        "canary": "touched" if canary.exists() else "untouched",
    }


def forgeries(canary: Path) -> Mapping[str, Forge]:
    """All kinds by name; they are written in pieces, so that making them leaves no high-water mark."""
    size = STATE["context"].nbytes
    whole = {"dtype": "F32", "shape": [16, 512], "data_offsets": [0, size]}
    return {
        "pickle": lambda place: (place / WEIGHTS).write_bytes(pickle.dumps(Payload(canary))) and None,
        "header of 2**63 bytes": lambda place: (place / WEIGHTS).write_bytes(struct.pack("<Q", 2**63) + b"{}") and None,
        "overlapping tensors": lambda place: safetensors(place, {"context": whole, "other": whole}, size),
        "an extra tensor": lambda place: safetensors(
            place, {"context": whole, "other": {**whole, "shape": [1], "data_offsets": [size, size + 4]}}, size + 4
        ),
        "a claim of 100 GB": lambda place: safetensors(
            place, {"context": {**whole, "shape": [CLAIM // 4], "data_offsets": [0, CLAIM]}}, size
        ),
        "a sparse file of 100 GB": lambda place: sparse(place / WEIGHTS),
        "a header of 1,000,000 keys": lambda place: swollen(place / WEIGHTS, struct.pack("<Q", 14 * MANY), b"0"),
        "a card of 1,000,000 keys": lambda place: swollen(place / CARD, b'{"params": ', b"0"),
        "words of 1,000,000 keys": lambda place: swollen(place / WORDS, b'{"attributes": ', b'["x"]'),
    }


def safetensors(place: Path, head: Mapping[str, object], size: int) -> None:
    """A file with that head and so many zeros."""
    text = json.dumps(head).encode()
    (place / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))


def sparse(path: Path) -> None:
    """A file that takes no room and claims a lot."""
    with path.open("r+b") as file:
        file.truncate(CLAIM)


def swollen(path: Path, start: bytes, value: bytes) -> None:
    """JSON with a million keys."""
    with path.open("wb") as file:
        file.write(start + b'{"k": ' + value)
        file.writelines(pieces(value))
        file.write(b"}}")


def pieces(value: bytes) -> Iterator[bytes]:
    """The keys one by one."""
    return (b',"%d": %s' % (number, value) for number in range(MANY))


def save_honest(folder: Path) -> None:
    """An adapter that is one."""
    space = LabelSpace(("cat", "dog"))
    card = AdapterCard(
        method="promptfl",
        task="single",
        base_model_name_or_path="demo",
        base_model_sha256=PRINT,
        class_names=space.names,
        templates=(space.template,),
        params={},
    )
    save_adapter(folder, card, STATE, space=space, files={})


def load(folder: Path) -> None:
    """All that `fedprompt predict` reads of an adapter."""
    load_tensors(load_adapter(folder), STATE, fingerprint=PRINT)


def peak() -> float:
    """The most MiB that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
