"""Which actor takes which item (a client): the one that has its features in its cache, and idle ones take from others.

No result depends on this, since a client's update is the same wherever it is trained; so it may depend on time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)
CHUNK = 0.1  # seconds of work that are sent at a time
MOST = 64  # items that are sent at a time
AHEAD = 0.05  # an actor with fewer seconds of work under way gets more, so that it does not wait for the driver
UNKNOWN = 1.0  # seconds of an item while nothing is measured


@dataclass
class Homes:
    """The actor to which an item belongs, and the items whose features an actor has in its cache."""

    home: dict[Hashable, int] = field(default_factory=dict)
    seen: dict[int, set[Hashable]] = field(default_factory=dict)

    def is_warm(self, actor: int, item: Hashable) -> bool:
        """Whether an actor has an item's features."""
        return item in self.seen.get(actor, ())


@dataclass
class Costs:
    """Measured seconds of items: "warm" those whose features were in the actor's cache, "cold" the others."""

    measured: dict[tuple[bool, Hashable], float] = field(default_factory=dict)  # by (warm, item)
    totals: dict[bool, tuple[float, int]] = field(default_factory=dict)  # by warm: the sum and the number of all

    def add(self, item: Hashable, seconds: float, *, warm: bool) -> None:
        """Note the seconds of an item."""
        self.measured[warm, item] = seconds
        total, count = self.totals.get(warm, (0.0, 0))
        self.totals[warm] = total + seconds, count + 1

    def estimate(self, item: Hashable, *, warm: bool) -> float:
        """The seconds of an item: the last measured ones, else the mean of all items."""
        if (warm, item) in self.measured:
            return self.measured[warm, item]
        total, count = self.totals.get(warm, (0.0, 0))
        if count:
            return total / count
        return self.estimate(item, warm=False) if warm else UNKNOWN


class Queues(Generic[Item]):
    """The items of one call in a queue for each actor, until all are done."""

    def __init__(self, items: Iterable[Item], actors: Sequence[int], homes: Homes, costs: Costs) -> None:
        self.homes, self.costs = homes, costs
        self.waiting: dict[int, deque[Item]] = {actor: deque() for actor in actors}
        self.lost: set[int] = set()  # actors that are gone: what waits for them is anyone's
        self._estimates: dict[Item, float] = {}
        self._waiting_seconds = dict.fromkeys(actors, 0.0)
        self._sent_seconds = dict.fromkeys(actors, 0.0)
        for item in items:
            actor = homes.home.get(item, -1)
            if actor not in self.waiting:
                actor = min(self.waiting, key=lambda one: (self._waiting_seconds[one], one))
            self._append(actor, item)

    def __len__(self) -> int:
        return sum(map(len, self.waiting.values()))

    def take(self, actor: int) -> list[Item]:
        """The next items to send to an actor: its own, else some of another's, if that gains time; none if busy."""
        if self._sent_seconds[actor] >= AHEAD:
            return []
        own = self.waiting[actor]
        taken = self._next(actor, own.popleft, len(own)) if own else self._steal(actor)
        for item in taken:
            self._sent_seconds[actor] += self._estimates[item]
        return taken

    def finish(self, actor: int, item: Item, seconds: float | None) -> None:
        """An item is done; `seconds` are those that it took, if they are known."""
        self._sent_seconds[actor] -= self._estimates[item]
        if seconds is not None:
            self.costs.add(item, seconds, warm=self.homes.is_warm(actor, item))
        self.homes.seen.setdefault(actor, set()).add(item)

    def give_back(self, actor: int, items: Iterable[Item]) -> None:
        """Items that were sent to an actor wait again."""
        for item in items:
            self._sent_seconds[actor] -= self._estimates[item]
            self._append(actor, item)

    def lose(self, actor: int) -> None:
        """An actor is gone, and the features in its cache with it."""
        self.lost.add(actor)
        self.homes.seen.pop(actor, None)

    def _steal(self, actor: int) -> list[Item]:
        """Items from the end of the longest queue, if they would wait longer there than they take here."""
        victim = max(self.waiting, key=lambda one: (bool(self.waiting[one]), self._left(one)))
        queue = self.waiting[victim]
        if not queue or self._left(victim) <= self.costs.estimate(queue[-1], warm=self.homes.is_warm(actor, queue[-1])):
            return []
        stolen = self._next(victim, queue.pop, math.ceil(len(queue) / 2))
        for item in stolen:
            self.homes.home[item] = actor
        return stolen

    def _next(self, actor: int, pop: Callable[[], Item], most: int) -> list[Item]:
        """One item, or several that take `CHUNK` seconds together, from the queue of an actor."""
        taken: list[Item] = []
        seconds = 0.0
        while len(taken) < min(most, MOST) and seconds < CHUNK:
            item = pop()
            taken.append(item)
            self._waiting_seconds[actor] -= self._estimates[item]
            seconds += self.costs.estimate(item, warm=self.homes.is_warm(actor, item))
        return taken

    def _append(self, actor: int, item: Item) -> None:
        self.homes.home[item] = actor
        self._estimates[item] = self.costs.estimate(item, warm=self.homes.is_warm(actor, item))
        self.waiting[actor].append(item)
        self._waiting_seconds[actor] += self._estimates[item]

    def _left(self, actor: int) -> float:
        return math.inf if actor in self.lost else self._waiting_seconds[actor] + self._sent_seconds[actor]
