"""The round loop: sample clients, have a transport train them, aggregate their updates at the server."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Protocol

import torch

from fedprompt.arguments import require, shown, whole
from fedprompt.errors import NotFiniteError, UserError, plural
from fedprompt.federated.evaluate import Score
from fedprompt.federated.rollback import Finished, repair, repairable
from fedprompt.federated.server import Server
from fedprompt.methods.base import Method
from fedprompt.seeding import stream
from fedprompt.updates import State, Update

BAD_ROUNDS = 3  # consecutive rounds without a usable update, after which a run stops with the reasons


@dataclass(frozen=True)
class Round:
    """One finished round: the clients asked, the updates used, and the shared state after it.

    `refused` gives the reason for each client whose update was not used; `skipped`, why the whole round changed
    nothing. `memory` is that of the server; with `suspected`, the shared and the personal states it makes a checkpoint.
    A round whose clients show that round `rolled_back` was poisoned changes nothing itself: its `shared` state is that
    round's, computed again without the updates of the clients in `refused`. `suspected` is the round that the next one
    may roll back, if there is one.
    """

    number: int
    clients: tuple[int, ...]
    updates: tuple[Update, ...]
    shared: State
    seconds: float
    memory: State = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)
    skipped: str = ""
    rolled_back: int = 0
    suspected: Finished | None = None

    def __repr__(self) -> str:
        used = f"{len(self.updates)} of {plural(len(self.clients), 'update')} used"
        return f"Round {self.number}: {used}{f', {self.skipped}' if self.skipped else ''}, {self.seconds:.1f} s"


@dataclass(frozen=True)
class RoundNotes:
    """What a transport records of its last round beyond the updates; None where the updates say it.

    `failed` says per client why its update was not used ("code: sentence"); `skipped`, why no update of the round
    counts. `losses` and `bytes_up` replace those of the updates. `site_seconds` and `validation` are what sites
    report, `kept` the sites whose update counts.
    """

    failed: Mapping[int, str] = field(default_factory=dict)
    skipped: str = ""
    losses: Mapping[int, float] | None = None
    bytes_up: Mapping[int, int] | None = None
    site_seconds: Mapping[int, float] | None = None
    validation: Mapping[int, float | None] | None = None
    kept: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Start:
    """Where to resume: the number of the last finished round, and the shared state and server memory after it.

    `suspected` is the round that the next one may roll back, if there is one.
    """

    round_number: int
    shared: State
    memory: State = field(default_factory=dict)
    suspected: Finished | None = None


class Transport(Protocol):
    """How the round loop reaches the clients; a transport also keeps their personal states."""

    def train(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Update]:
        """Train these clients from the shared state; a client that did not answer is missing from the list.

        Raises NotFiniteError, and changes no personal state, if the shared state makes the losses or updates of most
        clients that answered not finite (`screening.is_poisoned`); fewer are left out.
        """
        ...

    def undo(self, clients: Iterable[int]) -> None:
        """Give these clients, whose updates are not used, back their personal states from before the last `train`."""
        ...

    def evaluate(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Score]:
        """Score the shared state, with each client's personal one, on each client's own test images."""
        ...


def initial_state(method: Method) -> tuple[State, State]:
    """Copies of a fresh method's state as (shared, personal): the values that every client starts from."""
    state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in method.state_dict().items()}
    personal = {name: tensor for name, tensor in state.items() if name.startswith(method.personal)}
    shared = {name: state[name] for name, _ in method.named_parameters() if name not in personal}
    for name in state.keys() - shared.keys() - personal.keys():
        raise UserError(
            f"{type(method).__name__} keeps the buffer {name!r}, which is neither trained nor personal; "
            "name its prefix in `personal` or register it with persistent=False."
        )
    return shared, personal


def sample(clients: Sequence[int], fraction: float, *, seed: int, round_number: int) -> tuple[int, ...]:
    """Sample max(floor(fraction * N), 1) clients for a round, without replacement, sorted by id."""
    size = max(math.floor(fraction * len(clients) + 1e-9), 1)  # 0.29 * 100 is 28.999999999999996
    order = torch.randperm(len(clients), generator=stream(seed, "sample", round_number))
    pool = sorted(clients)
    return tuple(sorted(pool[position] for position in order[:size].tolist()))


def federate(  # noqa: PLR0913  (the loop's numbers are what a reader wants to see at the call)
    method: Method,
    transport: Transport,
    *,
    clients: Sequence[int],
    rounds: int,
    fraction: float = 1.0,
    seed: int,
    server: Server | None = None,
    start: Start | None = None,
    admit: Callable[[int, Sequence[int]], bool] | None = None,
) -> Iterator[Round]:
    """Yield rounds 1..rounds, or those after `start`, each with the new shared state.

    Random draws depend on (seed, round) only and sums run in client order, so resuming from a yielded round gives the
    same bits as never having stopped, provided the transport's personal states are those of that round. `method` gives
    the initial shared state and the aggregation rule. `admit(round, clients)` is called before each round; False ends
    the run. A round is rolled back if the next one shows that it was poisoned. Raises UserError with the reasons when
    no update could be used in three consecutive rounds, and at once for an argument of another type.
    """
    require(method, Method, "method", "make one from its class, such as PromptFL(clip, generator=...)")
    if not (callable(getattr(transport, "train", None)) and callable(getattr(transport, "undo", None))):
        raise UserError(f"`transport` is {shown(transport)}; give one, such as Simulator(method, clip, clients, ...).")
    _check_ids(clients)
    plan = _Plan(whole(rounds, "rounds", least=0), fraction, whole(seed, "seed", least=0))
    return _rounds(method, transport, clients, plan, server or Server(), start, admit)


def _check_ids(clients: Sequence[int]) -> None:
    if isinstance(clients, str) or not isinstance(clients, Sequence) or not clients:
        raise UserError(f"`clients` is {shown(clients)}; give the ids of at least one client, such as range(10).")
    if wrong := next((one for one in clients if isinstance(one, bool) or not isinstance(one, Integral)), None):
        raise UserError(f"`clients` holds {shown(wrong)}; give the ids of clients, such as range(len(clients)).")


@dataclass(frozen=True)
class _Plan:
    """How many rounds there are, which share of the clients is asked in each, and the seed of the draws."""

    rounds: int
    fraction: float
    seed: int


def _rounds(  # noqa: PLR0913  (as `federate`)
    method: Method,
    transport: Transport,
    clients: Sequence[int],
    plan: _Plan,
    server: Server,
    start: Start | None,
    admit: Callable[[int, Sequence[int]], bool] | None,
) -> Iterator[Round]:
    bad, aggregate = 0, type(method).aggregate
    last = start or Start(0, initial_state(method)[0])
    for number in range(last.round_number + 1, plan.rounds + 1):
        started, undone, suspected = time.perf_counter(), 0, last.suspected
        chosen = sample(clients, plan.fraction, seed=plan.seed, round_number=number)
        if admit is not None and not admit(number, chosen):
            return
        answers = _train(transport, server, number, last, chosen)
        out = server.combine(aggregate, last.shared, answers.updates, last.memory, asked=chosen)
        is_bad = bool(out.refused) and not out.used
        why = answers.poisoned or "no update could be used" * is_bad
        if why and (fixed := repair(server, aggregate, suspected, why)) is not None:
            suspected, undone = fixed.finished, fixed.finished.number
            skipped = f"round {undone} was rolled back, because after it {why}"
            out = replace(fixed.outcome, used=(), refused=fixed.suspects, skipped=skipped)
        elif answers.error is not None:
            raise answers.error
        else:
            if out.used:
                suspected = repairable(server, number, last.shared, last.memory, out, asked=chosen)
            bad = bad + 1 if is_bad else 0
        # A personal state that was trained from a poisoned shared one must not outlive it.
        transport.undo(out.refused if out.used else chosen)
        if bad == BAD_ROUNDS:
            reasons = "; ".join(f"client {client}: {reason}" for client, reason in out.refused.items())
            raise UserError(f"No update could be used in {bad} rounds in a row ({reasons}) Correct that, then resume.")
        last = Start(number, out.shared, out.memory, suspected)
        seconds = time.perf_counter() - started
        yield Round(
            number, chosen, out.used, out.shared, seconds, out.memory, out.refused, out.skipped, undone, suspected
        )


@dataclass(frozen=True)
class _Answers:
    """A round's updates, sorted by client; or the error that was raised in place of them.

    `poisoned` says why the shared state from which the clients trained must have been poisoned, "" if it was not.
    """

    updates: Sequence[Update] = ()
    poisoned: str = ""
    error: NotFiniteError | None = None


def _train(transport: Transport, server: Server, number: int, last: Start, chosen: Sequence[int]) -> _Answers:
    try:
        updates = sorted(transport.train(number, last.shared, chosen), key=lambda update: update.client)
    except NotFiniteError as error:
        return _Answers(poisoned="losses were not finite", error=error)
    return _Answers(updates, server.history(last.memory).exploded(updates))
