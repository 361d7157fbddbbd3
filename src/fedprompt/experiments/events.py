"""Builders of the events of run.jsonl from an experiment, its trials, rounds and scores."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from statistics import fmean

import torch
from pydantic import JsonValue
from torch import Tensor

import fedprompt
from fedprompt import methods
from fedprompt.data.dataset import Dataset, fingerprints
from fedprompt.data.labels import LabelSpace
from fedprompt.data.partition.base import Partition
from fedprompt.data.quality import near_tests
from fedprompt.experiments.class_descriptions import text_fingerprint
from fedprompt.experiments.clients import partition_counts
from fedprompt.experiments.deciding import threshold_in_words
from fedprompt.experiments.experiment import Experiment
from fedprompt.experiments.plan import Trial
from fedprompt.experiments.protocol import local_meaning, protocol
from fedprompt.experiments.server import PrivacySpent
from fedprompt.experiments.test_sets import TestSet
from fedprompt.experiments.unreadable import UNREADABLE
from fedprompt.federated.evaluate import METRICS, Score
from fedprompt.federated.rounds import Round, RoundNotes
from fedprompt.methods.base import Method
from fedprompt.records.event_fields import (
    BackboneRecord,
    CommandRecord,
    DataRecord,
    ExpectedFigure,
    LeftOutImage,
)
from fedprompt.records.events import SCHEMA, CooccurrenceEvent, HeaderEvent, RoundEvent, ScoreEvent, TrialEvent
from fedprompt.records.run_record import TUNED
from fedprompt.records.vectors import LONG
from fedprompt.updates import AGGREGATE_CLIENT

SHORT_NAME = 2  # letters of a data set's name that would not be taken for one
NAMED = 4  # methods that a title names, at most
MOST_PROBLEMS = 20  # of one kind that are recorded
FURTHER = {"single": [], "multi": ["cf1_macro", "of1"]}  # further metrics in the report


def header_event(
    experiment: Experiment,
    test_sets: Sequence[TestSet],
    *,
    expected: Sequence[ExpectedFigure],
    command: CommandRecord | None = None,
) -> HeaderEvent:
    """Everything that is fixed before the run begins; `expected` are published figures to compare with.

    `command` is what began the run, if it is known.
    """
    recipe, clip, dataset = experiment.recipe, experiment.clip, experiment.dataset
    splits = ({"local": local_meaning(experiment, test_sets)} if recipe.evaluate.local else {}) | {
        test_set.split: test_set.meaning for test_set in test_sets
    }
    threshold = threshold_in_words(experiment)
    return HeaderEvent(
        schema_version=SCHEMA,
        title=run_title([trial.label for trial in experiment.trials], dataset.name),
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        seed=recipe.seed,
        main=recipe.method.title,
        metric=METRICS[dataset.space.kind],
        further=[name + TUNED * bool(threshold) for name in FURTHER[dataset.space.kind]],
        **({"threshold": threshold} if threshold else {}),
        recipe=recipe.model_dump(mode="json"),
        versions=versions(),
        backbone=BackboneRecord(
            name=recipe.backbone.path,
            family=clip.family.title,
            fingerprint=clip.fingerprint,
            parameters=sum(parameter.numel() for parameter in clip.parameters()),
            patches=clip.patches,
            refused=methods.refused_by(clip.family),
        ),
        data=_data(experiment),
        left_out=[LeftOutImage(**vars(image)) for image in experiment.left_out],
        protocol=protocol(experiment),
        descriptions={name: text_fingerprint(dataset) for name, dataset in experiment.described.items()},
        bundled=dict(experiment.origins),
        splits=splits,
        partition=partition_counts(experiment.partition, dataset),
        expected=expected,
        **({} if command is None else {"command": command}),
    )


def run_title(labels: Sequence[str], data: str) -> str:
    """The methods of a run, the main one first, and its data: "FedMVP, Zero-shot CLIP and PromptFL on pets"."""
    *first, last = labels[:NAMED] if len(labels) <= NAMED else [labels[0], f"{len(labels) - 1} other methods"]
    what = data if len(data) > SHORT_NAME else f'"{data}"'  # "on a" seems cut off
    return f"{', '.join(first)} and {last} on {what}" if first else f"{last} on {what}"


def versions() -> dict[str, str]:
    """Versions of the software, and what else the results may depend on besides the recipe."""
    packages = {name: version(name) for name in ("torch", "transformers", "safetensors", "numpy", "pillow")}
    machine = {"platform": f"{platform.system()} {platform.machine()}", "threads": str(torch.get_num_threads())}
    return {"fedprompt": fedprompt.__version__, "python": platform.python_version(), **packages, **machine}


def images_by_split(dataset: Dataset) -> dict[str, int]:
    """The number of images of each split."""
    return {split: len(dataset.rows(split=split)) for split in dict.fromkeys(dataset.splits)}


def _data(experiment: Experiment) -> DataRecord:
    dataset = experiment.dataset
    names, report = dataset.space.names, dataset.report
    near, named = near_tests(dataset, experiment.near_pairs)
    return DataRecord(
        name=dataset.name,
        fingerprint=dataset.source.fingerprint,
        columns=fingerprints(dataset),
        kind=dataset.space.kind,
        summary=report.sentence(),
        images=images_by_split(dataset),
        labels=report.labels,
        origins=report.origins,
        left_out=report.left_out,
        unreadable=sum(reason == UNREADABLE for reason in dataset.excluded.values()),
        base=[names[label] for label in dataset.base],
        new=[names[label] for label in dataset.new],
        domains=[domain for domain in dict.fromkeys(dataset.domains) if domain],
        unseen_domains=dataset.unseen_domains,
        notes=(*report.all_warnings(), *_problem_notes(experiment), *experiment.remarks, *experiment.cut_texts),
        near_duplicates=near,
        near_of_same_name=named,
    )


def _problem_notes(experiment: Experiment) -> Iterator[str]:
    """The problems of images, of each kind `MOST_PROBLEMS` at most and how many more there are."""
    for messages in experiment.problems.values():
        yield from messages[:MOST_PROBLEMS]
        if (more := len(messages) - MOST_PROBLEMS) > 0:
            yield f"{more:,} more like this are listed by fedprompt check."


def trial_event(trial: Trial, method: Method, space: LabelSpace, *, rounds: int) -> TrialEvent:
    """The start of a trial; `space` has its class descriptions."""
    settings = trial.settings.model_dump(exclude={"seed", "hides_loss"})
    return TrialEvent(
        trial=trial.name,
        status="running",
        method=trial.method,
        idea=methods.method_summary(type(method)),
        texts=method.text_inputs(space),
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
    known = [update.loss for update in record.updates if not math.isnan(update.loss)]  # sites may withhold theirs
    # With pooled sharing, training images travelled instead of updates.
    sizes = {update.client: update.bytes for update in seen if trial.sharing != "pooled"}
    optional = {
        "failed": dict(notes.failed) | refused or None,
        "skipped": notes.skipped or record.skipped or None,
        "site_seconds": notes.site_seconds,
        "validation": notes.validation,
        "kept": notes.kept,
        "rolled_back": record.rolled_back or None,
        **({} if spent is None else vars(spent)),
    }
    return RoundEvent(
        trial=trial.name,
        round=record.number,
        clients=record.clients,
        loss=fmean(known) if known else None,
        losses=losses if notes.losses is None else notes.losses,
        bytes_up=sizes if notes.bytes_up is None else notes.bytes_up,
        bytes_down=sum(tensor.nbytes for tensor in record.shared.values()),
        seconds=record.seconds,
        **{key: value for key, value in optional.items() if value is not None},
    )


def rollback_warning(record: Round, partition: Partition) -> str:
    """What was rolled back, and whose updates were left out."""
    names = ", ".join(partition.shards[client].name for client in record.refused if client != AGGREGATE_CLIENT)
    without = f"without the update of {names}" if names else "as it was before, because no single update is to blame"
    return f"Round {record.number}: {record.skipped}. The run goes on {without}."


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
    """Co-occurrence of labels from their presence [N, C]: annotated, or as a trial predicts it.

    Of more than 256 classes, it has those that are most frequent in the annotations; the files of predictions have all.
    """
    classes = test_set.examples.space.names
    frequent = (test_set.examples.targets == 1).sum(dim=0).argsort(descending=True, stable=True)[:LONG]
    chosen = frequent.sort().values  # in the order of the classes
    shown = present[:, chosen].long()
    optional = {"positives": present.sum(dim=0).tolist()} if len(classes) > LONG else {}
    return CooccurrenceEvent(
        trial=trial,
        split=test_set.split,
        classes=[classes[label] for label in chosen.tolist()],
        counts=(shown.T @ shown).tolist(),
        **optional,
    )
