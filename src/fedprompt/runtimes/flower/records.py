"""Payloads to and from Flower's records: an array of raw bytes per tensor, and the fields as one JSON text."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedprompt.errors import UserError
from fedprompt.runtimes.payload import Payload, RawTensor
from fedprompt.text_files import json_text, load_json_object

STYPE = "fedprompt.raw"  # bytes in row order without a header that could contradict the declared shape
LARGEST_FIELDS = 1 << 20  # characters of JSON


def to_records(payload: Payload) -> RecordDict:
    """The payload as the content of a Flower message."""
    arrays = {name: Array(raw.dtype, raw.shape, STYPE, raw.data) for name, raw in payload.tensors.items()}
    fields = ConfigRecord({"kind": payload.kind, "fields": json_text(payload.fields)})
    return RecordDict({"arrays": ArrayRecord(arrays), "fields": fields})


def from_records(content: RecordDict) -> Payload:
    """Read what `to_records` made; raises UserError if the content is anything else."""
    try:
        if set(content) != {"arrays", "fields"}:
            raise ValueError("records")
        record, fields = content.array_records["arrays"], content.config_records["fields"]
        kind, text = fields["kind"], fields["fields"]
        if not isinstance(kind, str) or not isinstance(text, str) or len(text) > LARGEST_FIELDS:
            raise TypeError("fields")
        if any(array.stype != STYPE for array in record.values()):
            raise ValueError("arrays")
        table = load_json_object(text)
        raws = {name: RawTensor(array.dtype, tuple(array.shape), array.data) for name, array in record.items()}
        return Payload(kind, table, raws)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError("sent a malformed message.") from error
