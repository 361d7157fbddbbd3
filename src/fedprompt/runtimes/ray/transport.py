"""The transport to simulated clients on Ray: the simulator with its clients spread over a pool of actors."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Examples
from fedprompt.data.images import ImageSource
from fedprompt.errors import NotFiniteError, UserError
from fedprompt.federated.evaluate import Score, images_per_batch
from fedprompt.ops.metrics import require_finite
from fedprompt.runtimes.ray.actor import Part, Scoring, Stored, Task, Trained, pack, unpack
from fedprompt.runtimes.ray.alive import RayEndedError
from fedprompt.runtimes.ray.pool import Member, Pool
from fedprompt.runtimes.ray.queues import Costs
from fedprompt.runtimes.simulator import Simulator
from fedprompt.updates import State, Update


class OnRay(Simulator):
    """A simulator whose clients are trained and scored by the actors of a pool, with the same bits.

    The server's side, attacks on updates and secure sums among it, stays in this process, and so do the personal
    states, which go into checkpoints. An actor keeps those of the clients that it trained; one is sent only where a
    client goes to another actor, or its state was given back by `undo`. `trial` describes the trial to the setup of the
    actors, `sources` are the images of clients and test sets in the setup's order, and `simulator` is that of this
    process. `resume` is the command with which the run goes on after it was stopped.
    """

    def __init__(
        self, pool: Pool, trial: object, sources: Sequence[ImageSource], simulator: Simulator, *, resume: str = ""
    ) -> None:
        super().__init__(
            simulator.method,
            simulator.clip,
            simulator.clients,
            simulator.settings,
            personal=simulator.personal,
            on_client=simulator.on_client,
            adversaries=simulator.adversaries,
            secure=simulator.secure,
        )
        self.pool, self.resume = pool, resume
        with self._end_named("before its first round"):
            self.trial = pool.store(trial)
        self._sources = tuple(sources)
        self._versions: dict[int, tuple[int, State]] = {}  # of the personal states that were sent or received last
        self._costs = {kind: Costs() for kind in ("train", "evaluate", "validate", "predict")}

    def train_each(
        self, round_number: int, shared: State, clients: Sequence[int]
    ) -> Mapping[int, Update | NotFiniteError]:
        """The updates that these clients train on the actors, sorted as the clients.

        Raises any other error of the first client that has one, as a simulator in one process would.
        """
        found: dict[int, Update | NotFiniteError] = {}
        after = {client: self.pool.new_number() for client in clients}

        def receive(member: Member, client: int, answer: Trained | str) -> None:
            if isinstance(answer, str):
                found[client] = NotFiniteError(answer)
                return
            personal = unpack(answer.personal)
            tensors = {"shared": unpack(answer.shared), "personal": personal}
            found[client] = Update(client, answer.num_examples, **tensors, loss=answer.loss, seconds=answer.seconds)
            if personal:
                member.holds[self.trial.number, client] = after[client]

        self._ask("train", round_number, shared, clients, receive, after=after)
        for client, update in found.items():
            if isinstance(update, Update) and update.personal:
                self._versions[client] = after[client], update.personal
        return {client: found[client] for client in clients}

    def evaluate(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Score]:
        """Score each of these clients that has test images, over its own candidate classes."""
        found: dict[int, list[Score]] = {}

        def receive(_: Member, client: int, answer: list[Score]) -> None:
            found[client] = answer

        self._ask("evaluate", round_number, shared, clients, receive)
        return [score for client in clients for score in found[client]]

    def validate(self, round_number: int, shared: State, clients: Sequence[int]) -> dict[int, Score]:
        """Scores, by client, on the held-out images of those that have any."""
        found: dict[int, Score] = {}

        def receive(_: Member, client: int, answer: dict[int, Score]) -> None:
            found.update(answer)

        self._ask("validate", round_number, shared, clients, receive)
        return {client: found[client] for client in clients if client in found}

    def predict(self, clip: Clip, shared: State, owner: int | None, examples: Examples, *, batch_size: int) -> Tensor:
        """Logits [N, C] of the owner's model; the actors take whole batches of the images, so the bits are the same."""
        images = examples.images
        place = next((place for place, source in enumerate(self._sources) if source is images.source), None)
        if place is None or not len(images):
            return super().predict(clip, shared, owner, examples, batch_size=batch_size)
        size = images_per_batch(batch_size, examples.space)
        step = math.ceil(math.ceil(len(images) / size) / len(self.pool.members)) * size
        parts = {
            (place, images.rows[start], start): Part(
                place, images.rows[start : start + step], images.mirrored[start : start + step]
            )
            for start in range(0, len(images), step)
        }
        found: dict[Hashable, Tensor] = {}

        def submit(sent: Stored, member: Member, keys: Sequence[tuple[int, int, int]]) -> Any:
            task = Task(-1) if owner is None else self._task(member, owner)
            return member.actor.predict.remote(self.trial, sent, task, {key: parts[key] for key in keys}, where)

        where = Scoring(examples.space, batch_size)
        for _, answers in self._answers("predict", list(parts), shared, submit, when="while images were classified"):
            found.update((key, torch.tensor(logits)) for key, logits in answers)
        logits = torch.cat([found[key] for key in parts])  # [N, C]
        require_finite(logits, type(self.method).__name__, trained=bool(self.method.trainable()))
        return logits

    def _ask(
        self,
        kind: str,
        round_number: int,
        shared: State,
        clients: Sequence[int],
        receive: Callable[[Member, int, Any], None],
        *,
        after: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        """Call the actors' method `kind` for all clients; UserError of the first one that has an error."""
        errors: dict[int, UserError] = {}
        done = 0

        def submit(sent: Stored, member: Member, chunk: Sequence[int]) -> Any:
            tasks = [self._task(member, client, after.get(client, 0)) for client in chunk]
            return getattr(member.actor, kind).remote(self.trial, round_number, sent, tasks)

        for member, answers in self._answers(kind, clients, shared, submit, when=f"in round {round_number}"):
            for client, answer in answers:
                if isinstance(answer, UserError):
                    errors[client] = answer
                else:
                    receive(member, client, answer)
            done += len(answers)
            self._report_progress(done, len(clients))
        for client in clients:
            if client in errors:
                raise errors[client]

    def _answers(
        self,
        kind: str,
        items: Sequence[Hashable],
        shared: State,
        submit: Callable[[Stored, Member, Sequence[Any]], Any],
        *,
        when: str,
    ) -> Iterator[tuple[Member, list[Any]]]:
        """The actors' answers about items as they come, with the shared state put once for all."""
        with self._end_named(when):
            sent = self.pool.store(pack(shared))
            yield from self.pool.run(items, partial(submit, sent), self._costs[kind])

    @contextmanager
    def _end_named(self, when: str) -> Iterator[None]:
        """Say when Ray has ended, and how the run goes on."""
        try:
            yield
        except RayEndedError as error:
            go_on = f" Continue with {self.resume}." if self.resume else ""
            raise UserError(f"Ray has ended {when} ({error.reason}).{go_on}") from error

    def _task(self, member: Member, client: int, after: int = 0) -> Task:
        """The task of a client, with its personal state if the actor lacks that."""
        key, version = (self.trial.number, client), self._version(client)
        held = member.holds.pop(key, 0)  # after training it is unknown until the answer is here
        if version and not after:
            member.holds[key] = version
        content = pack(self.personal[client]) if version and held != version else None
        return Task(client, version, after, content)

    def _version(self, client: int) -> int:
        """The version of a client's personal state, 0 for the initial one."""
        state = self.personal.get(client)
        if state is None:
            return 0
        number, known = self._versions.get(client, (0, None))
        if known is not state:
            number = self.pool.new_number()
            self._versions[client] = number, state
        return number
