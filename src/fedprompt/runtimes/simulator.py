"""The simulator: all clients in one process, one after another, with one backbone and one method in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Examples
from fedprompt.federated.attacks import Adversaries
from fedprompt.federated.client import Client, TrainSettings, train_client
from fedprompt.federated.evaluate import Score, evaluate, predict, validate
from fedprompt.federated.rounds import RoundNotes, initial_state
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.federated.secure.simulation import simulate
from fedprompt.methods.base import Method
from fedprompt.updates import State, Update


class Simulator:
    """A transport that trains and evaluates the clients in this process.

    `clients[id]` gives the client of that id; the sequence may be lazy, since one client is read at a time. `method`
    must be fresh: its personal tensors are the initial ones of every client. `personal` (client id -> state) goes into
    a checkpoint with the round and its shared state. `on_client(done, total)` reports progress. Adversaries poison
    their data or updates; with `secure`, only the mean of the updates reaches the server.
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
        self.notes = RoundNotes()  # of the last round
        self.on_client = on_client
        self.adversaries = adversaries
        self.secure = secure
        self._personal_start = initial_state(method)[1]
        self._before = dict(self.personal)  # the last `train`

    def train(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Update]:
        """Train these clients in turn. Personal states change when all are done; an interrupted round has no effect.

        A personal state that is not finite is not kept: the server refuses its update, and the client goes on from the
        state before.
        """
        self._before = dict(self.personal)
        updates = self.train_each(round_number, shared, clients)
        self.personal.update((update.client, update.personal) for update in updates if keeps_personal(update))
        if self.adversaries is not None:
            updates = self.adversaries.poison_updates(round_number, shared, updates)
        if self.secure is not None:
            updates, self.notes = simulate(self.secure, round_number, shared, updates)
        return updates

    def train_each(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Update]:
        """The updates that these clients train, one after another, before any attack; no personal state changes."""
        updates = []
        for done, client in enumerate(clients, start=1):
            updates.append(
                train_client(
                    self.method,
                    self.clip,
                    self._client(client),
                    shared=shared,
                    personal=self.personal.get(client, self._personal_start),
                    round_number=round_number,
                    settings=self.settings,
                )
            )
            self._report_progress(done, len(clients))
        return updates

    def undo(self) -> None:
        """Give back the personal states from before the last `train`."""
        self.personal = dict(self._before)

    def evaluate(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Score]:
        """Score each of these clients that has test images, over its own candidate classes."""
        scores = []
        for done, number in enumerate(clients, start=1):
            client = self.clients[number]
            if client.test is not None:
                self.restore(shared, number)
                scores.append(
                    evaluate(self.method, self.clip, client.test, name=client.name, batch_size=self.settings.batch_size)
                )
            self._report_progress(done, len(clients))
        return scores

    def validate(self, round_number: int, shared: State, clients: Sequence[int]) -> dict[int, Score]:
        """Scores, by client, on the held-out images of those that have any."""
        scores = {}
        for number in clients:
            client = self.clients[number]
            if client.held_out:
                method = self.restore(shared, number)
                scores[number] = validate(method, self.clip, client, batch_size=self.settings.batch_size)
        return scores

    def restore(self, shared: State, client: int | None = None) -> Method:
        """The method with the shared state and a client's personal state, the initial one if `client` is None."""
        personal = self._personal_start if client is None else self.personal.get(client, self._personal_start)
        self.method.load_state_dict({**shared, **personal})
        return self.method

    def predict(self, clip: Clip, shared: State, owner: int | None, examples: Examples, *, batch_size: int) -> Tensor:
        """Logits [N, C] of the owner's model for examples."""
        return predict(self.restore(shared, owner), clip, examples.images, examples.space, batch_size=batch_size)

    @property
    def owners(self) -> Sequence[int | None]:
        """Whose models can be scored: every client's if some parameters are personal, else the shared one (None)."""
        named = self.method.named_parameters()
        personal = any(name.startswith(self.method.personal) for name, _ in named)
        return range(len(self.clients)) if personal else (None,)

    def num_examples(self, client: int) -> int:
        """The number of a client's training images."""
        return len(self.clients[client].train)

    def _client(self, number: int) -> Client:
        client = self.clients[number]
        if self.adversaries is None:
            return client
        return replace(client, train=self.adversaries.poison_data(number, client.train))

    def _report_progress(self, done: int, total: int) -> None:
        if self.on_client is not None:
            self.on_client(done, total)


def keeps_personal(update: Update) -> bool:
    """Whether a client goes on from the personal state of an update: it has one, and all of it is finite."""
    return bool(update.personal) and all(tensor.isfinite().all() for tensor in update.personal.values())
