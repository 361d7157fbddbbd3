"""Payloads between server and sites: JSON fields and named raw tensors; imports neither torch nor Flower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedprompt.errors import NotFiniteError, UserError
from fedprompt.text_files import DEEPEST, json_text, load_json_object

Fields = Mapping[str, Any]  # JSON values: numbers, strings, lists and tables

HELLO, TRAIN, EVALUATE = "query.hello", "train", "evaluate"  # requests, by the names Flower dispatches on
VALIDATE = "evaluate.held_out"  # on images that are held out from training
# Requests of the four steps of a secure sum, named like the steps of `fedprompt.federated.secure.envelope`.
SHARE_KEYS, MASKED_INPUT = "train.share_keys", "train.masked_input"
CONSISTENCY_CHECK, UNMASK = "train.consistency_check", "train.unmask"
SECURE = (SHARE_KEYS, MASKED_INPUT, CONSISTENCY_CHECK, UNMASK)
MESSAGE = "message"  # key of a secure sum's message: a base64 field on its way to a site, a byte tensor on its way back
DONE, REFUSED, FAILED = "done", "refused", "failed"  # answers
DIVERGED = "diverged"  # an answer: with the state that was sent, the site's training losses are not finite
DIVERGED_REASON = "diverged: its losses are not finite with the state that it received."
VERSION = "fedprompt"  # field of a request: the server's version of fedprompt
EXPIRES = "expires"  # field of a request, set where it arrives: time in seconds since 1970 when nobody waits any more
MALFORMED = "malformed"  # a request that could not be read
LONGEST_REASON = 500  # characters of a site's reason that are shown


@dataclass(frozen=True)
class RawTensor:
    """A tensor in transit: little-endian bytes in row order; `check_raw` checks them against the shared state."""

    dtype: str  # as NumPy and torch spell it: "float32"
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class Payload:
    """One request, or the answer to one; `received` is the time in seconds since 1970 at which an answer arrived."""

    kind: str
    fields: Fields = field(default_factory=dict)
    tensors: Mapping[str, RawTensor] = field(default_factory=dict)
    received: float | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        """Bytes of the tensors in transit."""
        return sum(len(raw.data) for raw in self.tensors.values())

    @classmethod
    def of_message(cls, content: bytes) -> Payload:
        """The answer to one step of a secure sum."""
        return cls(DONE, {}, {MESSAGE: RawTensor("uint8", (len(content),), content)})

    def to_bytes(self) -> bytes:
        """The payload for a local socket: length of a JSON header, the header, then the tensors' bytes in its order."""
        tensors = [(name, raw.dtype, raw.shape, len(raw.data)) for name, raw in self.tensors.items()]
        header = json_text({"kind": self.kind, "fields": self.fields, "tensors": tensors}).encode()
        return b"".join([len(header).to_bytes(8, "little"), header, *(raw.data for raw in self.tensors.values())])

    @classmethod
    def from_bytes(cls, content: bytes, *, largest_header: int | None = None) -> Payload:
        """Read what `to_bytes` wrote; UserError if it is anything else, or has more bytes of header than that."""
        try:
            end = 8 + int.from_bytes(content[:8], "little")
            if largest_header is not None and end > 8 + largest_header:
                raise ValueError("header")
            header = load_json_object(content[8:end], deepest=DEEPEST + 1)  # the fields may have DEEPEST levels
            tensors = {}
            for name, dtype, shape, size in header["tensors"]:
                if not isinstance(name, str) or not isinstance(dtype, str) or not _counts(size, *shape):
                    raise TypeError("tensors")
                tensors[name] = RawTensor(dtype, tuple(shape), content[end : end + size])
                end += size
            if end != len(content) or len(tensors) != len(header["tensors"]):
                raise ValueError("length")
            if not isinstance(header["kind"], str) or not isinstance(header["fields"], dict):
                raise TypeError("fields")
            return cls(header["kind"], header["fields"], tensors)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"A local message cannot be read ({type(error).__name__}); restart the worker.") from error


def _counts(*values: object) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def done(answer: Payload | str) -> Payload:
    """The answer if the request was carried out; UserError with the reason otherwise.

    NotFiniteError where the state that was sent makes the site's training losses not finite.
    """
    if isinstance(answer, str):
        raise UserError(answer)
    if answer.kind == DIVERGED:
        raise NotFiniteError(DIVERGED_REASON)
    if answer.kind in (REFUSED, FAILED):
        raise UserError(f"{answer.kind}: {reason(answer)}")
    if answer.kind != DONE:
        raise UserError("message: its answer is of an unknown kind.")
    return answer


def reason(answer: Payload) -> str:
    """The reason that an answer gives, cut short, without control characters: a site wrote it."""
    said = str(answer.fields.get("reason", ""))[:LONGEST_REASON]
    return "".join(character if character.isprintable() else "?" for character in said)
