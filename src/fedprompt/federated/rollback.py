"""Rollback of a round whose result makes honest clients' next losses not finite or many times as large.

The round is computed again without the updates whose changes stand out, and their clients are held to a tighter norm
from then on. Over a minority of adversaries these are theirs: honest clients' own median length is the measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from fedprompt.federated.history import History
from fedprompt.federated.server import Outcome, Server
from fedprompt.updates import AGGREGATE_CLIENT, AggregationRule, State, Update


@dataclass(frozen=True)
class Finished:
    """A round that can be computed again: the state and memory before it, the clients asked, and the updates used.

    It is part of a checkpoint, so that a resumed run rolls back what one that never stopped does. `lengths` are the L2
    norms of the updates' changes. The updates have no personal tensors.
    """

    number: int
    shared: State
    memory: State
    asked: Sequence[int]
    updates: Sequence[Update]
    lengths: Mapping[int, float]

    @classmethod
    def of(cls, tensors: State) -> Finished | None:
        """The round that `tensors` made these of; None if there are none."""
        if not tensors:
            return None
        parts: dict[str, State] = {}
        for address, tensor in tensors.items():
            part, _, name = address.partition("/")
            parts.setdefault(part, {})[name] = tensor
        plain = {name: tensor.tolist() for name, tensor in parts["round"].items()}
        updates = [
            Update(client, num_examples, parts.get(f"update {client}", {}), {}, loss, 0.0)
            for client, num_examples, loss in zip(plain["clients"], plain["examples"], plain["losses"], strict=True)
        ]
        lengths = dict(zip(plain["clients"], plain["lengths"], strict=True))
        (number,) = plain["number"]
        return cls(number, parts["shared"], parts.get("memory", {}), plain["asked"], updates, lengths)

    def tensors(self) -> State:
        """The round as tensors of their own, for a checkpoint."""
        clients = [update.client for update in self.updates]
        integers = {
            "number": [self.number],
            "asked": self.asked,
            "clients": clients,
            "examples": [update.num_examples for update in self.updates],
        }
        floats = {
            "losses": [update.loss for update in self.updates],
            "lengths": [self.lengths[client] for client in clients],
        }
        plain = {name: torch.tensor(list(values), dtype=torch.int64) for name, values in integers.items()}
        plain |= {name: torch.tensor(values, dtype=torch.float64) for name, values in floats.items()}
        parts = {"round": plain, "shared": self.shared, "memory": self.memory}
        parts |= {f"update {update.client}": update.shared for update in self.updates}
        return {f"{part}/{name}": tensor.clone() for part, state in parts.items() for name, tensor in state.items()}


@dataclass(frozen=True)
class Repaired:
    """A round computed again, and why each suspect's update is left out of it."""

    finished: Finished
    outcome: Outcome
    suspects: Mapping[int, str]


def repairable(
    server: Server, number: int, shared: State, memory: State, outcome: Outcome, *, asked: Sequence[int]
) -> Finished | None:
    """A round as `repair` takes it, with the state and memory before it; None if no change stands out."""
    if not server.history(memory).suspects(outcome.lengths):
        return None
    updates = [replace(update, personal={}) for update in outcome.used]
    return Finished(number, shared, memory, asked, updates, outcome.lengths)


def repair(server: Server, aggregate: AggregationRule, last: Finished | None, why: str) -> Repaired | None:
    """Compute a round again without its suspects; None if there are none, so that nobody is accused.

    `why` says how the round after it failed.
    """
    if last is None or not server.limits.norm:
        return None
    history = server.history(last.memory)
    suspects = history.suspects(last.lengths)
    if not suspects:
        return None
    kept = [update for update in last.updates if update.client not in suspects]
    outcome = server.combine(aggregate, last.shared, kept, last.memory, asked=last.asked)
    known = server.history(outcome.memory)
    caught = replace(known, caught=known.caught | suspects - {AGGREGATE_CLIENT})
    outcome = replace(outcome, memory=server.remember(outcome.memory, caught))
    reasons = {client: _reason(last, client, history, why) for client in suspects}
    return Repaired(replace(last, updates=kept, lengths=outcome.lengths), outcome, reasons)


def _reason(last: Finished, client: int, history: History, why: str) -> str:
    others = [length for other, length in last.lengths.items() if other != client]
    usual = history.usual(others) or min(others, default=0.0)
    times = f"{last.lengths[client] / usual:.3g} times as long as usual" if usual else "the only one"
    return f"rolled back: its change in round {last.number} was {times}, and after it {why}."
