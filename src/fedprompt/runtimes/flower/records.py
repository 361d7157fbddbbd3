"""Payloads to and from Flower's records: the bytes of a payload as one array.

Flower sends every array of a message as two objects, each with requests of its own. With an array per tensor, a round
of FedMVP took four seconds longer.
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, RecordDict

from fedprompt.errors import UserError
from fedprompt.runtimes.payload import Payload

STYPE = "fedprompt.payload"
NAME = "payload"
LARGEST_HEADER = 1 << 20  # bytes of JSON: the fields, and the tensors' names and shapes


def to_records(payload: Payload) -> RecordDict:
    """The payload as the content of a Flower message."""
    content = payload.to_bytes()
    return RecordDict({NAME: ArrayRecord({NAME: Array("uint8", (len(content),), STYPE, content)})})


def from_records(content: RecordDict) -> Payload:
    """Read what `to_records` made; raises UserError if the content is anything else."""
    try:
        if set(content) != {NAME} or set(content.array_records[NAME]) != {NAME}:
            raise ValueError("records")
        array = content.array_records[NAME][NAME]
        if array.stype != STYPE or array.dtype != "uint8" or tuple(array.shape) != (len(array.data),):
            raise ValueError("array")
        return Payload.from_bytes(array.data, largest_header=LARGEST_HEADER)
    except (KeyError, TypeError, ValueError, UserError) as error:
        raise UserError("sent a malformed message.") from error
