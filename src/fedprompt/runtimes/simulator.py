"""The simulator: all clients in one process, one after another, with one backbone and one method in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from fedprompt.arguments import require, shown
from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Examples
from fedprompt.errors import NotFiniteError, UserError
from fedprompt.federated.attacks import Adversaries
from fedprompt.federated.client import Client, TrainSettings, train_client
from fedprompt.federated.evaluate import Score, evaluate, predict, validate
from fedprompt.federated.rounds import RoundNotes, initial_state
from fedprompt.federated.screening import NotFiniteUpdateError, check_personal, is_finite, is_poisoned
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.federated.secure.simulation import simulate
from fedprompt.methods.base import Method
from fedprompt.runtimes.payload import DIVERGED_REASON
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
        require(method, Method, "method", "make one from its class, such as PromptFL(clip, generator=...)")
        require(clip, Clip, "clip", "open one with load_clip(...)")
        require(settings, TrainSettings, "settings", "make them with TrainSettings(rounds=...)")
        if isinstance(clients, str) or not hasattr(clients, "__getitem__"):
            raise UserError(f"`clients` is {shown(clients)}; give a sequence of them, as partition(data, ...).")
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

        As over sites, a client whose loss or personal state is not finite has no update; NotFiniteError if these, and
        those whose shared tensors are not finite, are most clients.
        """
        self._before = dict(self.personal)
        trained = self.train_each(round_number, shared, clients)
        diverged = {client: one for client, one in trained.items() if isinstance(one, NotFiniteError)}
        self.notes = RoundNotes(dict.fromkeys(diverged, DIVERGED_REASON))
        updates = [one for one in trained.values() if isinstance(one, Update)]
        if self.adversaries is not None:
            updates = self.adversaries.poison_updates(round_number, shared, updates)
        diverged |= {update.client: _not_finite(round_number, update) for update in updates if not is_finite(update)}
        if is_poisoned(diverged, len(clients)):
            raise diverged[min(diverged)]
        sent = [update for update in updates if update.client not in diverged]
        self.personal.update((update.client, update.personal) for update in sent if update.personal)
        if self.secure is None:
            return updates  # the server says which of them are not finite
        cohort, notes = simulate(self.secure, round_number, shared, sent, asked=clients)
        self.notes = replace(notes, failed={**notes.failed, **dict.fromkeys(diverged, DIVERGED_REASON)})
        return cohort

    def train_each(
        self, round_number: int, shared: State, clients: Sequence[int]
    ) -> Mapping[int, Update | NotFiniteError]:
        """By client, the updates that these train, one after another, before any attack; no personal state changes."""
        found: dict[int, Update | NotFiniteError] = {}
        for done, client in enumerate(clients, start=1):
            try:
                found[client] = update = self._update(round_number, shared, client)
                check_personal(update)
            except NotFiniteUpdateError:
                found[client] = _not_finite(round_number, update)
            except NotFiniteError as error:
                found[client] = error
            self._report_progress(done, len(clients))
        return found

    def _update(self, round_number: int, shared: State, client: int) -> Update:
        return train_client(
            self.method,
            self.clip,
            self._client(client),
            shared=shared,
            personal=self.personal.get(client, self._personal_start),
            round_number=round_number,
            settings=self.settings,
        )

    def undo(self, clients: Iterable[int]) -> None:
        """Give these clients back their personal states from before the last `train`."""
        for client in clients:
            self.personal.pop(client, None)
            if client in self._before:
                self.personal[client] = self._before[client]

    def evaluate(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Score]:
        """Score each of these clients that has test images, over its own candidate classes."""
        scores = []
        for done, number in enumerate(clients, start=1):
            client = self._find(number)
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
            client = self._find(number)
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
        return len(self._find(client).train)

    def _find(self, number: int) -> Client:
        try:
            return self.clients[number]
        except (LookupError, TypeError):
            raise UserError(
                f"There is no client {shown(number)}; there are {len(self.clients):,}, by their ids: "
                f"range({len(self.clients)})."
            ) from None

    def _client(self, number: int) -> Client:
        client = self._find(number)
        if self.adversaries is None:
            return client
        return replace(client, train=self.adversaries.poison_data(number, client.train))

    def _report_progress(self, done: int, total: int) -> None:
        if self.on_client is not None:
            self.on_client(done, total)


def _not_finite(round_number: int, update: Update) -> NotFiniteError:
    return NotFiniteError(
        f"Tensors of client {update.client} are not finite after training in round {round_number}; lower the learning "
        "rate."
    )
