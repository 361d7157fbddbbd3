"""A round of secure aggregation with sites elsewhere: four exchanges, of which the third holds the training."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fedprompt.errors import UserError
from fedprompt.federated.secure.collector import Collector
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.federated.secure.vector import words_of
from fedprompt.runtimes.payload import KEYS, MASKED, MESSAGE, SHARES, UNMASK, Fields, Payload, Raw, done
from fedprompt.runtimes.tensor_codec import encode
from fedprompt.updates import State, Update

# (kind, fields for each client, tensors for all of them) -> what each client says
Ask = Callable[[str, Mapping[int, Fields], Mapping[str, Raw]], dict[int, Payload | str]]


@dataclass
class MaskedRound:
    """The server's side; afterwards `failed` says who dropped out and why, and `bytes_up` what each has sent."""

    secure: SecureSum
    ask: Ask
    round_number: int
    failed: dict[int, str] = field(default_factory=dict)
    bytes_up: dict[int, int] = field(default_factory=dict)

    def run(self, shared: State, clients: Sequence[int]) -> tuple[Update, tuple[int, ...]]:
        """The mean update, and of whom it is; UserError when too few stayed to the end."""
        members = len(clients)
        codec, session = self.secure.codec(members), self.secure.session(self.round_number, members)
        collector = Collector(session, count=words_of(shared))

        def tell(kind: str, messages: Mapping[int, bytes], tensors: Mapping[str, Raw]) -> dict[int, bytes]:
            said = {client: b64encode(message).decode() for client, message in messages.items()}
            fields = {client: {"members": members, MESSAGE: text} for client, text in said.items()}
            return self._hear(self.ask(kind, fields, tensors))

        try:
            heard = tell(KEYS, dict.fromkeys(clients, b""), {})
            heard = tell(SHARES, dict.fromkeys(heard, collector.keys(heard)), {})
            heard = tell(MASKED, collector.shares(heard), encode(shared))
            heard = tell(UNMASK, dict.fromkeys(heard, collector.masked(heard)), {})
            total, arrived = collector.unmask(heard)
        finally:
            self.failed |= collector.refused
        return codec.decode(total, shared, seconds=0.0), arrived

    def _hear(self, answers: Mapping[int, Payload | str]) -> dict[int, bytes]:
        heard = {}
        for client, answer in answers.items():
            try:
                heard[client] = _message(done(answer))
                self.bytes_up[client] = self.bytes_up.get(client, 0) + len(heard[client])
            except UserError as refusal:
                self.failed[client] = str(refusal)
        return heard


def _message(answer: Payload) -> bytes:
    if answer.tensors.keys() != {MESSAGE}:
        raise UserError("sent no message of secure aggregation.")
    return answer.tensors[MESSAGE].data
