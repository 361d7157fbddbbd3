"""What every step of a run works with, and whoever looks on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fedprompt.experiments.experiment import Experiment, Trial
from fedprompt.experiments.test_sets import TestSet
from fedprompt.federated.rounds import Transport
from fedprompt.methods.base import Method
from fedprompt.records.run_folder import Checkpoint, RunFolder
from fedprompt.updates import State


class RunCallbacks:
    """Whoever looks on while a run goes: every step is told here. This one does nothing."""

    def step(self, text: str) -> None:
        """Something that takes a while begins."""

    def said(self, text: str) -> None:
        """Something that is good to know."""

    def warn(self, text: str) -> None:
        """Something is odd, but the run goes on."""

    def moved(self, done: int, total: int) -> None:
        """How far a step has come, if it can tell."""

    def trial(self, name: str, rounds: int, done: int) -> None:
        """A trial begins, or goes on after `done` rounds."""

    def client(self, done: int, total: int) -> None:
        """A client of the round has answered."""

    def round(self, number: int, loss: float | None) -> None:
        """A round is recorded and kept."""


NO_CALLBACKS = RunCallbacks()


class RunTransport(Transport, Protocol):
    """A transport that can be kept, asked and told of in a run's folder."""

    method: Method
    personal: dict[int, State]  # those that the server's side holds
    notes: Mapping[str, Any]  # what the line of the last round says besides the usual

    @property
    def owners(self) -> Sequence[int | None]:
        """Whose models are scored here: every client's where tensors are personal, else None: the one all share."""
        ...

    def restore(self, shared: State, client: int | None = None) -> Method:
        """The method with the shared state and a client's personal one, or the one that a new client starts from."""
        ...

    def num_examples(self, client: int) -> int:
        """How many training pictures a client has, at least."""
        ...


@dataclass(frozen=True)
class RunContext:
    """What every step of a run works with."""

    run: RunFolder
    experiment: Experiment
    asked: tuple[TestSet, ...]
    callbacks: RunCallbacks
    make_transport: TransportFactory


# How a trial reaches its clients, going on from a checkpoint: the clients of this process, or sites elsewhere.
TransportFactory = Callable[[RunContext, Trial, Method, Checkpoint], RunTransport]
