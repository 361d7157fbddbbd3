"""All clients in one process: one backbone and one method object in memory, clients one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedprompt.clip.model import Clip
from fedprompt.federated.attacks import Adversaries
from fedprompt.federated.client import Client, TrainSettings, train_client
from fedprompt.federated.evaluate import Score, evaluate
from fedprompt.federated.rounds import initial_state
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.methods.base import Method
from fedprompt.updates import State, Update


class Simulator:
    """A transport that trains and scores clients here and now.

    `clients[id]` gives the client of that id; the sequence may be lazy, one client is asked for at a time. `method`
    must be fresh: its personal tensors are the start of every client that has none yet. `personal` (client id -> state)
    goes into a checkpoint with the round and its shared state; `on_client(done, total)` is told of progress.
    On their way to the server the updates of `adversaries` are forged, and `secure` leaves of all of them the mean alone.
    """

    def __init__(  # noqa: PLR0913  (the parts of a simulation, the last four optional)
        self,
        method: Method,
        clip: Clip,
        clients: Sequence[Client] | Mapping[int, Client],
        settings: TrainSettings,
        *,
        personal: Mapping[int, State] | None = None,
        on_client: Callable[[int, int], None] | None = None,
        adversaries: Adversaries | None = None,
        secure: SecureSum | None = None,
    ) -> None:
        self.method = method
        self.clip = clip
        self.clients = clients
        self.settings = settings
        self.personal: dict[int, State] = dict(personal or {})
        self.notes: Mapping[str, Any] = {}  # what a record of the last round should say besides the usual
        self.on_client = on_client
        self.adversaries = adversaries
        self.secure = secure
        self._personal_start = initial_state(method)[1]

    def train(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Update]:
        """Train these clients in turn; personal states change once all are done, an interrupted round never was."""
        updates = []
        for done, client in enumerate(clients, start=1):
            updates.append(
                train_client(
                    self.method,
                    self.clip,
                    self._taught(client),
                    shared=shared,
                    personal=self.personal.get(client, self._personal_start),
                    round_number=round_number,
                    settings=self.settings,
                )
            )
            self._tell(done, len(clients))
        self.personal.update((update.client, update.personal) for update in updates if update.personal)
        if self.adversaries is not None:
            updates = self.adversaries.forge(round_number, shared, updates)
        if self.secure is not None:
            updates, self.notes = self.secure(round_number, shared, updates)
        return updates

    def evaluate(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Score]:
        """Score each of these clients that has test pictures, over its own candidate list."""
        scores = []
        for done, number in enumerate(clients, start=1):
            client = self.clients[number]
            if client.test is not None:
                self.restore(shared, number)
                scores.append(
                    evaluate(self.method, self.clip, client.test, name=client.name, batch_size=self.settings.batch_size)
                )
            self._tell(done, len(clients))
        return scores

    def restore(self, shared: State, client: int | None = None) -> Method:
        """The method with the shared state and a client's personal one, or the one that a new client starts from."""
        personal = self._personal_start if client is None else self.personal.get(client, self._personal_start)
        self.method.load_state_dict({**shared, **personal})
        return self.method

    @property
    def owners(self) -> Sequence[int | None]:
        """Whose models can be scored: every client's where tensors are personal, else None: the one all share."""
        named = self.method.named_parameters()
        personal = any(name.startswith(self.method.personal) for name, _ in named)
        return range(len(self.clients)) if personal else (None,)

    def pictures(self, client: int) -> int:
        """How many training pictures a client has."""
        return len(self.clients[client].train)

    def _taught(self, number: int) -> Client:
        client = self.clients[number]
        return (
            client if self.adversaries is None else replace(client, train=self.adversaries.teach(number, client.train))
        )

    def _tell(self, done: int, total: int) -> None:
        if self.on_client is not None:
            self.on_client(done, total)
