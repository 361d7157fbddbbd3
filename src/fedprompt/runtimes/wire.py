"""What travels between server and sites: a few words and named raw tensors; imports neither torch nor Flower."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors

from fedprompt.errors import UserError

Words = Mapping[str, Any]  # JSON values: numbers, strings, lists and tables

HELLO, TRAIN, EVALUATE = "query.hello", "train", "evaluate"  # requests, by the names Flower dispatches on
KINDS = (HELLO, TRAIN, EVALUATE)
DONE, REFUSED, FAILED = "done", "refused", "failed"  # answers

_WORDS = "fedprompt"  # the key of the words in a safetensors file's metadata


@dataclass(frozen=True)
class Raw:
    """A tensor as it travels: little-endian bytes in row order, to be checked against its description."""

    dtype: str  # as NumPy and torch spell it: "float32"
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class Parcel:
    """One request or answer."""

    kind: str
    words: Words = field(default_factory=dict)
    tensors: Mapping[str, Raw] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of the tensors on the wire."""
        return sum(len(raw.data) for raw in self.tensors.values())

    def to_bytes(self) -> bytes:
        """The parcel as one safetensors file, for a local socket."""
        words = json.dumps({"kind": self.kind, "words": self.words})
        tensors = {
            name: {"dtype": raw.dtype, "shape": list(raw.shape), "data": raw.data} for name, raw in self.tensors.items()
        }
        return bytes(safetensors.serialize(tensors, {_WORDS: words}))

    @classmethod
    def from_bytes(cls, content: bytes) -> Parcel:
        """Read what `to_bytes` wrote; raises UserError if it is anything else."""
        try:
            size = int.from_bytes(content[:8], "little")
            head = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][_WORDS])
            tensors = {
                name: Raw(_NAMES[item["dtype"]], tuple(item["shape"]), bytes(item["data"]))
                for name, item in safetensors.deserialize(content)
            }
            return cls(str(head["kind"]), dict(head["words"]), tensors)
        except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise UserError(f"A local message cannot be read ({type(error).__name__}); restart the worker.") from error


_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "U8": "uint8"}
