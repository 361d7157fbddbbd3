"""Checks before a run starts or resumes: warnings about images, and that a run is as it began."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from fedprompt.data.dataset import fingerprints
from fedprompt.data.partition.base import Partition
from fedprompt.errors import UserError, plural
from fedprompt.experiments.class_descriptions import text_fingerprint
from fedprompt.experiments.clients import partition_counts
from fedprompt.experiments.context import RunCallbacks
from fedprompt.experiments.events import images_by_split, versions
from fedprompt.experiments.experiment import Experiment
from fedprompt.experiments.test_sets import TestSet
from fedprompt.file_system import is_file, read_bytes
from fedprompt.records.events import HeaderEvent
from fedprompt.records.run_folder import RunFolder
from fedprompt.text_files import json_text

MACHINE = ("platform", "threads")  # versions that differ from machine to machine, without being a change of a run
PARTITION = "partition.json"  # in the folder of a run
LONGEST = 60  # characters of a value in a sentence
ANOTHER = {"labels": "other labels", "split": "another split", "domains": "other domains", "classes": "other classes"}


def warn_of_problems(experiment: Experiment, callbacks: RunCallbacks) -> None:
    """Warn of methods and images that are left out, of what the reader of the data found, and of other problems."""
    for reason in experiment.not_carried:
        callbacks.on_warning(f"Left out of the comparison: {reason}")
    for warning in experiment.dataset.report.all_warnings():
        callbacks.on_warning(warning)
    if lost := experiment.left_out:
        some = f"Left out because they cannot be read: {plural(len(lost), 'image')}, listed in run.jsonl."
        callbacks.on_warning(f"{some} {lost[0].reason}")
    for messages in experiment.problems.values():
        more = f" {len(messages) - 1:,} more like this are listed in run.jsonl." if len(messages) > 1 else ""
        callbacks.on_warning(messages[0] + more)
    for remark in (*experiment.remarks, *experiment.cut_texts):
        callbacks.on_warning(remark)


def warn_of_missing_tests(experiment: Experiment, test_sets: Sequence[TestSet], callbacks: RunCallbacks) -> None:
    """Warn before training if there is no image to test with; sites may have test images of their own."""
    evaluate = experiment.recipe.evaluate
    if test_sets or not evaluate.test or (experiment.plan.data_at_sites and evaluate.local):
        return
    callbacks.on_warning(
        f"The data set {experiment.dataset.name!r} has no test images, so this run will train and test nothing. If "
        "that is not meant, stop it and give the data set a test part, or a share of its images to test with."
    )


def header_of(run: RunFolder) -> HeaderEvent:
    """The header of a run's record; UserError if the run stopped before it was written."""
    header = next((event for event in run.events() if isinstance(event, HeaderEvent)), None)
    if header is None:
        raise UserError(
            f"The run {run.path} stopped before it had recorded anything; delete the folder and start again."
        )
    return header


def recorded_partition(folder: Path) -> Partition | None:
    """The partition that a run began with; None in a folder without it."""
    path = folder / PARTITION
    return Partition.from_json(read_bytes(path, "restore the file from a copy").decode()) if is_file(path) else None


def changes_since(header: HeaderEvent, experiment: Experiment, partition: Partition | None) -> list[str]:
    """What is no longer as a run's header and `partition` say: recipe, versions, backbone, data, clients or texts."""
    images = [*_changed_images(header, experiment)]
    return [
        *_recipe_changes("", _that_count(header.recipe), _that_count(experiment.recipe.model_dump(mode="json"))),
        *_value_changes(header.versions, {key: one for key, one in versions().items() if key not in MACHINE}),
        *_fingerprint_changes(header, experiment),
        *(images or (*_data_changes(header, experiment), *_client_changes(partition, experiment.partition))),
    ]


def _that_count(recipe: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The tables of a recipe without that of the runtime, which no result depends on."""
    return {key: value for key, value in recipe.items() if key != "runtime"}


def _recipe_changes(place: str, before: JsonValue, now: JsonValue) -> Iterator[str]:
    """The keys of a recipe, as [table] key, whose values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            yield from _recipe_changes(f"{place}.{key}" if place else key, before.get(key), now.get(key))
    elif before != now:
        table, _, key = place.rpartition(".")
        yield f"{f'[{table}] ' if table else ''}{key} was {_short(before)}, is {_short(now)}"


def _value_changes(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for what, value in now.items():
        if before.get(what) != value:
            yield f"{what} was {before.get(what)}, is {value}"


def _changed_images(header: HeaderEvent, experiment: Experiment) -> Iterator[str]:
    """Other images; rows are not the same then, so that nothing is said of labels, split and clients."""
    before, now = header.data.images, images_by_split(experiment.dataset)
    if header.data.fingerprint != experiment.dataset.source.fingerprint:
        counts = (
            f"{sum(before.values()):,}, now {sum(now.values()):,}" if before != now else "as many, of other content"
        )
        yield f"other images, or other names of them ({counts})"


def _fingerprint_changes(header: HeaderEvent, experiment: Experiment) -> Iterator[str]:
    for what, before, now in (
        ("backbone", header.backbone.fingerprint, experiment.clip.fingerprint),
        *(
            ("descriptions file", before, text_fingerprint(experiment.described[name]))
            for name, before in header.descriptions.items()
            if name in experiment.described
        ),
    ):
        if before != now:
            yield f"another {what} (fingerprint {before[:12]}, now {now[:12]})"


def _data_changes(header: HeaderEvent, experiment: Experiment) -> Iterator[str]:
    """Other labels, split, domains or classes than those recorded."""
    before, dataset = header.data, experiment.dataset
    now, counts = fingerprints(dataset), partition_counts(experiment.partition, dataset)
    base, new = ([dataset.space.names[label] for label in labels] for labels in (dataset.base, dataset.new))
    details: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "split": (before.images, images_by_split(dataset)),
        "classes": ({"base": before.base, "new": before.new}, {"base": base, "new": new}),
    }
    changed = [what for what, one in before.columns.items() if now.get(what, one) != one]
    if not before.columns:  # a run of an older version, which has recorded names and numbers alone
        changed = [what for what, (was, one) in details.items() if json_text(was) != json_text(one)]
        if not changed and header.partition is not None and header.partition.counts != counts.counts:
            changed = ["labels"]
    for what in changed:
        was, one = map(_short, details.get(what, ({}, {})))
        yield f"{ANOTHER[what]} ({was}, now {one})" if was != one else ANOTHER[what]


def _client_changes(before: Partition | None, now: Partition) -> Iterator[str]:
    """Clients that hold other images or classes, or whose held-out images are drawn with another seed."""
    if before is None or (before.shards, before.seed) == (now.shards, now.seed):
        return
    was, one = (plural(len(partition.shards), "client") for partition in (before, now))
    yield f"other clients ({was}, now {one})" if was != one else "clients with other images or classes"


def _short(value: JsonValue) -> str:
    text = json_text(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
