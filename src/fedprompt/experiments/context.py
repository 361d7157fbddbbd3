"""The context of a run: its folder, experiment and test sets, the transport to clients, and progress callbacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Examples
from fedprompt.experiments.experiment import Experiment
from fedprompt.experiments.plan import Trial
from fedprompt.experiments.test_sets import TestSet
from fedprompt.federated.evaluate import Score
from fedprompt.federated.rounds import RoundNotes, Transport
from fedprompt.methods.base import Method
from fedprompt.records.checkpoints import Checkpoint
from fedprompt.records.events import ScoreEvent
from fedprompt.records.run_folder import RunFolder
from fedprompt.updates import State


class RoundKeptInterrupt(KeyboardInterrupt):
    """Ctrl-C ended a run; the last finished round of the trial in training is scored and its adapter saved."""


class RunCallbacks:
    """Callbacks on the progress of a run. These do nothing; a subclass overrides what it wants to know."""

    def on_step(self, text: str) -> None:
        """A step of the run begins that may take long, such as opening data or scoring."""

    def on_message(self, text: str) -> None:
        """Information for the user."""

    def on_warning(self, text: str) -> None:
        """Something that the user should look at; the run continues."""

    def on_progress(self, done: int, total: int) -> None:
        """Progress within the current step, where it is known."""

    def on_trial(self, name: str, rounds: int, done: int) -> None:
        """A trial, named as in tables, begins or continues after `done` of its rounds; without training it has none."""

    def on_client(self, done: int, total: int) -> None:
        """A client of the round has finished."""

    def on_round(self, number: int, loss: float | None) -> None:
        """A round is finished and its checkpoint saved; `loss` is the mean training loss, None without an update."""

    def on_score(self, score: ScoreEvent) -> None:
        """A model was scored on a test set."""

    def stops(self, number: int) -> bool:
        """Whether the training of the trial ends after this round."""
        return False

    def on_interrupt(self, number: int) -> bool:
        """Ctrl-C ended the training of a trial after this round; whether it is scored before the run ends."""
        return False


class JoinedCallbacks(RunCallbacks):
    """Calls several callbacks, in their order."""

    def __init__(self, listeners: Sequence[RunCallbacks]) -> None:
        self._listeners = tuple(listeners)

    def on_step(self, text: str) -> None:
        """Tell all of the step."""
        for listener in self._listeners:
            listener.on_step(text)

    def on_message(self, text: str) -> None:
        """Tell all of the message."""
        for listener in self._listeners:
            listener.on_message(text)

    def on_warning(self, text: str) -> None:
        """Tell all of the warning."""
        for listener in self._listeners:
            listener.on_warning(text)

    def on_progress(self, done: int, total: int) -> None:
        """Tell all of the progress."""
        for listener in self._listeners:
            listener.on_progress(done, total)

    def on_trial(self, name: str, rounds: int, done: int) -> None:
        """Tell all of the trial."""
        for listener in self._listeners:
            listener.on_trial(name, rounds, done)

    def on_client(self, done: int, total: int) -> None:
        """Tell all of the client."""
        for listener in self._listeners:
            listener.on_client(done, total)

    def on_round(self, number: int, loss: float | None) -> None:
        """Tell all of the round."""
        for listener in self._listeners:
            listener.on_round(number, loss)

    def on_score(self, score: ScoreEvent) -> None:
        """Tell all of the score."""
        for listener in self._listeners:
            listener.on_score(score)

    def stops(self, number: int) -> bool:
        """Whether one of them ends the training."""
        asked = [listener.stops(number) for listener in self._listeners]  # every listener, whatever others say
        return any(asked)

    def on_interrupt(self, number: int) -> bool:
        """Ask all whether the last finished round is scored."""
        asked = [listener.on_interrupt(number) for listener in self._listeners]
        return any(asked)


NO_CALLBACKS = RunCallbacks()


class RunTransport(Transport, Protocol):
    """A transport with what a run needs besides: personal states to checkpoint, notes to record, models to score."""

    method: Method
    personal: dict[int, State]  # by client, where this process holds them
    notes: RoundNotes  # of the last round

    @property
    def owners(self) -> Sequence[int | None]:
        """Whose models are scored here: every client's if tensors are personal, else None for the shared model."""
        ...

    def restore(self, shared: State, client: int | None = None) -> Method:
        """The method with the shared state and a client's personal one; without a client, the initial one."""
        ...

    def predict(self, clip: Clip, shared: State, owner: int | None, examples: Examples, *, batch_size: int) -> Tensor:
        """Logits [N, C] of an owner's model for examples; UserError if one is not finite."""
        ...

    def num_examples(self, client: int) -> int:
        """Number of a client's training images, or a lower bound of it."""
        ...

    def validate(self, round_number: int, shared: State, clients: Sequence[int]) -> dict[int, Score]:
        """Score the shared state, with each client's personal one, on the held-out images of those that have any."""
        ...


@dataclass(frozen=True)
class RunContext:
    """What every step of a run needs."""

    run: RunFolder
    experiment: Experiment
    test_sets: tuple[TestSet, ...]
    callbacks: RunCallbacks
    make_transport: TransportFactory


# Makes the transport of a trial that starts from a checkpoint: to simulated clients, or to sites over a network.
TransportFactory = Callable[[RunContext, Trial, Method, Checkpoint], RunTransport]
