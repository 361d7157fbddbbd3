"""The round loop, written once: choose clients, let a transport train them, add up what they send."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from fedprompt.errors import UserError
from fedprompt.federated.aggregate import Weighting, check_update, weights_for
from fedprompt.federated.evaluate import Score
from fedprompt.methods.base import Method
from fedprompt.ops.averaging import State, Update
from fedprompt.seeding import stream


@dataclass(frozen=True)
class Round:
    """One finished round: who took part, what each sent, and the shared state after it."""

    number: int
    clients: tuple[int, ...]
    updates: tuple[Update, ...]
    shared: State
    seconds: float


@dataclass(frozen=True)
class Start:
    """Where to go on: the number of the last finished round and the shared state after it."""

    round_number: int
    shared: State


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


def federate(  # noqa: PLR0913  (the loop's five numbers are what a reader wants to see at the call)
    method: Method,
    transport: Transport,
    *,
    clients: Sequence[int],
    rounds: int,
    fraction: float = 1.0,
    seed: int,
    weighting: Weighting = "uniform",
    start: Start | None = None,
) -> Iterator[Round]:
    """Yield rounds 1..rounds, or those after `start`, each with the new shared state.

    Every draw is addressed by (seed, round) and sums run in client order, so going on from a yielded round gives the
    bits that never stopping gives, provided the transport's personal states are those of that round. `method` itself
    counts only as the first shared state. Raises UserError naming a client whose update is not finite or does not fit.
    """
    last = start or Start(0, initial_state(method)[0])
    for number in range(last.round_number + 1, rounds + 1):
        started = time.perf_counter()
        chosen = sample(clients, fraction, seed=seed, round_number=number)
        updates = sorted(transport.train(number, last.shared, chosen), key=lambda update: update.client)
        for update in updates:
            check_update(update, last.shared)
        shared = type(method).aggregate(last.shared, updates, weights_for(updates, weighting))
        last = Start(number, shared)
        yield Round(number, chosen, tuple(updates), shared, time.perf_counter() - started)
