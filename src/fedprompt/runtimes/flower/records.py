"""Parcels to and from Flower's records: an array a tensor, raw bytes, and one JSON word list."""

from __future__ import annotations

import json

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedprompt.errors import UserError
from fedprompt.runtimes.payload import Parcel, Raw

STYPE = "fedprompt.raw"  # bytes in row order, no header: nothing in them can contradict the declared shape
LARGEST_WORDS = 1 << 20  # characters of JSON


def to_records(parcel: Parcel) -> RecordDict:
    """A parcel as the content of a message."""
    arrays = {name: Array(raw.dtype, raw.shape, STYPE, raw.data) for name, raw in parcel.tensors.items()}
    words = ConfigRecord({"kind": parcel.kind, "words": json.dumps(parcel.words)})
    return RecordDict({"arrays": ArrayRecord(arrays), "words": words})


def from_records(content: RecordDict) -> Parcel:
    """Read what `to_records` made; raises UserError if the content is anything else."""
    try:
        if set(content) != {"arrays", "words"}:
            raise ValueError("records")
        record, words = content.array_records["arrays"], content.config_records["words"]
        kind, text = words["kind"], words["words"]
        if not isinstance(kind, str) or not isinstance(text, str) or len(text) > LARGEST_WORDS:
            raise TypeError("words")
        if any(array.stype != STYPE for array in record.values()):
            raise ValueError("arrays")
        table = json.loads(text)
        raws = {name: Raw(array.dtype, tuple(array.shape), array.data) for name, array in record.items()}
        return Parcel(kind, dict(table), raws)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError("sent a message that is not laid out as agreed.") from error
