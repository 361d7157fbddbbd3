"""The metrics of a site, from its audit trail and ledger.

Nothing here counts images or names labels, so whoever collects these numbers learns nothing that the site's policy
withholds from the server. Epsilon, which depends on the number of images, is rounded up.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fedprompt.deploy.audit import ALLOWED, AUDIT, LEDGER
from fedprompt.deploy.hash_chain import DamagedError, Entry, read_chain
from fedprompt.deploy.metrics import BOTH, Metric, Values, folder_values
from fedprompt.deploy.settings import load_site
from fedprompt.deploy.worker_socket import ADDRESS, BUSY
from fedprompt.runtimes.payload import EVALUATE, HELLO, MALFORMED, SECURE, TRAIN

MESSAGES = Metric(
    "fedprompt_messages_total", "counter", "Messages of the server, by what was answered", ("kind", "answer")
)
REFUSALS = Metric("fedprompt_refusals_total", "counter", "Messages that were refused or failed", ("rule",))
LAST = Metric("fedprompt_last_message_timestamp_seconds", "gauge", "Time of the server's last message")
TRAININGS = Metric("fedprompt_trainings_total", "counter", "Trainings, by where noise was added", ("noise",))
EPSILON = Metric("fedprompt_epsilon", "gauge", "Epsilon spent over all runs, rounded up to 0.1")
BUDGET = Metric("fedprompt_epsilon_budget", "gauge", "Privacy budget of the policy; absent without one")
INTACT = Metric("fedprompt_records_intact", "gauge", "1 if audit trail and ledger are as they were written, else 0")
WORKER = Metric("fedprompt_worker_running", "gauge", "1 if the worker runs, else 0")
BUSY_SECONDS = Metric(
    "fedprompt_worker_busy_seconds", "gauge", "Time the worker has spent on the current message; 0: idle"
)
METRICS = (MESSAGES, REFUSALS, LAST, TRAININGS, EPSILON, BUDGET, INTACT, WORKER, BUSY_SECONDS, *BOTH)
KINDS = (HELLO, TRAIN, EVALUATE, *SECURE, MALFORMED)
OTHER = "other"  # a kind that the server made up


class SiteMetrics:
    """The metrics of the site in a folder; each call of `read` reads what is new in its records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._last: dict[str, Entry] = {}
        self._messages: Counter[tuple[str, ...]] = Counter()
        self._refusals: Counter[tuple[str, ...]] = Counter()
        self._trainings: Counter[tuple[str, ...]] = Counter()
        self._epsilon: dict[str, float] = {}  # by set of images

    def read(self) -> Values:
        """All metrics, now."""
        try:
            self._read_records()
            intact = 1.0
        except DamagedError:
            intact = 0.0
        spent, budget = max(self._epsilon.values(), default=0.0), load_site(self.folder).policy.epsilon
        last = self._last.get(AUDIT)
        return {
            MESSAGES: self._messages,
            REFUSALS: self._refusals,
            LAST: {} if last is None else {(): float(last.fields["time"])},
            TRAININGS: self._trainings,
            EPSILON: {(): math.ceil(spent * 10) / 10},
            BUDGET: {} if budget is None else {(): budget},
            INTACT: {(): intact},
            WORKER: {(): float(_is_running(self.folder / ADDRESS))},
            BUSY_SECONDS: {(): _age(self.folder / BUSY)},
            **folder_values(self.folder),
        }

    def _read_records(self) -> None:
        for entry in self._new(AUDIT):
            kind, rule = entry.fields["kind"], entry.fields["rule"]
            self._messages[kind if kind in KINDS else OTHER, entry.fields["answer"]] += 1
            if rule != ALLOWED:
                self._refusals[(rule,)] += 1
        for entry in self._new(LEDGER):
            noise = entry.fields["mechanism"] is not None
            self._trainings["site" if noise else "none",] += 1
            if noise:
                self._epsilon[entry.fields["images"]] = entry.fields["epsilon"]

    def _new(self, name: str) -> Iterator[Entry]:
        for entry in read_chain(self.folder / name, after=self._last.get(name)):
            self._last[name] = entry
            yield entry


def _is_running(address: Path) -> bool:
    try:
        os.kill(int(json.loads(address.read_text(encoding="utf-8"))["process"]), 0)
    except (OSError, ValueError):
        return False
    return True


def _age(path: Path) -> float:
    """Seconds since a file was made; 0 if there is none."""
    try:
        return max(time.time() - path.stat().st_mtime, 0.0)
    except OSError:
        return 0.0
