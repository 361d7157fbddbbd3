"""Facts that are fixed for a run at a site by its first message, and the order of the messages after it."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from fedprompt.deploy.ledger import ImageSet, image_digests
from fedprompt.deploy.site_policy import RefusedError
from fedprompt.deploy.site_state import KEPT
from fedprompt.federated.client import Client
from fedprompt.file_system import read_bytes
from fedprompt.records.atomic_files import write_atomic
from fedprompt.text_files import json_text, load_json_object

PINNED = "pinned.json"  # in the state of a run at a site
CORRECTABLE = ("backbone", "data")  # by the site's administrator, until the first training
REMEDIES = {
    "server": "the server's certificate authority is another; begin a new run",
    "recipe": "the job's recipe is another; begin a new run",
    "classes": "the job's class list is another; begin a new run",
    "backbone": "this site's backbone is another; put the old one back, or begin a new run",
    "data": "this site's images are others; put the old ones back, or begin a new run",
}


@dataclass(frozen=True)
class Pinned:
    """What a run's first message fixed, and how far its messages have come.

    `facts` hold for the run and `trials` for each trial: what -> fingerprint. `serial` is the largest number of a
    message, `rounds` the last round trained by trial, and `scores` the number of scores by trial. `key` is secret.
    """

    facts: Mapping[str, str] = field(default_factory=dict)
    trials: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    serial: tuple[int, int] = (0, 0)
    rounds: Mapping[str, int] = field(default_factory=dict)
    scores: Mapping[str, int] = field(default_factory=dict)
    key: str = field(default_factory=lambda: secrets.token_hex(32))

    @classmethod
    def load(cls, folder: Path) -> Pinned:
        """What is pinned for the run with this folder; nothing before its first message was accepted."""
        path = folder / PINNED
        if not path.exists():
            return cls()
        fields = load_json_object(read_bytes(path))
        return cls(**{**fields, "serial": tuple(fields["serial"])})

    def save(self, folder: Path) -> None:
        """Write it, so that it outlives the worker."""
        write_atomic(folder / PINNED, json_text(asdict(self)))

    def checked(self, trial: str, facts: Mapping[str, str], own: Mapping[str, str]) -> Pinned:
        """The same with facts of the run and of a trial, if they are new; RefusedError naming one that has changed."""
        for before, now in ((self.facts, facts), (self.trials.get(trial, {}), own)):
            for what, value in now.items():
                if before.get(what, value) != value:
                    raise RefusedError(f"the run has changed: {REMEDIES[what]}.", rule=f"pinned {what}")
        known = {**self.trials, trial: {**self.trials.get(trial, {}), **own}}
        return replace(self, facts={**self.facts, **facts}, trials=known)

    def correctable(self) -> Pinned:
        """The same without what the site's administrator may correct after a preflight, if nothing was trained yet."""
        if self.rounds:
            return self
        return replace(self, facts={what: value for what, value in self.facts.items() if what not in CORRECTABLE})

    def numbered(self, serial: object) -> Pinned:
        """The same after a message with this number; RefusedError if it is not above that of every message before."""
        if not _is_serial(serial):
            raise RefusedError("the message has no number.", rule="order")
        assert isinstance(serial, list)
        pair = (serial[0], serial[1])
        if pair <= self.serial:
            raise RefusedError("the message is a replay, or came out of order.", rule="order")
        return replace(self, serial=pair)

    def trained(self, trial: str, number: object, *, rounds: int) -> Pinned:
        """The same after training in a round; RefusedError for one that the job lacks, or that is long past."""
        if type(number) is not int or not 1 <= number <= rounds:
            raise RefusedError(f"the message is for a round that is not from 1 to {rounds}.", rule="order")
        last = self.rounds.get(trial, 0)
        if number + KEPT <= last:
            raise RefusedError(f"round {number} is past: round {last} was trained before.", rule="order")
        return replace(self, rounds={**self.rounds, trial: max(last, number)})

    def secret_hash(self, text: str) -> str:
        """A hash that changes with a text, and that nobody without the run's key at this site can compare with another.

        Whoever guesses all images of a site could otherwise tell from it whether the guess is right.
        """
        return hmac.new(bytes.fromhex(self.key), text.encode(), "sha256").hexdigest()[:32]

    def scored(self, trial: str) -> Pinned:
        """The same after one more score of a trial."""
        return replace(self, scores={**self.scores, trial: self.scores.get(trial, 0) + 1})


@dataclass(frozen=True)
class OwnImages:
    """A client's training images as a set, and a fingerprint of all its images with their labels."""

    train: ImageSet
    fingerprint: str

    @classmethod
    def of(cls, client: Client) -> OwnImages:
        """Hash the files of a client's images; images that are not files have their source's fingerprint."""
        digest, sets = hashlib.sha256(), []
        for examples in (client.train, client.test, *client.held_out.values()):
            if examples is not None:
                digests = image_digests(examples.images)
                sets.append(ImageSet(frozenset(digests)))
                named = [one.hex() for one in digests]
                if not digests:
                    named = [examples.images.source.fingerprint, str(examples.images.rows)]
                digest.update(json_text([named, examples.targets.tolist()]).encode())
        return cls(sets[0], digest.hexdigest()[:32])


def _is_serial(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(one) is int and 0 < one < 2**53 for one in value)
