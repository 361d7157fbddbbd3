"""A server that sends a site any message that its operator likes, and judges what the site made of it."""

from __future__ import annotations

import itertools
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import tomli_w

import fedprompt
from fedprompt.config.recipe import Recipe, parse_recipe
from fedprompt.deploy.audit import read_audit
from fedprompt.experiments.experiment import assemble
from fedprompt.experiments.plan import resolve
from fedprompt.federated.rounds import initial_state
from fedprompt.runtimes.payload import HELLO, REFUSED, SHARE_KEYS, VERSION, Payload, RawTensor
from fedprompt.runtimes.tensor_codec import encode
from fedprompt.text_files import load_toml

ROUNDS, TRIAL = 40, "attacks"
T1, T2, T3 = "T1: curious server", "T2: lying server", "T3: lying site"
T4, T5, NETWORK = "T4: made files", "T5: accident", "network"
Change = Mapping[str, object]  # dotted keys of a recipe, and their values


class Channel(Protocol):
    """What sends payloads to sites and returns what they answer."""

    def ask(self, payloads: Mapping[str, Payload], *, deadline: float) -> dict[str, Payload | str]:
        """Each site's answer, or the reason why there is none."""


@dataclass(frozen=True)
class Outcome:
    """One attack, the threat model that it belongs to, what happened, and whether the guarantee held."""

    attack: str
    threat: str
    happened: str
    held: bool


def job_recipe(recipe: Recipe, sites: Sequence[str]) -> str:
    """A recipe of plain updates over the sites' images, as a server sends it."""
    tables = {
        "name": "attacks",
        "backbone": {"path": recipe.backbone.path},
        "data": {"source": "sites", "classes": list(recipe.data.options["classes"])},
        "partition": {"rule": "by_site", "sites": list(sites)},
        "method": {"name": recipe.method.name, "label": TRIAL},
        "train": {"rounds": ROUNDS, "batch_size": 8, "lr": 0.01},
    }
    return tomli_w.dumps(tables)


def changed(recipe: str, change: Change) -> str:
    """The recipe's text with other values; nothing is checked, as a lying server checks nothing."""
    tables = load_toml(recipe)
    for key, value in change.items():
        *path, last = key.split(".")
        place = tables
        for name in path:
            place = place.setdefault(name, {})
        place[last] = value
    return tomli_w.dumps(tables)


@dataclass
class LyingServer:
    """Sends sites whatever an attack asks for, with valid numbers unless they are given, and counts the messages."""

    channel: Channel
    folders: Mapping[str, Path]  # of the sites, by name, in the order of clients
    recipe: str
    start: Mapping[str, RawTensor]
    deadline: float = 120.0
    sent: Counter[str] = field(default_factory=Counter)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @classmethod
    def of(cls, channel: Channel, recipe: Recipe, folders: Mapping[str, Path]) -> LyingServer:
        """A server with the shared state from which a run begins."""
        text = job_recipe(recipe, list(folders))
        experiment = assemble(resolve(parse_recipe(text)))
        method = experiment.trials[0].make_method(experiment.clip)
        return cls(channel, folders, text, encode(initial_state(method)[0]))

    def message(self, site: str, kind: str, run: str, *, change: Change, **fields: object) -> Payload:
        """A request with the next number."""
        known: dict[str, object] = {
            VERSION: fedprompt.__version__,
            "recipe": changed(self.recipe, change),
            "run": run,
            "trial": TRIAL,
        }
        known |= {"client": list(self.folders).index(site), "round": 1, "since": 0, "upload": "float32"}
        tensors = {} if kind in (HELLO, SHARE_KEYS) else self.start
        return Payload(kind, {**known, "serial": [1, next(self._numbers)], **fields}, tensors)

    def ask(self, site: str, kind: str, run: str, *, change: Change | None = None, **fields: object) -> Payload:
        """A site's answer to such a request."""
        return self.send(site, self.message(site, kind, run, change=change or {}, **fields))

    def send(self, site: str, message: Payload) -> Payload:
        """A site's answer; one of the kind "" if none came."""
        self.sent[site] += 1
        answer = self.channel.ask({site: message}, deadline=self.deadline)[site]
        return answer if isinstance(answer, Payload) else Payload("", {"reason": answer})

    def judge(self, attack: str, site: str, answer: Payload, rules: Sequence[str]) -> Outcome:
        """Whether the site refused the last message by one of these rules, by its answer and its audit trail."""
        recorded = [entry.fields["rule"] for entry in read_audit(self.folders[site])][-1:]
        rule = recorded[0] if recorded else ""
        said = str(answer.fields.get("reason", ""))[:120]
        if answer.kind != REFUSED or answer.tensors:
            happened = f"not refused: {answer.kind or 'no answer'} (rule {rule}) {said}".strip()
        elif rule not in rules:
            happened = f"refused by the rule {rule}, not by {' or '.join(rules)}: {said}"
        else:
            return Outcome(attack, T2, f"refused by {site}, rule {rule}", held=True)
        return Outcome(attack, T2, happened, held=False)


def new_run() -> str:
    """A new run id."""
    return secrets.token_hex(16)
