"""The message format of secure aggregation, as bytes for any transport; malformed messages are refused.

Over Flower each message is the content of one exchange; the steps come in the order of `STEPS`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from fedprompt.federated.screening import RefusedUpdateError

Step = Literal["share_keys", "masked_input", "consistency_check", "unmask"]
STEPS: tuple[Step, ...] = get_args(Step)
SERVER = -1
MAGIC = b"fpsa2"
HEAD = struct.Struct("<5sBiII")  # magic, step, sender, round, number of parts
PART = struct.Struct("<iI")  # client that the part concerns, number of bytes


@dataclass(frozen=True)
class Envelope:
    """A message of one step: bytes per client concerned."""

    step: Step
    sender: int
    round_number: int
    parts: Mapping[int, bytes] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The message as bytes."""
        head = HEAD.pack(MAGIC, STEPS.index(self.step), self.sender, self.round_number, len(self.parts))
        return head + b"".join(PART.pack(client, len(data)) + data for client, data in self.parts.items())

    @classmethod
    def from_bytes(cls, content: bytes) -> Envelope:
        """Read what `to_bytes` wrote; RefusedUpdateError if it is anything else."""
        try:
            magic, step, sender, number, count = HEAD.unpack_from(content)
            place, parts = HEAD.size, {}
            for _ in range(count):
                client, size = PART.unpack_from(content, place)
                place += PART.size
                if client in parts or place + size > len(content):
                    raise ValueError(client)
                parts[client] = content[place : place + size]
                place += size
            if magic != MAGIC or step >= len(STEPS) or place != len(content):
                raise ValueError(magic)
        except (struct.error, ValueError) as error:
            raise RefusedUpdateError("message", "this is no message of secure aggregation.") from error
        return cls(STEPS[step], sender, number, parts)

    def expect(self, step: Step, round_number: int, *, sender: int | None = None) -> Envelope:
        """This message; RefusedUpdateError if it is of another step, round or sender."""
        if self.step != step or self.round_number != round_number or sender not in (None, self.sender):
            raise RefusedUpdateError("message", f"expected {step} of round {round_number}, got another message.")
        return self
