"""The server's channel of a run: numbers messages, and uses no answer of a site that has not passed the preflight.

A site that joins late is asked for its preflight in place of its first request, so that nobody waits for it. Every
answer repeats the facts of the preflight, so a site that restarts with others is noticed in the same round.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from fedprompt.deploy.preflight import FIXES, clock_problem, mismatches, read_report
from fedprompt.deploy.settings import Deployment
from fedprompt.errors import UserError, refusing
from fedprompt.runtimes.answers import LARGEST, number, texts
from fedprompt.runtimes.payload import DONE, HELLO, Fields, Payload, done
from fedprompt.runtimes.remote import Channel

POLL = 1.0  # seconds between checks of which sites are connected
PASSED = "has now passed the preflight and takes part from the next round on."


class SiteChannel(Channel, Protocol):
    """A channel that lists the connected sites."""

    def sites(self) -> Mapping[str, int]:
        """The connected sites by name."""
        ...


@dataclass(frozen=True)
class MessageNumbers:
    """Numbers of a run's messages, [start, count], each above all before; `start` counts starts of the run."""

    start: int
    count: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def number(self, payload: Payload) -> Payload:
        """The payload with the next number."""
        return replace(payload, fields={**payload.fields, "serial": [self.start, next(self.count)]})


@dataclass(frozen=True)
class Terms:
    """What all sites of a trial must agree on: the job, the server's facts, and the data that each began with.

    `clients` are the sites in client order. `data` gives a site's fingerprint of its images, which is taken over from
    its first preflight; `on_admitted` is called after every preflight that a site has passed.
    """

    clients: tuple[str, ...]
    job: Fields
    ours: Mapping[str, str]
    data: dict[str, str]
    on_admitted: Callable[[str, Fields], None]


class CheckedChannel:
    """A channel to the sites of one trial."""

    def __init__(self, channel: SiteChannel, deployment: Deployment, numbers: MessageNumbers, terms: Terms) -> None:
        self.channel = channel
        self.deployment = deployment
        self.numbers = numbers
        self.terms = terms
        self._admitted: set[str] = set()

    def preflight(self, *, on_warning: Callable[[str], None]) -> None:
        """Admit the connected sites. Raises UserError for mismatches, and if too few sites are connected."""
        present = self._wait_for_sites()
        hello = {name: self._hello(name) for name in self.terms.clients if name in present}
        problems = []
        for name, said in self._ask(hello, deadline=self.deployment.deadline).items():
            if isinstance(said, str) and name not in self._admitted:
                problems.append(f"{name}: {said.rstrip('.')}")
        if problems:
            raise UserError("The preflight stops the run. " + "; ".join(problems) + ".")
        for name in self.terms.clients:
            if name not in present:
                on_warning(f"The site {name} is not connected; it may join in a later round.")

    def ask(self, payloads: Mapping[str, Payload], *, deadline: float) -> dict[str, Payload | str]:
        """Within `deadline` seconds, each admitted site's answer, or the reason why there is none."""
        sent = {name: payload if name in self._admitted else self._hello(name) for name, payload in payloads.items()}
        return self._ask(sent, deadline=deadline)

    def _ask(self, payloads: Mapping[str, Payload], *, deadline: float) -> dict[str, Payload | str]:
        numbered, asked = {name: self.numbers.number(payload) for name, payload in payloads.items()}, time.time()
        answers = self.channel.ask(numbered, deadline=deadline)
        used: dict[str, Payload | str] = {}
        reports: dict[str, Fields] = {}
        for name, answer in answers.items():
            refused: dict[str, str] = {}
            with refusing(refused, name):
                used[name] = self._checked(name, numbered[name], answer, asked)
                if used[name] == PASSED and isinstance(answer, Payload):
                    reports[name] = read_report(answer.fields)
            used |= refused
        for name, report in reports.items():
            self._admitted.add(name)
            self.terms.data.setdefault(name, report["facts"]["data"])
            self.terms.on_admitted(name, report)
        return used

    def _checked(self, name: str, request: Payload, answer: Payload | str, asked: float) -> Payload | str:
        """The answer, or why it is not used; UserError too, for one that is no answer to its request."""
        if isinstance(answer, str):
            return answer
        if answer.kind != DONE:
            return done(answer) if request.kind == HELLO else answer
        if answer.fields.get("serial") != request.fields["serial"]:
            return "order: its answer is to another message."
        problems = self._problems(name, answer, asked if request.kind == HELLO else None)
        if problems:
            self._admitted.discard(name)
            return f"preflight: {'; '.join(problems)}."
        return PASSED if request.kind == HELLO else answer

    def _problems(self, name: str, answer: Payload, asked: float | None) -> list[str]:
        if not isinstance(answer.fields.get("facts"), dict) or "data" not in answer.fields["facts"]:
            return ["its answer lacks the facts of the preflight; install the server's version of fedprompt there"]
        facts = texts(answer.fields, "facts")
        found = mismatches(self.terms.ours, facts)
        if self.terms.data.get(name, facts["data"]) != facts["data"]:
            found.append(f"its images are not those with which the run began; {FIXES['data']}")
        if asked is not None:
            clock = number(answer.fields, "time", low=0.0, high=LARGEST)
            received = time.time() if answer.received is None else answer.received
            found.append(clock_problem(clock, asked=asked, received=received, skew=self.deployment.clock_skew))
        return list(filter(None, found))

    def _hello(self, name: str) -> Payload:
        return Payload(HELLO, {**self.terms.job, "client": self.terms.clients.index(name)})

    def _wait_for_sites(self) -> set[str]:
        """Wait for all sites for at most `connect_timeout` seconds; UserError below the quorum."""
        names = set(self.terms.clients)
        end = time.monotonic() + self.deployment.connect_timeout
        present = set(self.channel.sites()) & names
        while len(present) < len(names) and time.monotonic() < end:
            time.sleep(POLL)
            present = set(self.channel.sites()) & names
        quorum = min(self.deployment.quorum, len(names))
        if len(present) < quorum:
            missing = ", ".join(sorted(names - present))
            raise UserError(
                f"{len(present)} of the {quorum} sites that a round needs are connected (missing: {missing}); "
                "start them with `fedprompt site up`, then continue with: fedprompt resume RUN."
            )
        return present
