"""Preflight before the first round: what each site reports about itself, and the mismatches that stop a run."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version

import torch

import fedprompt
from fedprompt.data.dataset import Examples
from fedprompt.data.labels import LabelSpace
from fedprompt.deploy.disclosure import class_counts, in_steps, releasable_counts
from fedprompt.deploy.settings import SiteFile
from fedprompt.experiments.experiment import Experiment
from fedprompt.experiments.plan import Trial
from fedprompt.experiments.unreadable import VALIDATION
from fedprompt.federated.client import Client
from fedprompt.federated.rounds import initial_state
from fedprompt.federated.screening import MOST_EXAMPLES, RefusedUpdateError
from fedprompt.runtimes.answers import LARGEST, counts, number, text, texts, whole
from fedprompt.runtimes.payload import Fields
from fedprompt.text_files import json_text

# What must be equal at server and sites, and the fix for a mismatch.
FIXES = {
    "fedprompt": "install the server's version of fedprompt there",
    "method": "install the server's versions there; the method's tensors differ in name, shape or type",
    "backbone": "copy the server's backbone there, or name its folder in site.toml",
    "classes": "agree on one class list, spelling and order included",
    "data": "put them back, or begin a new run",
}


def hello_answer(experiment: Experiment, client: Client, settings: SiteFile) -> Fields:
    """The fields of a site's answer to a hello message; the policy says which counts leave, and which scores will."""
    policy, smallest = settings.policy, settings.policy.smallest_count
    return {
        "site": settings.name,
        "versions": versions(),
        "images": in_steps(len(client.train), smallest),
        "labels": releasable_counts(class_counts(_counted(experiment, client, settings)), policy),
        "unreadable": in_steps(len(experiment.left_out), smallest),
        "scores": policy.released,
        "tests": client.test is not None,
        "time": time.time(),
    }


def _counted(experiment: Experiment, client: Client, settings: SiteFile) -> Examples:
    """The images that are counted per class: of a site's own images all but its test images.

    Two jobs, of which one holds out images, would otherwise tell by a subtraction how many of each class are held out.
    """
    if not settings.data:
        return client.train
    dataset = experiment.dataset
    rows = torch.cat([dataset.rows(split=split) for split in ("train", VALIDATION)])
    return dataset.examples(rows, experiment.partition.shards[client.id].classes)


def fingerprints(experiment: Experiment, trial: Trial) -> dict[str, str]:
    """Fingerprints of what must be equal at server and sites: version, method, backbone and classes."""
    shared, personal = initial_state(trial.make_method(experiment.clip))
    tensors = [(name, str(one.dtype), list(one.shape)) for name, one in sorted({**shared, **personal}.items())]
    return {
        "fedprompt": fedprompt.__version__,
        "method": digest(tensors),
        "backbone": experiment.clip.fingerprint,
        "classes": class_list(experiment.dataset.space),
    }


def class_list(space: LabelSpace) -> str:
    """A hash of class names, task, template and descriptions."""
    return digest([space.names, space.kind, space.template, sorted(space.attributes.items()), space.conditions])


def digest(value: object) -> str:
    """A short hash of a JSON value."""
    return hashlib.sha256(json_text(value).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions and threads, on which a site's results may depend too."""
    packages = {name: version(name) for name in ("torch", "transformers", "numpy", "flwr")}
    return {"python": platform.python_version(), "threads": str(torch.get_num_threads()), **packages}


def read_report(fields: Fields) -> Fields:
    """What a site reports of itself, of known fields, types and ranges; RefusedUpdateError for anything else."""
    if type(fields.get("tests")) is not bool:
        raise RefusedUpdateError("number", "its tests is not true or false.")
    return {
        "site": text(fields, "site"),
        "versions": texts(fields, "versions"),
        "images": whole(fields, "images", low=0, high=MOST_EXAMPLES),
        "labels": counts(fields, "labels"),
        "unreadable": whole(fields, "unreadable", low=0, high=MOST_EXAMPLES),
        "tests": fields["tests"],
        "scores": text(fields, "scores"),
        "time": number(fields, "time", low=0.0, high=LARGEST),
        "facts": texts(fields, "facts"),
    }


def mismatches(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """The mismatches of a site's facts with the server's, each with its fix."""
    return [
        f"{what} is {theirs.get(what, '')[:16]!r}, not {wanted[:16]!r}; {FIXES[what]}"
        for what, wanted in ours.items()
        if theirs.get(what) != wanted
    ]


def clock_problem(clock: float, *, asked: float, received: float, skew: float) -> str:
    """By how many seconds a site's clock is wrong, if by more than `skew`; "" otherwise.

    `asked` and `received` are the server's times of the exchange, in which the site read its clock.
    """
    ahead = clock - received if clock > received else min(clock - asked, 0.0)
    if abs(ahead) <= skew:
        return ""
    side = "ahead of" if ahead > 0 else "behind"
    return f"its clock is {abs(ahead):.0f} s {side} the server's, and {skew:.0f} s are allowed; set it by NTP"
