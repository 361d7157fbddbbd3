"""Malicious adapters, which must be refused quickly, in little memory, and without executing anything."""

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
Change = Callable[[Path], None]  # changes a copy of a valid adapter


class Payload:
    """An object that creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.canary,)


def measure(folder: Path) -> dict[str, float | str]:
    """The malicious adapters that were accepted, the worst seconds and MiB, and whether the canary was touched."""
    save_honest(folder / "honest")
    load(folder / "honest")
    canary, accepted, seconds, grown = folder / "canary", [], [], []
    kinds = forgeries(canary)
    for name, change in kinds.items():
        change(shutil.copytree(folder / "honest", folder / name))
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
        "grown": sum(grown),  # an upper bound of the worst
        "canary": "touched" if canary.exists() else "untouched",
    }


def forgeries(canary: Path) -> Mapping[str, Change]:
    """The malicious changes by name; files are written in pieces, so that making them does not raise peak memory."""
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
        "descriptions of 1,000,000 keys": lambda place: swollen(place / WORDS, b'{"attributes": ', b'["x"]'),
    }


def safetensors(place: Path, head: Mapping[str, object], size: int) -> None:
    """Write a safetensors file with that header and `size` zero bytes."""
    text = json.dumps(head).encode()
    (place / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))


def sparse(path: Path) -> None:
    """Make a sparse file of a huge size."""
    with path.open("r+b") as file:
        file.truncate(CLAIM)


def swollen(path: Path, start: bytes, value: bytes) -> None:
    """Write JSON with a million keys."""
    with path.open("wb") as file:
        file.write(start + b'{"k": ' + value)
        file.writelines(pieces(value))
        file.write(b"}}")


def pieces(value: bytes) -> Iterator[bytes]:
    """The keys of the JSON."""
    return (b',"%d": %s' % (number, value) for number in range(MANY))


def save_honest(folder: Path) -> None:
    """Write a valid adapter."""
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
    """Load everything that `fedprompt predict` reads of an adapter."""
    load_tensors(load_adapter(folder), STATE, fingerprint=PRINT)


def peak() -> float:
    """Peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
