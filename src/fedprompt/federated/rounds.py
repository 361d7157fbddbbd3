"""The round loop, written once: choose clients, let a transport train them, add up what they send."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from fedprompt.errors import UserError
from fedprompt.federated.evaluate import Score
from fedprompt.federated.server import Server
from fedprompt.methods.base import Method
from fedprompt.seeding import stream
from fedprompt.updates import State, Update

BAD_ROUNDS = 3  # in a row without one usable update, after which a run stops and says why


@dataclass(frozen=True)
class Round:
    """One finished round: who was asked, which updates were used, and the shared state after it.

    `refused` says of each client whose update was not used why; `skipped`, why the whole round changed nothing.
    `memory` is what the server's rule and optimiser remember: with shared and personal states it makes a checkpoint.
    """

    number: int
    clients: tuple[int, ...]
    updates: tuple[Update, ...]
    shared: State
    seconds: float
    memory: State = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)
    skipped: str = ""


@dataclass(frozen=True)
class Start:
    """Where to go on: the number of the last finished round, the shared state and the server's memory after it."""

    round_number: int
    shared: State
    memory: State = field(default_factory=dict)


class Transport(Protocol):
    """How the loop reaches its clients; it also keeps their personal states."""

    def train(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Update]:
        """Train these clients from the shared state; a client that did not answer is missing from the list."""
        ...

    def evaluate(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Score]:
        """Score the shared state, with each client's personal one, on each client's own test pictures."""
        ...


def initial_state(method: Method) -> tuple[State, State]:
    """Copy a fresh method's state as (shared, personal): values that every client starts from."""
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
    """Choose max(floor(fraction * N), 1) clients of a round without replacement, sorted by id."""
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

    Every draw is addressed by (seed, round) and sums run in client order, so going on from a yielded round gives the
    bits that never stopping gives, provided the transport's personal states are those of that round. `method` itself
    counts only as the first shared state. `admit(round, clients)` is asked before each round; False ends the run there.
    Raises UserError with the reasons when no update could be used in three rounds in a row.
    """
    server, bad = server or Server(), 0
    last = start or Start(0, initial_state(method)[0])
    for number in range(last.round_number + 1, rounds + 1):
        started = time.perf_counter()
        chosen = sample(clients, fraction, seed=seed, round_number=number)
        if admit is not None and not admit(number, chosen):
            return
        updates = sorted(transport.train(number, last.shared, chosen), key=lambda update: update.client)
        out = server.combine(type(method).aggregate, last.shared, updates, last.memory, asked=chosen)
        bad = bad + 1 if out.refused and not out.used else 0
        if bad == BAD_ROUNDS:
            reasons = "; ".join(f"client {client}: {reason}" for client, reason in out.refused.items())
            raise UserError(f"No update could be used in {bad} rounds in a row ({reasons}) Correct that, then resume.")
        last = Start(number, out.shared, out.memory)
        seconds = time.perf_counter() - started
        yield Round(number, chosen, out.used, out.shared, seconds, out.memory, out.refused, out.skipped)
