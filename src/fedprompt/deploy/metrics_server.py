"""The metrics of a server, from the records of its runs and Flower's list of sites."""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import JsonValue, ValidationError

from fedprompt.deploy.metrics import BOTH, Metric, Values, folder_values
from fedprompt.deploy.submit import SiteStatus, is_running, sites_of, waiting_for
from fedprompt.errors import UserError
from fedprompt.records.events import HeaderEvent, PrivacyEvent, RoundEvent, TrialEvent, parse_event
from fedprompt.text_files import load_json_object

RUN = ("run", "trial")
ROUNDS = Metric("fedprompt_rounds_total", "counter", "Finished rounds, by whether the model changed", ("outcome",))
SECONDS = Metric("fedprompt_round_seconds_total", "counter", "Duration of the finished rounds, summed")
LEFT_OUT = Metric(
    "fedprompt_left_out_total", "counter", "Updates that were refused or missing, by rule", ("site", "reason")
)
SITE_SECONDS = Metric("fedprompt_site_training_seconds", "gauge", "Training time that a site last reported", ("site",))
ONLINE = Metric("fedprompt_site_online", "gauge", "1 if the site is connected, else 0", ("site",))
LAST_SEEN = Metric("fedprompt_site_last_seen_timestamp_seconds", "gauge", "When a site was last connected", ("site",))
ACTIVE = Metric("fedprompt_run_active", "gauge", "1 while the run's process runs, else 0", ("run",))
ROUND = Metric("fedprompt_run_round", "gauge", "Last finished round", RUN)
PLANNED = Metric("fedprompt_run_planned_rounds", "gauge", "Planned rounds", RUN)
EPSILON = Metric("fedprompt_run_epsilon", "gauge", "Epsilon that the run has spent, the largest of all sites", RUN)
WAITING = Metric("fedprompt_run_waiting_sites", "gauge", "Sites whose answers an active run waits for", ("run",))
WAITED = Metric("fedprompt_run_waiting_seconds", "gauge", "Time an active run has waited for them", ("run",))
SITE_METRICS, RUN_METRICS = (SITE_SECONDS, ONLINE, LAST_SEEN), (ACTIVE, ROUND, PLANNED, EPSILON, WAITING, WAITED)
METRICS = (ROUNDS, SECONDS, LEFT_OUT, *SITE_METRICS, *RUN_METRICS, *BOTH)
RECENT = 10  # runs with metrics of their own, those that changed last
REFRESH = 60.0  # seconds between lists of sites, each of which starts Flower's command line
OUTDATED = 3 * REFRESH  # seconds after which a list says nothing about now
# A site's reason is its own text: a word becomes a label if it looks like a code, and only so many different ones do.
RULE, CODE = re.compile(r"\(rule ([a-z][a-z_ ]{1,24})\)"), re.compile(r"[a-z][a-z ]{1,24}")
MOST_REASONS = 40
OTHER, NO_ANSWER = "other", "no answer"


class ServerMetrics:
    """The metrics of the deployment in a folder; each call of `read` reads what is new in its records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tallies: dict[Path, RunTally] = {}
        self._reasons: set[str] = set()
        self._sites = _Sites(folder)

    def read(self) -> Values:
        """All metrics, now."""
        for log in self.folder.glob("runs/*/run.jsonl"):
            self._tallies.setdefault(log, RunTally(log, self._reasons)).update()
        tallies = sorted(self._tallies.values(), key=lambda tally: tally.changed)
        recent = tallies[-RECENT:]
        sites = self._sites.listed()
        return {
            ROUNDS: _sum(tally.rounds for tally in tallies),
            SECONDS: {(): sum(tally.seconds for tally in tallies)},
            LEFT_OUT: _sum(tally.left_out for tally in tallies),
            SITE_SECONDS: {(site,): number for tally in recent for site, number in tally.site_seconds.items()},
            ONLINE: {(site.name,): float(site.status == "online") for site in sites},
            LAST_SEEN: {(site.name,): site.last_seen for site in sites if site.last_seen is not None},
            **_run_values(recent),
            **folder_values(self.folder),
        }


class RunTally:
    """What was counted in a run's `run.jsonl`. A resumed run records some rounds anew: each is counted once.

    `reasons` are the labels in use, to which new ones are added.
    """

    def __init__(self, log: Path, reasons: set[str]) -> None:
        self.log = log
        self._reasons = reasons
        self.changed = 0.0  # seconds since 1970
        self.rounds: Counter[tuple[str, ...]] = Counter()
        self.left_out: Counter[tuple[str, ...]] = Counter()
        self.seconds = 0.0
        self.site_seconds: dict[str, float] = {}
        self.round: dict[str, int] = {}  # by trial, as the next two
        self.planned: dict[str, int] = {}
        self.epsilon: dict[str, float] = {}
        self._names: Sequence[str] = ()
        self._counted: set[tuple[str, int]] = set()
        self._place = (0, 0)  # the file's number, which changes when a resumed run writes it anew, and bytes read

    def update(self) -> None:
        """Count the new events."""
        for fields in self._new_lines():
            with suppress(ValidationError):  # a damaged line is for `fedprompt report` to name
                self._count(fields)

    def _new_lines(self) -> Iterator[Mapping[str, JsonValue]]:
        with suppress(OSError, ValueError), self.log.open("rb") as file:
            found = os.fstat(file.fileno())
            number, start = self._place
            if number != found.st_ino or start > found.st_size:
                start = 0
            self.changed = found.st_mtime
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                start += len(line)
                self._place = (found.st_ino, start)
                yield load_json_object(line)

    def _count(self, fields: Mapping[str, JsonValue]) -> None:
        if fields.get("event") not in ("header", "trial", "round", "privacy"):
            return
        event = parse_event(fields)
        if isinstance(event, HeaderEvent) and event.partition is not None:
            self._names = event.partition.clients
        elif isinstance(event, TrialEvent) and event.rounds is not None:
            self.planned[event.trial] = event.rounds
        elif isinstance(event, PrivacyEvent):
            self.epsilon[event.ledger] = event.epsilon or 0.0
        elif isinstance(event, RoundEvent):
            self._count_round(event)

    def _count_round(self, event: RoundEvent) -> None:
        self.round[event.trial] = event.round
        self.site_seconds |= {self._name(client): seconds or 0.0 for client, seconds in event.site_seconds.items()}
        if (event.trial, event.round) in self._counted:
            return
        self._counted.add((event.trial, event.round))
        self.rounds["unchanged" if event.skipped else "changed",] += 1
        self.seconds += event.seconds or 0.0
        for client, why in event.failed.items():
            self.left_out[self._name(client), self._reason(why)] += 1

    def _name(self, client: int) -> str:
        return self._names[client] if client < len(self._names) else str(client)

    def _reason(self, why: str) -> str:
        found = reason_of(why)
        if len(self._reasons) < MOST_REASONS:
            self._reasons.add(found)
        return found if found in self._reasons else OTHER


class _Sites:
    """Flower's list of sites, refreshed in the background when it is asked for and old."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listed: Sequence[SiteStatus] = ()
        self._begun = self._ended = -math.inf
        self._thread: threading.Thread | None = None

    def listed(self) -> Sequence[SiteStatus]:
        """The newest list; empty if there is none yet, or the last one is outdated."""
        busy = self._thread is not None and self._thread.is_alive()
        if not busy and time.monotonic() - self._begun >= REFRESH:
            self._begun = time.monotonic()
            self._thread = threading.Thread(target=self._refresh, daemon=True)
            self._thread.start()
        return self._listed if time.monotonic() - self._ended < OUTDATED else ()

    def _refresh(self) -> None:
        with suppress(UserError):
            self._listed = sites_of(self._folder)
            self._ended = time.monotonic()


def _run_values(tallies: Sequence[RunTally]) -> Values:
    active: dict[tuple[str, ...], float] = {}
    waiting: dict[tuple[str, ...], float] = {}
    waited: dict[tuple[str, ...], float] = {}
    for tally in tallies:
        out = tally.log.parent
        active[(out.name,)] = float(is_running(out))
        if active[(out.name,)]:
            missing = waiting_for(out)
            waiting[(out.name,)] = float(len(missing.sites) if missing else 0)
            waited[(out.name,)] = missing.seconds if missing else 0.0
    return {
        ACTIVE: active,
        ROUND: _per_trial(tallies, lambda tally: tally.round),
        PLANNED: _per_trial(tallies, lambda tally: tally.planned),
        EPSILON: _per_trial(tallies, lambda tally: tally.epsilon),
        WAITING: waiting,
        WAITED: waited,
    }


def _per_trial(
    tallies: Sequence[RunTally], values: Callable[[RunTally], Mapping[str, float]]
) -> dict[tuple[str, ...], float]:
    return {(tally.log.parent.name, trial): number for tally in tallies for trial, number in values(tally).items()}


def _sum(counters: Iterator[Counter[tuple[str, ...]]]) -> Counter[tuple[str, ...]]:
    total: Counter[tuple[str, ...]] = Counter()
    for one in counters:
        total.update(one)
    return total


def reason_of(why: str) -> str:
    """The rule or code in a sentence on an update that was left out; "no answer" for a sentence without one."""
    if rule := RULE.search(why):
        return rule[1]
    code, colon, _ = why.removeprefix("refused: ").partition(": ")
    return code if colon and CODE.fullmatch(code) else NO_ANSWER
