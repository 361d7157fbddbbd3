"""The lines of run.jsonl: what a run says of itself, its trials, rounds and scores (the schema is report.events)."""

from __future__ import annotations

import inspect
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import fedprompt
from fedprompt.data.dataset import Dataset
from fedprompt.data.labels import LabelSpace
from fedprompt.data.partition.base import Partition, class_counts
from fedprompt.experiments.class_descriptions import fingerprint
from fedprompt.experiments.experiment import Experiment
from fedprompt.experiments.plan import Trial
from fedprompt.experiments.server import describe_server
from fedprompt.experiments.test_sets import LOCAL, TestSet
from fedprompt.federated.evaluate import Score
from fedprompt.federated.rounds import Round
from fedprompt.methods.base import Method
from fedprompt.records.reading import TUNED
from fedprompt.updates import COHORT

LARGEST_PARTITION = 200  # clients whose rows are written out; a page cannot show more
METRICS = {"single": "accuracy", "multi": "mean_average_precision"}  # the headline figure of a kind of task
FURTHER = {"single": [], "multi": ["cf1_macro", "of1"]}  # what stands beside it
REMARKS = {
    "single": "HM is the harmonic mean of Local, Base and New.",
    "multi": "A label counts as present from probability 0.5 on, or from a threshold fitted on training pictures that "
    "nobody trains on. Unknown labels count nowhere, and classes without a positive picture not in mAP.",
}

Line = dict[str, Any]


def header(experiment: Experiment, asked: Sequence[TestSet]) -> Line:
    """What is fixed before the run begins."""
    recipe, clip, dataset = experiment.recipe, experiment.clip, experiment.dataset
    splits = ({"local": LOCAL} if recipe.evaluate.local else {}) | {
        test_set.split: test_set.meaning for test_set in asked
    }
    return {
        "event": "header",
        "schema": 1,
        "title": recipe.about or recipe.name,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seed": recipe.seed,
        "main": recipe.method.title,
        "metric": METRICS[dataset.space.kind],
        "further": [name + TUNED * (recipe.evaluate.held_out > 0) for name in FURTHER[dataset.space.kind]],
        "recipe": recipe.model_dump(mode="json"),
        "versions": versions(),
        "backbone": {
            "name": recipe.backbone.path,
            "fingerprint": clip.fingerprint,
            "parameters": sum(parameter.numel() for parameter in clip.parameters()),
            "patches": clip.patches,
        },
        "data": _data(dataset),
        "left_out": [vars(lost) for lost in experiment.left_out],
        "protocol": protocol(experiment),
        "descriptions": {name: fingerprint(dataset) for name, dataset in experiment.described.items()},
        "splits": splits,
        "partition": partition_counts(experiment.partition, dataset),
    }


def versions() -> dict[str, str]:
    """What the run's numbers may depend on besides its recipe."""
    packages = {name: version(name) for name in ("torch", "transformers", "safetensors", "numpy", "pillow")}
    machine = {"platform": f"{platform.system()} {platform.machine()}", "threads": str(torch.get_num_threads())}
    return {"fedprompt": fedprompt.__version__, "python": platform.python_version(), **packages, **machine}


def _data(dataset: Dataset) -> Line:
    names = dataset.space.names
    return {
        "name": dataset.name,
        "fingerprint": dataset.source.fingerprint,
        "kind": dataset.space.kind,
        "images": {split: len(dataset.rows(split=split)) for split in dict.fromkeys(dataset.splits)},
        "unreadable": len(dataset.excluded),
        "base": [names[label] for label in dataset.base],
        "new": [names[label] for label in dataset.new],
        "domains": [domain for domain in dict.fromkeys(dataset.domains) if domain],
        "unseen_domains": list(dataset.unseen_domains),
        "notes": list(dataset.intake.warnings),
    }


def protocol(experiment: Experiment) -> str:
    """Which clients, which classes, which model, how averaged, when: two paragraphs for the record and the report."""
    recipe, clients = experiment.recipe, len(experiment.clients)
    train = recipe.train
    taking_part = max(math.floor(train.fraction * clients + 1e-9), 1)
    when = (
        f"every {recipe.evaluate.every} rounds and after the last one"
        if recipe.evaluate.every
        else "after the last round"
    )
    return (
        f"{clients} clients by the rule {recipe.partition.rule!r}; {taking_part} of them train in a round, "
        f"{train.local_epochs} local epoch(s), {train.rounds} rounds; the server takes "
        f"{describe_server(train.server, weighting=train.weighting)}. "
        "A method's own table may override this; its settings are in its row.\n\n"
        f"Scores are of the global model, {when}; no round, threshold or class order is chosen on test pictures. "
        f"{REMARKS[experiment.dataset.space.kind]}"
    )


def partition_counts(partition: Partition, dataset: Dataset) -> Line:
    """Training pictures of every class at every client, [clients, classes], cut to the first clients."""
    shards = partition.shards[:LARGEST_PARTITION]
    labels = list(dataset.base)
    return {
        "rule": partition.rule,
        "clients": [shard.name for shard in shards],
        "classes": [dataset.space.names[label] for label in labels],
        "counts": class_counts(replace(partition, shards=shards), dataset).tolist(),
        "domains": [shard.domain for shard in shards] if any(shard.domain for shard in shards) else [],
        "total": len(partition.shards),
    }


def trial_line(trial: Trial, method: Method, *, rounds: int) -> Line:
    """A trial that starts."""
    settings = trial.settings.model_dump(exclude={"seed"})
    return {
        "event": "trial",
        "trial": trial.name,
        "status": "running",
        "method": trial.method,
        "idea": idea(type(method)),
        "options": dict(trial.options),
        "settings": settings
        | {key: getattr(trial, key) for key in ("fraction", "weighting", "sharing")}
        | _server(trial),
        "descriptions": trial.descriptions.model_dump(mode="json"),
        "trainable": parameters(method),
        "rounds": rounds,
    }


def idea(kind: type[Method]) -> str:
    """What a method is and whose idea it is: the first line of its file."""
    return (inspect.getdoc(inspect.getmodule(kind)) or "").split("\n")[0]


def parameters(method: Method) -> int:
    """How many numbers a method trains."""
    return sum(parameter.numel() for parameter in method.parameters())


def _server(trial: Trial) -> Line:
    """What the server does beyond its defaults."""
    said = trial.setup.table.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return {"server": said} if said else {}


def round_line(trial: Trial, record: Round, notes: Mapping[str, Any] | None = None) -> Line:
    """One round: who trained, to which loss, what travelled, whose update was not used and why.

    `notes` is what transport and ledger add; a transport's reasons stand beside the server's.
    """
    notes = dict(notes or {})
    seen = [update for update in record.updates if update.client != COHORT]
    losses = {str(update.client): update.loss for update in seen}
    refused = {str(client): reason for client, reason in record.refused.items() if client != COHORT}
    line = {
        "event": "round",
        "trial": trial.name,
        "round": record.number,
        "clients": list(record.clients),
        "loss": fmean(update.loss for update in record.updates) if record.updates else None,
        "losses": losses,
        # Where pictures were pooled, it is they that travelled.
        "bytes_up": {str(update.client): update.bytes for update in seen if trial.sharing != "pooled"},
        "bytes_down": sum(tensor.nbytes for tensor in record.shared.values()),
        "seconds": record.seconds,
    }
    extras = {"failed": refused | notes.pop("failed", {}), "skipped": record.skipped}
    return line | {key: value for key, value in extras.items() if value} | notes


def score_line(  # noqa: PLR0913  (a line of the record has as many fields)
    trial: Trial,
    round_number: int,
    split: str,
    score: Score,
    space: LabelSpace,
    *,
    client: int | None = None,
    part: str = "",
) -> Line:
    """One score over the candidates of `space`; `part` is the data set where there are several."""
    return {
        **score.figures,  # first: what a site calls a figure never takes the place of a word of ours
        "event": "score",
        "trial": trial.name,
        "round": round_number,
        "split": split,
        "name": score.name,
        **({} if client is None else {"client": client}),
        **({"part": part} if part else {}),
        "num_examples": score.num_examples,
        "classes": list(space.names),
        "per_class": list(score.per_class),
    }


def cooccurrence_line(test_set: TestSet, present: Tensor, *, trial: str = "") -> Line:
    """How often labels stand together in pictures, [C, C], from which are there [N, C]: in truth, or by a trial."""
    shown = present.long()
    return {
        "event": "company",
        "trial": trial,
        "split": test_set.split,
        "classes": list(test_set.examples.space.names),
        "counts": (shown.T @ shown).tolist(),
    }
