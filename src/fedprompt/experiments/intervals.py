"""95% intervals of a run's figures, and of their differences between trials, by bootstrap over the test images.

They say how far a figure could differ on as many other test images of the same kind; they do not cover other seeds.
Draws depend on the test images alone: a model's interval on a test set is the same beside whichever other models. An
image that several clients are tested on is drawn for all of them together, and for the test set of all base classes.
Images of one group in `Dataset.groups` are drawn together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from fedprompt.data.dataset import Dataset
from fedprompt.experiments.changed_predictions import count_changed, prediction_digests
from fedprompt.experiments.keep import Keep
from fedprompt.ops.bootstrap import (
    Floats,
    interval,
    replicate_accuracy,
    replicate_binomial,
    replicate_mean,
    replicate_mean_average_precision,
)
from fedprompt.ops.metrics import harmonic_mean
from fedprompt.records.events import IntervalEvent, LocalImagesEvent
from fedprompt.records.predictions import Predictions, read_predictions
from fedprompt.records.run_record import AVERAGED, BROKEN, GAP, NATURAL, Run, TrialRecord
from fedprompt.seeding import numpy_stream

Columns = Mapping[str, Floats]  # column -> replicates [R] of its figure
RowGroups = Mapping[str, NDArray[np.int64]]  # part -> group of every row of its data set; without it each has its own


def row_groups(dataset: Dataset) -> RowGroups:
    """The groups of rows that are drawn together, of every part of a data set that has some."""
    parts = {part.name: part for part in dataset.parts} if len(dataset.parts) > 1 else {"": dataset}
    return {name: np.array(part.groups) for name, part in parts.items() if part.groups}


def interval_events(folder: Path, run: Run, groups: RowGroups) -> Iterator[IntervalEvent]:
    """Intervals of every figure of a run, of its difference to the reference, and of the main trial's to all others."""
    replicates, digests = {}, {}
    for trial in run.trials:
        predictions = tuple(read_predictions(folder, trial.name))
        replicates[trial.name] = _replicates(run, trial, predictions, groups)
        digests[trial.name] = prediction_digests(predictions)
    for trial in run.trials:
        for event in _of_trial(run, replicates, trial):
            other = digests.get(event.against)
            changed = count_changed(digests[trial.name], other, event.column) if other is not None else None
            yield event if changed is None else event.model_copy(update={"changed": changed})


def _of_trial(run: Run, replicates: Mapping[str, Columns], trial: TrialRecord) -> Iterator[IntervalEvent]:
    for column in replicates.get(trial.name, {}):
        yield _event(run, replicates, column, trial)
        for other in _compared(run, trial):
            if column in replicates.get(other.name, {}):
                yield _event(run, replicates, column, trial, other)


def _compared(run: Run, trial: TrialRecord) -> list[TrialRecord]:
    """The trials that a trial is compared with: the main one with all others, the others with the reference.

    Also with earlier ones of equal figures, to know whether their predictions are equal too.
    """
    if trial == run.main:
        return [other for other in run.trials if other != trial]
    earlier = run.trials[: run.trials.index(trial)]
    alike = [other for other in earlier if other.figures == trial.figures and other not in (run.main, run.reference)]
    first = [run.reference] if run.reference is not None and trial != run.reference else []
    return [*first, *alike]


def _event(
    run: Run, replicates: Mapping[str, Columns], column: str, trial: TrialRecord, other: TrialRecord | None = None
) -> IntervalEvent:
    values, figure = replicates[trial.name][column], trial.figures[column]
    if other is not None:
        values, figure = _difference(values, replicates[other.name][column]), figure - other.figures[column]
    low, high = interval(values)
    return IntervalEvent(
        trial=trial.name,
        column=column,
        against=other.name if other else "",
        value=figure,
        low=low,
        high=high,
        images=images_of(trial, column),
    )


def images_of(trial: TrialRecord, column: str) -> int:
    """The number of test images behind a figure; of a mean over columns, the smallest of them."""
    if column == "hm":
        return min(images_of(trial, one) for one in AVERAGED)
    if column == GAP:
        return min(images_of(trial, one) for one in (NATURAL, BROKEN))
    final = trial.final(column)
    distinct = [trial.local_images_of(part) for part in trial.by_part(column)] if column == "local" else []
    if distinct and all(distinct):
        return sum(len(images.rows) for images in distinct if images)
    owners = {score.client for score in final} if column != "local" else {None}
    return sum(score.num_examples for score in final) // len(owners)  # personal models share the test images


def _difference(left: Floats, right: Floats) -> Floats:
    count = min(len(left), len(right))  # equal but for test sets that differ
    difference: Floats = left[:count] - right[:count]
    return difference


def _replicates(run: Run, trial: TrialRecord, predictions: Sequence[Predictions], groups: RowGroups) -> Columns:
    """Column -> replicates of a trial's figure."""
    parts = _test_set_replicates(run, trial, predictions, groups)
    columns = {split: _mean(_mean(part) for part in own.values()) for split, own in parts.items()}
    columns.update(_combined(columns))
    return {column: values for column, values in columns.items() if column in trial.figures}


def _test_set_replicates(
    run: Run, trial: TrialRecord, predictions: Sequence[Predictions], groups: RowGroups
) -> dict[str, dict[str, list[Floats]]]:
    """Split -> part -> replicates of each model on each test set."""
    drawn: dict[str, dict[str, list[Floats]]] = {}
    for found in predictions:
        split, _, part, _ = found.key
        drawn.setdefault(split, {}).setdefault(part, []).append(_replicates_of(found, found.key[:3], groups))
    for part, values in _local(run, trial, [found for found in predictions if found.key[0] == "base"], groups):
        drawn.setdefault("local", {}).setdefault(part, []).append(values)
    return drawn


def _replicates_of(found: Predictions, address: Iterable[object], groups: RowGroups) -> Floats:
    """Replicates [R] of a model on a test set; those of all models on it are drawn at the same images."""
    generator, own = _generator(address, found.rows), _groups(found.rows, found.key[2], groups)
    if found.scores is not None and found.targets is not None:
        return replicate_mean_average_precision(found.scores, found.targets, generator=generator, groups=own)
    assert found.correct is not None  # a file of predictions has one or the other
    return replicate_accuracy(found.correct, generator=generator, groups=own)


def _groups(rows: NDArray[np.int64], part: str, groups: RowGroups) -> NDArray[np.int64] | None:
    return groups[part][rows] if part in groups else None


def _generator(address: Iterable[object], rows: NDArray[np.int64]) -> Generator:
    """What the images of a test set are drawn by."""
    return numpy_stream(0, "bootstrap", *map(str, address), hashlib.sha256(rows.tobytes()).hexdigest())


def held_out_replicates(folder: Path, name: str, keep: Keep) -> Floats | None:
    """Replicates [R] of the metric of held-out images, from a search's predictions under a name; None without any.

    Clients are weighted as the metric weighs them. The headline metric stands for any that is no column.
    """
    columns: dict[str, list[tuple[int, Floats]]] = {}
    for found in read_predictions(folder, name):
        weight = 1 if found.key[0] == "local" else len(found.rows)
        address = "held out", found.key[3]
        columns.setdefault(found.key[0], []).append((weight, _replicates_of(found, address, {})))
    if not columns or any(column not in columns for column in keep.candidates):
        return None
    means = [_weighted(columns[column]) for column in keep.candidates]
    return means[0] if len(means) == 1 else np.array([harmonic_mean(*row) for row in np.stack(means, axis=1)])


def _weighted(parts: Sequence[tuple[int, Floats]]) -> Floats:
    """The mean [R] of clients' replicates, where they are defined."""
    count = min(len(values) for _, values in parts)
    values = np.stack([values[:count] for _, values in parts])  # [clients, R]
    weights = np.where(np.isnan(values), 0.0, np.array([[weight] for weight, _ in parts]))
    mean: Floats = (weights * np.nan_to_num(values)).sum(axis=0) / np.maximum(weights.sum(axis=0), 1e-12)
    return mean


def _local(
    run: Run, trial: TrialRecord, base: Sequence[Predictions], groups: RowGroups
) -> Iterator[tuple[str, Floats]]:
    """Replicates of the mean of the clients' local accuracies on a data set or, where sites answer, of each of them.

    Sites answer with a figure, not image by image: their images are their own, and replicates are not paired.
    """
    if run.header.metric != "accuracy":
        return
    for part, figure in trial.by_part("local").items():
        if figure is not None and (images := trial.local_images_of(part)) is not None:
            yield part, _local_replicates(figure, images, [one for one in base if one.key[2] == part], groups)
    for score in trial.final("local"):
        if score.value is not None and score.num_examples and trial.local_images_of(score.part) is None:
            generator = numpy_stream(0, "bootstrap", "local", trial.name, score.client or 0)
            yield score.part, replicate_binomial(score.value, score.num_examples, generator=generator)


def _local_replicates(
    figure: float, images: LocalImagesEvent, base: Sequence[Predictions], groups: RowGroups
) -> Floats:
    """Replicates [R] of a Local figure, at the images of the test set of base classes if the clients' are among them.

    Base classes and clients' own are then paired, as their harmonic mean needs it.
    """
    rows, influence, address = np.array(images.rows), np.array(images.influence), ("local", "all", images.part)
    for found in base:
        place = {row: number for number, row in enumerate(found.rows.tolist())}
        if set(images.rows) <= place.keys():
            influence = np.zeros(len(found.rows))
            influence[[place[row] for row in images.rows]] = images.influence
            rows, address = found.rows, found.key[:3]
            break
    own = _groups(rows, images.part, groups)
    return replicate_mean(figure, influence, generator=_generator(address, rows), groups=own)


def _mean(values: Iterable[Floats]) -> Floats:
    found = list(values)
    count = min(map(len, found))
    mean: Floats = np.mean([one[:count] for one in found], axis=0)
    return mean


def _combined(columns: Columns) -> dict[str, Floats]:
    """The columns that are made of others: `hm` and `gap`."""
    made = {}
    if all(column in columns for column in AVERAGED):
        rows = np.stack([columns[column] for column in AVERAGED], axis=1)
        made["hm"] = np.array([harmonic_mean(*row) for row in rows])
    if NATURAL in columns and BROKEN in columns:
        made[GAP] = _difference(columns[NATURAL], columns[BROKEN])
    return made
