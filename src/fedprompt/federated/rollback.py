"""Rollback of a round whose result makes honest clients' next losses not finite or many times as large.

The round is computed again without the updates whose changes stand out, and their clients are held to a tighter norm
from then on. Over a minority of adversaries these are theirs: honest clients' own median length is the measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedprompt.federated.history import History
from fedprompt.federated.server import Outcome, Server
from fedprompt.updates import AGGREGATE_CLIENT, AggregationRule, State, Update


@dataclass(frozen=True)
class Finished:
    """A round that can be computed again: the state and memory before it, the clients asked, and the updates used.

    `updates` is None where a resumed run has only the checkpoint before; such a round is undone as a whole.
    """

    number: int
    shared: State
    memory: State
    asked: Sequence[int] = ()
    updates: Sequence[Update] | None = None
    lengths: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Repaired:
    """A round computed again, and why each suspect's update is left out of it."""

    finished: Finished
    outcome: Outcome
    suspects: Mapping[int, str]


def repair(server: Server, aggregate: AggregationRule, last: Finished | None, why: str) -> Repaired | None:
    """Compute a round again without its suspects; None if there are none, so that nobody is accused.

    `why` says how the round after it failed.
    """
    if last is None or not server.limits.norm:
        return None
    if last.updates is None:
        return Repaired(last, Outcome(last.shared, last.memory, ()), {})
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
