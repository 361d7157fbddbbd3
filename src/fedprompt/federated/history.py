"""What a server remembers of a run's updates: usual lengths of changes and losses, which bound those of later rounds.

The bound on norms follows Sun et al. (2019), with the clients' own median length as its unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median, median_low

import torch

from fedprompt.updates import AGGREGATE_CLIENT, State, Update

FIRST_ROUNDS = 5  # rounds whose lengths are remembered
ENOUGH = 3  # lengths of which a median is taken: of fewer, one adversary could be the median
STANDS_OUT = 3.0  # times the usual length: suspected where the model breaks, and the limit of a client once caught
EXPLODED = 3.0  # times the median loss of the first round: the model that was sent is poisoned


@dataclass(frozen=True)
class History:
    """Lengths of the accepted changes of the first rounds, clients caught, and the median loss of the first round.

    It travels in a server's memory, so that a resumed run decides as one that never stopped.
    """

    lengths: tuple[float, ...] = ()
    rounds: int = 0
    caught: frozenset[int] = frozenset()
    loss: float = 0.0

    @classmethod
    def of(cls, memory: State) -> History:
        """The history in a part of a server's memory; empty before the first round."""
        if not memory:
            return cls()
        rounds, loss = memory["counts"].tolist()
        lengths, caught = memory["lengths"].tolist(), map(int, memory["caught"].tolist())
        return cls(tuple(lengths), int(rounds), frozenset(caught), loss)

    def memory(self) -> State:
        """The history as tensors."""
        numbers = {"counts": [self.rounds, self.loss], "lengths": self.lengths, "caught": sorted(self.caught)}
        return {name: torch.tensor(list(values), dtype=torch.float64) for name, values in numbers.items()}

    def usual(self, lengths: Iterable[float]) -> float | None:
        """The usual length of a change: the larger of this round's median and that of the first rounds.

        Changes of length 0 do not count, and each median needs three lengths; None without any.
        """
        pools = ([length for length in lengths if length], [length for length in self.lengths if length])
        return max((median(pool) for pool in pools if len(pool) >= ENOUGH), default=None)

    def too_long(self, lengths: Mapping[int, float], limit: float) -> dict[int, str]:
        """Client -> reason, for changes above `limit` usual lengths; of a client once caught, above STANDS_OUT."""
        usual = self.usual(lengths.values())
        found = {}
        for client, length in lengths.items() if limit else ():
            caught = client in self.caught
            times, middle = (min(limit, STANDS_OUT), usual or self._of_others(lengths)) if caught else (limit, usual)
            if middle is not None and length > times * middle:
                found[client] = (
                    f"norm: the change has length {length:.3g}; {times:g} medians of {middle:.3g} are allowed."
                )
        return found

    def _of_others(self, lengths: Mapping[int, float]) -> float | None:
        """A usual length where there are too few for `usual`, without the clients caught."""
        others = [*self.lengths, *(length for client, length in lengths.items() if client not in self.caught)]
        return median_low(others) if others else None

    def suspects(self, lengths: Mapping[int, float]) -> frozenset[int]:
        """The clients whose changes stand out; of two, the longer one may."""
        usual = self.usual(lengths.values())
        if usual is None:
            usual = median_low(lengths.values()) if len(lengths) > 1 else max(lengths.values(), default=0.0)
        return frozenset(client for client, length in lengths.items() if length > STANDS_OUT * usual)

    def exploded(self, updates: Sequence[Update]) -> str:
        """Why the clients' losses show that they received a poisoned model; "" if they do not."""
        losses = _losses(updates)
        if not losses or self.loss <= 0 or median_low(losses) <= EXPLODED * self.loss:
            return ""
        return f"the median loss rose to {median_low(losses):.3g}, from {self.loss:.3g} in the first round"

    def after(self, lengths: Mapping[int, float], updates: Sequence[Update]) -> History:
        """The history with a round's accepted updates, and their lengths if it is one of the first."""
        losses = _losses(updates)
        loss = self.loss or (median_low(losses) if losses else 0.0)
        if self.rounds >= FIRST_ROUNDS or not lengths:
            return replace(self, loss=loss)
        return replace(self, lengths=(*self.lengths, *lengths.values()), rounds=self.rounds + 1, loss=loss)


def _losses(updates: Sequence[Update]) -> list[float]:
    """The losses of single clients, if most of them give one; else none, as a few clients could say anything for all.

    A secure sum has one loss for all, which a single client can set.
    """
    known = [update.loss for update in updates if update.client != AGGREGATE_CLIENT and math.isfinite(update.loss)]
    return known if 2 * len(known) > len(updates) else []
