"""Builders of the events of run.jsonl from an experiment, its trials, rounds and scores."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from statistics import fmean

import torch
from pydantic import JsonValue
from torch import Tensor

import fedprompt
from fedprompt import methods
from fedprompt.data.dataset import Dataset
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import plural
from fedprompt.experiments.class_descriptions import text_fingerprint
from fedprompt.experiments.clients import partition_counts
from fedprompt.experiments.experiment import Experiment
from fedprompt.experiments.plan import Trial
from fedprompt.experiments.server import PrivacySpent, describe_server
from fedprompt.experiments.test_sets import LOCAL, TestSet
from fedprompt.federated.evaluate import Score
from fedprompt.federated.rounds import Round, RoundNotes
from fedprompt.methods.base import Method
from fedprompt.records.event_fields import (
    BackboneRecord,
    DataRecord,
    ExpectedFigure,
    LeftOutImage,
)
from fedprompt.records.events import SCHEMA, CooccurrenceEvent, HeaderEvent, RoundEvent, ScoreEvent, TrialEvent
from fedprompt.records.reading import TUNED
from fedprompt.updates import AGGREGATE_CLIENT

METRICS = {"single": "accuracy", "multi": "mean_average_precision"}  # headline metric per kind of task
FURTHER = {"single": [], "multi": ["cf1_macro", "of1"]}  # further metrics in the report
REMARKS = {
    "single": "HM is the harmonic mean of Local, Base and New.",
    "multi": "A label counts as present from probability 0.5, or from a threshold fitted on held-out training "
    "images. Unknown labels are ignored, and classes without a positive image are left out of mAP.",
}


def header_event(
    experiment: Experiment, test_sets: Sequence[TestSet], *, expected: Sequence[ExpectedFigure]
) -> HeaderEvent:
    """Everything that is fixed before the run begins; `expected` are published figures to compare with."""
    recipe, clip, dataset = experiment.recipe, experiment.clip, experiment.dataset
    splits = ({"local": LOCAL} if recipe.evaluate.local else {}) | {
        test_set.split: test_set.meaning for test_set in test_sets
    }
    return HeaderEvent(
        schema_version=SCHEMA,
        title=recipe.about or recipe.name,
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        seed=recipe.seed,
        main=recipe.method.title,
        metric=METRICS[dataset.space.kind],
        further=[name + TUNED * (recipe.evaluate.held_out > 0) for name in FURTHER[dataset.space.kind]],
        recipe=recipe.model_dump(mode="json"),
        versions=versions(),
        backbone=BackboneRecord(
            name=recipe.backbone.path,
            fingerprint=clip.fingerprint,
            parameters=sum(parameter.numel() for parameter in clip.parameters()),
            patches=clip.patches,
        ),
        data=_data(dataset),
        left_out=[LeftOutImage(**vars(image)) for image in experiment.left_out],
        protocol=protocol(experiment),
        descriptions={name: text_fingerprint(dataset) for name, dataset in experiment.described.items()},
        bundled=dict(experiment.origins),
        splits=splits,
        partition=partition_counts(experiment.partition, dataset),
        expected=expected,
    )


def versions() -> dict[str, str]:
    """Versions of the software, and what else the results may depend on besides the recipe."""
    packages = {name: version(name) for name in ("torch", "transformers", "safetensors", "numpy", "pillow")}
    machine = {"platform": f"{platform.system()} {platform.machine()}", "threads": str(torch.get_num_threads())}
    return {"fedprompt": fedprompt.__version__, "python": platform.python_version(), **packages, **machine}


def _data(dataset: Dataset) -> DataRecord:
    names, report = dataset.space.names, dataset.report
    return DataRecord(
        name=dataset.name,
        fingerprint=dataset.source.fingerprint,
        kind=dataset.space.kind,
        summary=report.sentence(),
        images={split: len(dataset.rows(split=split)) for split in dict.fromkeys(dataset.splits)},
        labels=report.labels,
        origins=report.origins,
        left_out=report.left_out,
        unreadable=len(dataset.excluded),
        base=[names[label] for label in dataset.base],
        new=[names[label] for label in dataset.new],
        domains=[domain for domain in dict.fromkeys(dataset.domains) if domain],
        unseen_domains=dataset.unseen_domains,
        notes=report.all_warnings(),
    )


def protocol(experiment: Experiment) -> str:
    """The evaluation protocol in two paragraphs: clients, rounds and server; models, candidates and averaging."""
    recipe, clients = experiment.recipe, len(experiment.clients)
    train = recipe.train
    taking_part = max(math.floor(train.fraction * clients + 1e-9), 1)
    when = (
        f"every {plural(recipe.evaluate.every, 'round')} and after the last one"
        if recipe.evaluate.every
        else "after the last round"
    )
    who = "all" if taking_part == clients else f"{taking_part:,} of them"
    return (
        f"{plural(clients, 'client')} (partition rule {recipe.partition.rule}), {who} in every round; "
        f"{plural(train.rounds, 'round')} of {plural(train.local_epochs, 'local epoch')}; "
        f"{describe_server(train.server, weighting=train.weighting)}. {training_images(experiment)} "
        "A method may override these settings; its own are listed under Methods.\n\n"
        f"Scores are of the global model, {when}; no round, threshold or class order is chosen on test images. "
        f"{REMARKS[experiment.dataset.space.kind]}"
    )


def training_images(experiment: Experiment) -> str:
    """How many of the data set's training images the clients train on."""
    dataset, shots = experiment.dataset, experiment.plan.rule.options.get("shots", "all")
    used = len({row for shard in experiment.partition.shards for row in shard.rows})
    drawn = f" ({plural(shots, 'shot')} per class)" if isinstance(shots, int) else ""
    return f"Clients hold {used:,} of {plural(len(dataset.rows(split='train')), 'training image')}{drawn}."


def trial_event(trial: Trial, method: Method, *, rounds: int) -> TrialEvent:
    """The start of a trial."""
    settings = trial.settings.model_dump(exclude={"seed"})
    return TrialEvent(
        trial=trial.name,
        status="running",
        method=trial.method,
        idea=methods.method_summary(type(method)),
        options=trial.options,
        settings=settings | {key: getattr(trial, key) for key in ("fraction", "weighting", "sharing")} | _server(trial),
        descriptions=trial.descriptions.model_dump(mode="json"),
        trainable=parameters(method),
        rounds=rounds,
    )


def parameters(method: Method) -> int:
    """Number of trained parameters of a method."""
    return sum(parameter.numel() for parameter in method.parameters())


def _server(trial: Trial) -> dict[str, JsonValue]:
    """The [train.server] table without its defaults."""
    said = trial.setup.table.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return {"server": said} if said else {}


def round_event(trial: Trial, record: Round, notes: RoundNotes, spent: PrivacySpent | None) -> RoundEvent:
    """One round; `notes` is what the transport adds, whose reasons of failure stand beside the server's."""
    seen = [update for update in record.updates if update.client != AGGREGATE_CLIENT]
    refused = {client: reason for client, reason in record.refused.items() if client != AGGREGATE_CLIENT}
    losses = {update.client: update.loss for update in seen}
    # With pooled sharing, training images travelled instead of updates.
    sizes = {update.client: update.bytes for update in seen if trial.sharing != "pooled"}
    optional = {
        "failed": refused | dict(notes.failed) or None,
        "skipped": notes.skipped or record.skipped or None,
        "site_seconds": notes.site_seconds,
        "validation": notes.validation,
        "kept": notes.kept,
        **({} if spent is None else vars(spent)),
    }
    return RoundEvent(
        trial=trial.name,
        round=record.number,
        clients=record.clients,
        loss=fmean(update.loss for update in record.updates) if record.updates else None,
        losses=losses if notes.losses is None else notes.losses,
        bytes_up=sizes if notes.bytes_up is None else notes.bytes_up,
        bytes_down=sum(tensor.nbytes for tensor in record.shared.values()),
        seconds=record.seconds,
        **{key: value for key, value in optional.items() if value is not None},
    )


def score_event(  # noqa: PLR0913  (the fields of the event)
    trial: Trial,
    round_number: int,
    split: str,
    score: Score,
    space: LabelSpace,
    *,
    client: int | None = None,
    part: str = "",
) -> ScoreEvent:
    """One score over the candidates of `space`; `part` is the data set where there are several."""
    optional = {"client": client, "part": part or None}
    return ScoreEvent(
        trial=trial.name,
        round=round_number,
        split=split,
        name=score.name,
        num_examples=score.num_examples,
        figures=score.figures,
        classes=space.names,
        per_class=score.per_class,
        **{key: value for key, value in optional.items() if value is not None},
    )


def cooccurrence_event(test_set: TestSet, present: Tensor, *, trial: str = "") -> CooccurrenceEvent:
    """Co-occurrence [C, C] of labels from their presence [N, C]: annotated, or as a trial predicts it."""
    shown = present.long()
    return CooccurrenceEvent(
        trial=trial,
        split=test_set.split,
        classes=test_set.examples.space.names,
        counts=(shown.T @ shown).tolist(),
    )
