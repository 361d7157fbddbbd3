"""A round of secure aggregation with remote sites: four exchanges, the second of which includes the training."""

from __future__ import annotations

import secrets
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fedprompt.errors import UserError, refusing
from fedprompt.federated.secure.secure_server import SecureServer
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.federated.secure.session import state_digest
from fedprompt.federated.secure.vector import vector_length
from fedprompt.runtimes.payload import (
    CONSISTENCY_CHECK,
    MASKED_INPUT,
    MESSAGE,
    SHARE_KEYS,
    UNMASK,
    Fields,
    Payload,
    RawTensor,
    done,
)
from fedprompt.runtimes.tensor_codec import encode
from fedprompt.updates import State, Update

# (kind of request, fields per client, tensors for all of them) -> answer, or reason for none, per client
Ask = Callable[[str, Mapping[int, Fields], Mapping[str, RawTensor]], dict[int, Payload | str]]


@dataclass
class SecureRound:
    """The server's side of one round; afterwards `failed` gives the reason per dropout, `bytes_up` the bytes sent.

    `diverged` are the clients whose losses were not finite.
    """

    secure: SecureSum
    ask: Ask
    round_number: int
    failed: dict[int, str] = field(default_factory=dict)
    bytes_up: dict[int, int] = field(default_factory=dict)
    diverged: set[int] = field(default_factory=set)

    def run(self, shared: State, clients: Sequence[int]) -> tuple[Update, tuple[int, ...]]:
        """The mean update and its clients; UserError if too few stayed to the end."""
        codec, nonce, received = self.secure.codec(len(clients)), secrets.token_hex(16), state_digest(shared)
        length = vector_length(shared)
        server = SecureServer(self.secure.session(self.round_number, clients, length=length, nonce=nonce))

        def exchange(kind: str, messages: Mapping[int, bytes], tensors: Mapping[str, RawTensor]) -> dict[int, bytes]:
            texts = {client: b64encode(message).decode() for client, message in messages.items()}
            fields = {
                client: {"members": list(clients), "nonce": nonce, MESSAGE: text} for client, text in texts.items()
            }
            return self._messages(self.ask(kind, fields, tensors))

        try:
            answers = exchange(SHARE_KEYS, dict.fromkeys(clients, b""), {})
            answers = exchange(MASKED_INPUT, server.relay_shares(answers), encode(shared))
            answers = exchange(CONSISTENCY_CHECK, dict.fromkeys(answers, server.collect_masked_inputs(answers)), {})
            signatures = server.collect_signatures(answers, received=received)
            agreed = {client: signatures for client in answers if client not in server.refused}
            answers = exchange(UNMASK, agreed, {})
            total, arrived = server.unmask(answers)
        finally:
            self.failed |= server.refused
        return codec.decode(total, shared, seconds=0.0), arrived

    def _messages(self, answers: Mapping[int, Payload | str]) -> dict[int, bytes]:
        messages = {}
        for client, answer in answers.items():
            with refusing(self.failed, client, self.diverged):
                messages[client] = _message(done(answer))
                self.bytes_up[client] = self.bytes_up.get(client, 0) + len(messages[client])
        return messages


def _message(answer: Payload) -> bytes:
    if answer.tensors.keys() != {MESSAGE}:
        raise UserError("sent no message of secure aggregation.")
    return answer.tensors[MESSAGE].data
