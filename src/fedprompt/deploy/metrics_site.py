"""The metrics of a site, from its audit trail and ledger.

Nothing here counts images or names labels, so whoever collects these numbers learns nothing that the site's policy
withholds from the server. Epsilon, which depends on the number of images, is that of the number that the server learns.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fedprompt.deploy.audit import ALLOWED, AUDIT, LEDGER, ChargedLines
from fedprompt.deploy.hash_chain import ChainReader, DamagedError
from fedprompt.deploy.ledger import Training
from fedprompt.deploy.metrics import BOTH, Metric, Values, folder_values
from fedprompt.deploy.settings import Policy, load_site
from fedprompt.deploy.worker_socket import BUSY, worker_number
from fedprompt.federated.privacy.accounting import Mechanism, composed_epsilon
from fedprompt.runtimes.payload import EVALUATE, HELLO, MALFORMED, SECURE, TRAIN, VALIDATE

MESSAGES = Metric(
    "fedprompt_messages_total", "counter", "Messages of the server, by what was answered", ("kind", "answer")
)
REFUSALS = Metric("fedprompt_refusals_total", "counter", "Messages that were refused or failed", ("rule",))
LAST = Metric("fedprompt_last_message_timestamp_seconds", "gauge", "Time of the server's last message")
TRAININGS = Metric("fedprompt_trainings_total", "counter", "Trainings, by where noise was added", ("noise",))
EPSILON = Metric(
    "fedprompt_epsilon", "gauge", "Epsilon of all trainings with noise, for the number of images that the server learns"
)
BUDGET = Metric("fedprompt_epsilon_budget", "gauge", "Privacy budget of the policy; absent without one")
INTACT = Metric("fedprompt_records_intact", "gauge", "1 if audit trail and ledger are as they were written, else 0")
WORKER = Metric("fedprompt_worker_running", "gauge", "1 if the worker runs, else 0")
BUSY_SECONDS = Metric(
    "fedprompt_worker_busy_seconds", "gauge", "Time the worker has spent on the current message; 0: idle"
)
METRICS = (MESSAGES, REFUSALS, LAST, TRAININGS, EPSILON, BUDGET, INTACT, WORKER, BUSY_SECONDS, *BOTH)
KINDS = (HELLO, TRAIN, EVALUATE, VALIDATE, *SECURE, MALFORMED)
OTHER = "other"  # a kind that the server made up


class SiteMetrics:
    """The metrics of the site in a folder; each call of `read` reads what is new in its records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._trail, self._ledger = ChainReader(folder / AUDIT), ChainReader(folder / LEDGER)
        self._charged, self._hashes = ChargedLines(folder), set[str]()
        self._messages: Counter[tuple[str, ...]] = Counter()
        self._refusals: Counter[tuple[str, ...]] = Counter()
        self._trainings: Counter[tuple[str, ...]] = Counter()
        self._noised: list[Training] = []

    def read(self) -> Values:
        """All metrics, now."""
        try:
            self._read_records()
            intact = 1.0
        except DamagedError:
            intact = 0.0
        policy, last = load_site(self.folder).policy, self._trail.last
        return {
            MESSAGES: self._messages,
            REFUSALS: self._refusals,
            LAST: {(): float(last.fields["time"])} if last.number else {},
            TRAININGS: self._trainings,
            EPSILON: {(): reported_epsilon(self._noised, policy)},
            BUDGET: {} if policy.epsilon is None else {(): policy.epsilon},
            INTACT: {(): intact},
            WORKER: {(): float(_is_running(self.folder))},
            BUSY_SECONDS: {(): _age(self.folder / BUSY)},
            **folder_values(self.folder),
        }

    def _read_records(self) -> None:
        for entry in self._trail.new():
            self._charged.add(entry)
            kind, rule = entry.fields["kind"], entry.fields["rule"]
            self._messages[kind if kind in KINDS else OTHER, entry.fields["answer"]] += 1
            if rule != ALLOWED:
                self._refusals[(rule,)] += 1
        for entry in self._ledger.new():
            self._hashes.add(entry.hash)
            training = Training.from_fields(entry.fields)
            self._trainings["none" if training.mechanism is None else "site",] += 1
            if training.mechanism is not None:
                self._noised.append(training)
        self._charged.check(self._hashes)


def reported_epsilon(trainings: Sequence[Training], policy: Policy) -> float:
    """Epsilon of these trainings, as if all were on the same images and these as many as the server learns.

    That is the number rounded down to a multiple of `smallest_count`, as in the preflight: the exact epsilon, which the
    ledger has, would give away the exact number. Mostly it is a little too high, as fewer images mean larger samples.
    """
    if not trainings:
        return 0.0
    counts = [line.count // policy.smallest_count * policy.smallest_count for line in trainings]
    used = [_with_images(line, count) for line, count in zip(trainings, counts, strict=True)]
    return composed_epsilon(used, delta=policy.delta_for(max(counts)))


def _with_images(training: Training, images: int) -> Mechanism:
    """The training's mechanism for another number of images, with the same batch size and number of epochs."""
    own = training.mechanism
    assert own is not None
    if own.rate == 1.0:
        return own
    batch_size = round(own.rate * training.count)
    epochs = own.times // math.ceil(training.count / batch_size)
    if images <= batch_size:
        return Mechanism(own.noise, times=epochs)
    return Mechanism(own.noise, batch_size / images, epochs * math.ceil(images / batch_size))


def _is_running(folder: Path) -> bool:
    try:
        os.kill(worker_number(folder, "process"), 0)
    except (OSError, ValueError):
        return False
    return True


def _age(path: Path) -> float:
    """Seconds since a file was made; 0 if there is none."""
    try:
        return max(time.time() - path.stat().st_mtime, 0.0)
    except OSError:
        return 0.0
