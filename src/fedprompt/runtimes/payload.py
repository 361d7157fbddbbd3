"""What travels between server and sites: a few fields and named raw tensors; imports neither torch nor Flower."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedprompt.errors import UserError

Fields = Mapping[str, Any]  # JSON values: numbers, strings, lists and tables

HELLO, TRAIN, EVALUATE = "query.hello", "train", "evaluate"  # requests, by the names Flower dispatches on
KEYS, SHARES, MASKED, UNMASK = "train.keys", "train.shares", "train.masked", "train.unmask"  # of a secure sum
SECURE = (KEYS, SHARES, MASKED, UNMASK)
MESSAGE = "message"  # of a secure sum: among the fields in base64 to a site, as a tensor of bytes from it
DONE, REFUSED, FAILED = "done", "refused", "failed"  # answers


@dataclass(frozen=True)
class Raw:
    """A tensor as it travels: little-endian bytes in row order, to be checked against its description."""

    dtype: str  # as NumPy and torch spell it: "float32"
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class Payload:
    """One request or answer."""

    kind: str
    fields: Fields = field(default_factory=dict)
    tensors: Mapping[str, Raw] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Size of the tensors on the wire."""
        return sum(len(raw.data) for raw in self.tensors.values())

    @classmethod
    def of_message(cls, content: bytes) -> Payload:
        """The answer in a step of a secure sum."""
        return cls(DONE, {}, {MESSAGE: Raw("uint8", (len(content),), content)})

    def to_bytes(self) -> bytes:
        """The payload for a local socket: the length of a JSON head, the head, then the tensors' bytes in its order."""
        tensors = [(name, raw.dtype, raw.shape, len(raw.data)) for name, raw in self.tensors.items()]
        head = json.dumps({"kind": self.kind, "fields": self.fields, "tensors": tensors}).encode()
        return b"".join([len(head).to_bytes(8, "little"), head, *(raw.data for raw in self.tensors.values())])

    @classmethod
    def from_bytes(cls, content: bytes) -> Payload:
        """Read what `to_bytes` wrote; raises UserError if it is anything else."""
        try:
            end = 8 + int.from_bytes(content[:8], "little")
            head = json.loads(content[8:end])
            tensors = {}
            for name, dtype, shape, size in head["tensors"]:
                tensors[str(name)] = Raw(str(dtype), tuple(map(int, shape)), content[end : end + size])
                end += size
            if end != len(content):
                raise ValueError("length")
            return cls(str(head["kind"]), dict(head["fields"]), tensors)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"A local message cannot be read ({type(error).__name__}); restart the worker.") from error


def done(answer: Payload | str) -> Payload:
    """An answer that is one; UserError with the reason otherwise."""
    if isinstance(answer, str):
        raise UserError(answer)
    if answer.kind in (REFUSED, FAILED):
        raise UserError(f"{answer.kind}: {str(answer.fields.get('reason', ''))[:200]}")
    if answer.kind != DONE:
        raise UserError("message: its answer is of no known kind.")
    return answer
