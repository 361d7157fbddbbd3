"""Secure aggregation simulated in one process: the real messages, as bytes, between clients and server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedprompt.federated.rounds import RoundNotes
from fedprompt.federated.screening import Limits, RefusedUpdateError, screen
from fedprompt.federated.secure.envelope import Step
from fedprompt.federated.secure.masks import MaskedVector
from fedprompt.federated.secure.secure_client import SecureClient
from fedprompt.federated.secure.secure_server import SecureServer
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.federated.secure.session import Identity, Session, state_digest
from fedprompt.federated.secure.vector import vector_length
from fedprompt.updates import State, Update

# (step, client) -> whether the client still answers in this step
Present = Callable[[Step, int], bool]


def everyone(step: Step, client: int) -> bool:
    """No client drops out."""
    return True


def local_session(
    clients: Sequence[int], *, threshold: int, length: int, run: str = "run", round_number: int = 1
) -> tuple[Session, dict[int, Identity]]:
    """A session of clients in this process, and their new identities."""
    identities = {client: Identity.generate() for client in clients}
    members = {client: identity.public for client, identity in identities.items()}
    return Session(run, round_number, members, threshold, length), identities


def simulate(
    secure: SecureSum,
    round_number: int,
    shared: State,
    updates: Sequence[Update],
    *,
    asked: Sequence[int] | None = None,
    present: Present = everyone,
) -> tuple[list[Update], RoundNotes]:
    """The mean of the updates as one update, or none if too few clients stayed, and notes for the round's record.

    The clients `asked` may be more than have an update.
    """
    # Each client screens its own update as the server would: nobody can do it later.
    asked = [update.client for update in updates] if asked is None else asked
    screened = screen(updates, shared, limits=Limits(), asked=asked)
    identities = {client: Identity.generate() for client in asked}
    secure = replace(secure, identities={client: one.public for client, one in identities.items()})
    codec = secure.codec(len(asked))
    bytes_up: dict[int, int] = {}
    try:
        session = secure.session(round_number, asked, length=vector_length(shared))
        vectors = {one.client: secure.add_noise(codec.encode(one, shared), session) for one in screened.accepted}
        received = state_digest(shared)
        exchange = Exchange(session, vectors, present, SecureServer(session), identities, received, bytes_up)
        total, arrived = exchange.run()
        cohort = codec.decode(total, shared, seconds=sum(update.seconds for update in updates))
    except RefusedUpdateError as abandoned:
        return [], RoundNotes(screened.refused, str(abandoned), losses={}, bytes_up=bytes_up)
    lost = dict.fromkeys(vectors.keys() - set(arrived), "secure: did not stay to the end.")
    failed = {**screened.refused, **lost, **exchange.server.refused}
    return [cohort], RoundNotes(failed, losses={}, bytes_up=bytes_up)


@dataclass
class Exchange:
    """The four steps between the server and clients that may drop out in any of them."""

    session: Session
    vectors: Mapping[int, MaskedVector]
    present: Present
    server: SecureServer
    identities: Mapping[int, Identity]
    received: bytes = b""  # hash of the shared state that all clients received
    bytes_up: dict[int, int] = field(default_factory=dict)

    def run(self) -> tuple[MaskedVector, tuple[int, ...]]:
        """The sum of the vectors that arrived, and their clients; RefusedUpdateError if the round is abandoned."""
        server, vectors = self.server, self.vectors
        clients = {number: SecureClient(number, self.session, self.identities[number]) for number in sorted(vectors)}
        shares = server.relay_shares(self._ask("share_keys", clients, lambda client: client.share_keys()))
        clients = {number: clients[number] for number in shares}
        inputs = self._ask(
            "masked_input",
            clients,
            lambda client: client.masked_input(shares[client.number], vectors[client.number], received=self.received),
        )
        survivors = server.collect_masked_inputs(inputs)
        clients = {number: clients[number] for number in inputs}
        signed = self._ask("consistency_check", clients, lambda client: client.consistency_check(survivors))
        signatures = server.collect_signatures(signed, received=self.received)
        clients = {number: clients[number] for number in signed if number not in server.refused}
        return server.unmask(self._ask("unmask", clients, lambda client: client.unmask(signatures)))

    def _ask(
        self, step: Step, clients: Mapping[int, SecureClient], answer: Callable[[SecureClient], bytes]
    ) -> dict[int, bytes]:
        answers = {}
        for number, client in clients.items():
            if self.present(step, number):
                try:
                    answers[number] = answer(client)
                except RefusedUpdateError as refusal:
                    self.server.refused[number] = str(refusal)
        for number, content in answers.items():
            self.bytes_up[number] = self.bytes_up.get(number, 0) + len(content)
        return answers
