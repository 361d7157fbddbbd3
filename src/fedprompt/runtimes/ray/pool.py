"""A pool of actors: it sends them work from their queues, and goes on when one of them dies."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError

from fedprompt.config.recipe_tables import RuntimeTable
from fedprompt.errors import UserError, plural
from fedprompt.runtimes.ray.actor import Actor, Opened, Process, Setup, Stored, versions
from fedprompt.runtimes.ray.alive import NOTICE, POLL, Watch
from fedprompt.runtimes.ray.queues import Costs, Homes, Queues

START_TIMEOUT = 300.0  # seconds in which an actor must have got its place in the cluster
MOST_DEATHS = 5  # of actors in a row with one item, after which that is taken for the cause
LONGEST = 300  # characters of another program's error in a message
OPENING = "opening the backbone"  # the item of an actor that is not ready yet
LOST = (RayActorError, ObjectLostError, WorkerCrashedError, OutOfMemoryError)
MEMORY_ADVICE = "Give fewer runtime.actors, or a smaller backbone.memory_gb or train.batch_size, and go on from there."


@dataclass(eq=False)
class Member:
    """An actor of the pool; `holds` are the versions of personal states that it has, by (number of trial, client)."""

    number: int
    actor: Any
    node: str = ""
    process: int = 0
    answered: float = 0.0  # when it answered last
    holds: dict[tuple[int, int], int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Sent:
    member: Member
    items: Sequence[Hashable]
    at: float


Submit = Callable[[Member, Sequence[Any]], Any]  # (actor, items) -> reference to the list of their answers


class Pool:
    """Actors with the backbone and the clients of a run.

    An actor that dies is replaced, and what it had not finished is done elsewhere; one that ran out of memory is not
    replaced while others are left. `warn` gets a sentence about each. Raises UserError, naming the node, where an actor
    cannot do its work.
    """

    def __init__(
        self, setup: Setup, table: RuntimeTable, *, gpus: float, expected: tuple[str, str], warn: Callable[[str], None]
    ) -> None:
        self.table, self.gpus = table, gpus
        self.homes = Homes()
        self.members: dict[int, Member] = {}  # those that are ready, by number
        self._opening: dict[Any, Member] = {}  # by reference to the answer of `open`
        self._setup = (ray.put(setup),)
        self._fingerprint, self._numerics = expected
        self._warn = warn
        self._numbers = itertools.count(1)
        self._deaths: Counter[Hashable] = Counter()
        self._lost = 0
        self._memory_share = 1.0
        self._watch = Watch()

    def start(self, count: int) -> None:
        """Start so many actors; UserError if one has other versions or another backbone, no images, or cannot start.

        One that dies meanwhile is started again, a few times.
        """
        try:
            started = [self._create(number) for number in range(count)]
            asked = {member.actor.versions.remote(): member for member in started}
            self._wait(asked, all_of_them=True, limit=START_TIMEOUT)
            died = dict(self._greet(asked))
            # The memory of the feature cache is that of a machine, so the actors of one share it.
            nodes = Counter(member.node for member in started if member.number not in died)
            self._memory_share = 1 / (max(nodes.values(), default=0) + len(died))
            for member in started:
                if member.number in died:
                    self._lose_opening(member, died[member.number])
                else:
                    self._open(member)
            while self._opening:
                (ready,) = self._wait(self._opening)
                self._admit(ready)
        except BaseException:
            self.close()
            raise

    def _greet(self, asked: Mapping[Any, Member]) -> Iterator[tuple[int, Exception]]:
        """Learn where actors are from the answers about their versions; the numbers of those that died, and of what."""
        for reference, member in asked.items():
            try:
                member.node, found = _get(reference)
            except LOST as error:
                yield member.number, error
            else:
                _check_versions(member.node, found)

    def close(self) -> None:
        """End all actors."""
        if not self._watch.reason():  # else they have ended with it
            for member in (*self.members.values(), *self._opening.values()):
                ray.kill(member.actor)
        self.members.clear()
        self._opening.clear()

    def new_number(self) -> int:
        """A number that no shared state and no personal one has yet."""
        return next(self._numbers)

    def store(self, value: object) -> Stored:
        """Put something into the object store, once for all actors."""
        self._watch.require()
        return Stored(self.new_number(), (ray.put(value),))

    def run(self, items: Sequence[Hashable], submit: Submit, costs: Costs) -> Iterator[tuple[Member, list[Any]]]:
        """Have every item done by some actor; yields the actors' answers as they come.

        What an actor raises is raised here. Items of an actor that died are sent again. Raises RayEndedError if Ray
        itself has ended.
        """
        opening = {member.number for member in self._opening.values()}
        queues = Queues(items, sorted(self.members.keys() | opening), self.homes, costs)
        queues.lost |= opening
        sent: dict[Any, _Sent] = {}
        while queues or sent:
            for member in self.members.values():
                while taken := queues.take(member.number):
                    sent[submit(member, taken)] = _Sent(member, taken, time.perf_counter())
            for reference in self._wait([*sent, *self._opening], limit=math.inf if sent else START_TIMEOUT):
                if reference in self._opening:
                    queues.lost.discard(self._admit(reference))
                    continue
                one = sent.pop(reference)
                answers = self._receive(reference, one, queues)
                if answers is not None:
                    yield one.member, answers

    def _receive(self, reference: Any, one: _Sent, queues: Queues[Hashable]) -> list[Any] | None:
        """An actor's answers; None if it died, and its items wait again."""
        number = one.member.number
        try:
            answers: list[Any] = _get(reference)
        except LOST as error:
            queues.give_back(number, one.items)
            if self._lose(one, error):
                queues.lose(number)
            return None
        now = time.perf_counter()
        seconds = (now - max(one.at, one.member.answered)) / len(one.items)
        one.member.answered = now
        for item in one.items:
            queues.finish(number, item, seconds)
            self._deaths.pop(item, None)
        return answers

    def _wait(
        self, references: Collection[Any], *, all_of_them: bool = False, limit: float = math.inf
    ) -> Sequence[Any]:
        """The answers of actors that are ready: one, or all. UserError after `limit` seconds, or if Ray has ended."""
        end = time.monotonic() + limit
        wanted = len(references) if all_of_them else 1
        while True:
            ready, missing = ray.wait(list(references), num_returns=wanted, timeout=POLL)
            if len(ready) == wanted:
                return list(ready)
            self._watch.require()
            if time.monotonic() > end:
                raise _no_place(len(missing), len(references))

    def _create(self, number: int) -> Member:
        kind = ray.remote(Actor).options(
            num_cpus=self.table.cpus, num_gpus=self.gpus, max_restarts=0, scheduling_strategy="SPREAD"
        )
        return Member(number, kind.remote(Process.like_this(self.table.threads, self.gpus)))

    def _open(self, member: Member) -> None:
        self._opening[member.actor.open.remote(self._setup, self._memory_share)] = member

    def _admit(self, reference: Any) -> int:
        """The number of an actor that has been opened; -1 if it died, for which another one is started."""
        member = self._opening.pop(reference)
        self.members[member.number] = member
        try:
            opened: Opened | UserError = _get(reference)
        except LOST as error:
            self._lose_opening(member, error)
            return -1
        if isinstance(opened, UserError):
            raise UserError(f"On the node {member.node}: {opened}" if member.node else str(opened))
        member.node, member.process = opened.node, opened.process
        if opened.fingerprint != self._fingerprint:
            raise UserError(
                f"The backbone on the node {opened.node} is another one (fingerprint {opened.fingerprint[:12]}, here "
                f"{self._fingerprint[:12]}); copy the folder of this machine's backbone there, or name one on shared "
                "storage as backbone.path."
            )
        if opened.numerics != self._numerics:
            self._warn(
                f"The node {opened.node} computes with {opened.numerics}, this machine with {self._numerics}: results "
                "may differ in their last bits from those of one machine."
            )
        return member.number

    def _lose_opening(self, member: Member, error: Exception) -> None:
        self.members[member.number] = member
        self._lose(_Sent(member, [OPENING], 0.0), error)

    def _lose(self, one: _Sent, error: Exception) -> bool:
        """Replace an actor that died with these items; False if that was noticed before.

        UserError if items make actors die, or the last one ran out of memory.
        """
        member = one.member
        if self.members.get(member.number) is not member:
            return False
        self._watch.require(notice=NOTICE)
        del self.members[member.number]
        ray.kill(member.actor)
        full = ran_out_of_memory(error)
        what = "ran out of memory" if full else "died"
        self._lost += 1
        count = (
            "" if self._lost == 1 else f" {self._lost} actors were lost in this run."
        )  # no two warnings are the same
        begun = f"An actor on {member.node} {what}" if member.node else f"An actor {what} while it was started"
        rest = "what it had not finished is done elsewhere"
        if one.items == [OPENING]:
            rest = "the run goes on with the others" if full else "another one takes its place"
        self._warn(f"{begun}; {rest} ({last_line(error)}).{count}")
        self._deaths.update(one.items)
        item, deaths = self._deaths.most_common(1)[0]
        if deaths >= MOST_DEATHS or (full and not self.members and not self._opening):
            raise UserError(
                f"{plural(deaths, 'actor')} died {_at(item)}{f', the last one on {member.node}' * bool(member.node)}: "
                f"{last_line(error)}{f' {MEMORY_ADVICE}' * full}"
            ) from error
        if not full or not (self.members or self._opening):
            self._open(self._create(member.number))
        return True


def _at(item: Hashable) -> str:
    """Where an actor died, in a sentence: the items are clients, or parts of test images."""
    if item == OPENING:
        return f"while {item}"
    return "at test images" if isinstance(item, tuple) else f"at client {item}"


def ran_out_of_memory(error: Exception) -> bool:
    """Whether Ray ended a process because its node had no memory left."""
    return isinstance(error, OutOfMemoryError) or "running low on memory" in str(error)


def is_out_of_memory(cause: BaseException) -> bool:
    """Whether an error says that there is no memory left, of a GPU or of the node."""
    return isinstance(cause, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(cause)


def _get(reference: Any) -> Any:
    """The answer of an actor; what it raised is raised, and out of memory as UserError."""
    try:
        return ray.get(reference)
    except LOST:
        raise
    except RayTaskError as error:
        cause = error.cause
        if is_out_of_memory(cause):
            raise UserError(f"An actor ran out of memory: {last_line(cause)} {MEMORY_ADVICE}") from error
        raise cause from error


def _check_versions(node: str, found: Mapping[str, str]) -> None:
    for name, own in versions().items():
        if found.get(name) != own:
            raise UserError(
                f"The node {node} has {name} {found.get(name)}, this machine {own}; install the same version there: "
                f"pip install {name}=={own}"
            )


def _no_place(missing: int, count: int) -> UserError:
    return UserError(
        f"{missing} of {plural(count, 'actor')} found no place in the cluster within {START_TIMEOUT:g} s; other jobs "
        "use its cores (ray status). Wait for them, or give fewer runtime.actors."
    )


def last_line(error: BaseException) -> str:
    """The last line of an error that says something, or as many of its sentences as are short enough."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[-1] if lines else type(error).__name__
    if len(line) <= LONGEST:
        return line
    sentences, end, _ = line[:LONGEST].rpartition(". ")
    return f"{sentences}." if end else f"{line[:LONGEST]} ..."
