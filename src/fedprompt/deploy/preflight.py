"""Before the first round: what each site says of itself, and the differences that would spoil a run, named by site."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

import fedprompt
from fedprompt.data.labels import LabelSpace
from fedprompt.deploy.settings import SiteFile
from fedprompt.experiments.experiment import Experiment
from fedprompt.experiments.plan import Trial
from fedprompt.federated.client import Client
from fedprompt.federated.rounds import initial_state
from fedprompt.runtimes.payload import Fields

# What must be the same everywhere, and what to do where it is not.
CURES = {
    "fedprompt": "install the server's version of fedprompt there",
    "method": "install the server's versions there; the method's tensors differ in name, shape or type",
    "backbone": "copy the server's backbone there, or name its folder in site.toml",
    "classes": "agree on one class list, spelling and order included",
}


def introduction(experiment: Experiment, trial: Trial, client: Client, settings: SiteFile) -> Fields:
    """What a site says of itself; counts below its threshold are not told."""
    smallest = settings.policy.smallest_count
    labels = _counts(client, smallest)
    return {
        "site": settings.name,
        **agreement(experiment, trial),
        "versions": versions(),
        # Exact sums would tell the counts that are not told.
        "images": len(client.train) // smallest * smallest,
        "labels": labels,
        "unreadable": len(experiment.left_out) // smallest * smallest,
        "tests": client.test is not None,
        "time": time.time(),
    }


def agreement(experiment: Experiment, trial: Trial) -> dict[str, str]:
    """What server and sites must have in common, as fields to compare."""
    shared, personal = initial_state(trial.make_method(experiment.clip))
    tensors = [(name, str(one.dtype), list(one.shape)) for name, one in sorted({**shared, **personal}.items())]
    return {
        "fedprompt": fedprompt.__version__,
        "method": digest(tensors),
        "backbone": experiment.clip.fingerprint,
        "classes": class_list(experiment.dataset.space),
    }


def class_list(space: LabelSpace) -> str:
    """A hash of all that the classes are known by."""
    return digest([space.names, space.kind, space.template, sorted(space.attributes.items()), space.conditions])


def digest(value: object) -> str:
    """A short hash of a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """What a site's numbers may depend on besides."""
    packages = {name: version(name) for name in ("torch", "transformers", "numpy", "flwr")}
    return {"python": platform.python_version(), "threads": str(torch.get_num_threads()), **packages}


def _counts(client: Client, smallest: int) -> list[int | None]:
    """Training pictures of each class of the client; None where there are a few."""
    targets, classes = client.train.targets, len(client.train.space)
    found = (targets == 1).sum(dim=0) if targets.ndim > 1 else torch.bincount(targets, minlength=classes)
    return [None if 0 < count < smallest else count for count in found.tolist()]


def mismatches(ours: Mapping[str, str], said: Fields, *, asked: float, answered: float, skew: float) -> list[str]:
    """What is different at one site, each in fields with its cure; times are the server's clock around the question."""
    found = [
        f"{what} is {str(said.get(what))[:16]!r}, not {wanted[:16]!r}; {CURES[what]}"
        for what, wanted in ours.items()
        if said.get(what) != wanted
    ]
    clock: Any = said.get("time")
    if not isinstance(clock, int | float) or not asked - skew <= clock <= answered + skew:
        found.append(f"its clock is off by more than {skew:.0f} s; set it by NTP")
    return found
