"""Prediction of image files with a trained adapter, in batches, and the page that shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedprompt.clip.model import Clip
from fedprompt.config.blocks import bind
from fedprompt.config.recipe import checked
from fedprompt.config.recipe_tables import DataTable
from fedprompt.config.registry import SOURCES
from fedprompt.data.file_source import FileSource
from fedprompt.data.images import Images, OnStep
from fedprompt.data.intake.given_images import Unreadable, find_given
from fedprompt.data.intake.path_tables import read_labels
from fedprompt.data.labels import LabelSpace
from fedprompt.data.problems import find_unreadable
from fedprompt.errors import UserError
from fedprompt.experiments.adapters import candidates, gives_others, restore
from fedprompt.experiments.class_descriptions import candidate_warnings, check_distinct_texts
from fedprompt.experiments.prediction_notes import (
    figure_sentences,
    introduction_on_page,
    label_notes,
    trained_on_sentence,
)
from fedprompt.experiments.prediction_thresholds import choose_thresholds
from fedprompt.experiments.predictions import GIVEN, Predictions, decide, evaluate, match
from fedprompt.experiments.sample_images import png, recognise
from fedprompt.experiments.test_sets import class_probabilities
from fedprompt.file_system import is_file, is_folder, read_bytes
from fedprompt.methods import method_summary
from fedprompt.methods.base import Method, open_classifier
from fedprompt.ops.metrics import require_finite
from fedprompt.records.adapter import Adapter
from fedprompt.records.atomic_files import write_atomic
from fedprompt.records.events import SampleEvent, TrialEvent
from fedprompt.report import predictions_page
from fedprompt.text_files import load_json_object

BATCH = 32  # images that are classified together, and between two moves of a progress bar
PAGE_IMAGES = 100  # images that a page shows


@dataclass(frozen=True)
class Request:
    """What is to be predicted: files, folders, patterns and tables (`places`), over `classes` or the adapter's own.

    `labels` is a table of true labels. `page` is an HTML file to write, with pictures, predictions and attention maps.
    `backbone` is where the backbone lies, if it is not where the adapter says.
    """

    places: Sequence[str | Path]
    classes: Sequence[str] = ()
    labels: Path | None = None
    page: Path | None = None
    backbone: str | None = None


def predict_files(adapter: Adapter, request: Request, *, on_step: OnStep | None = None) -> Predictions:
    """Predict the classes of image files, of all images in folders, of those that patterns match or tables name.

    An image that cannot be read costs only itself. UserError if no place leads to a file.
    """
    given = find_given(request.places)
    if not given.files:
        raise UserError("\n".join(one.reason for one in given.unusable))
    space = candidates(adapter, request.classes)
    labels = None if request.labels is None else read_labels(request.labels.expanduser(), space)
    method, clip = restore(adapter, backbone=request.backbone)
    check_distinct_texts(clip, space)
    every = FileSource(Path(), tuple(map(str, given.files)), names=given.names)
    batches = list(classify_files(method, clip, every, space, on_step))
    unreadable = (*given.unusable, *(one for batch in batches for one in batch.unreadable))
    source = every.take([row for batch in batches for row in batch.rows])
    logits = torch.cat([batch.logits for batch in batches])  # [N, C]
    probabilities = class_probabilities(logits, space.kind)
    images = Images(source, tuple(range(len(source))))
    chosen = choose_thresholds(adapter, (method, clip), images, space, probabilities)
    limits = chosen.values
    matched = None if labels is None else match(labels, source.files, unread=[one.path for one in unreadable])
    found = Predictions(
        decide(source.names, logits, space, limits, matched.targets if matched else None),
        space,
        probabilities,
        tuple(source.files),
        method=adapter.card.method,
        thresholds=tuple(limits.tolist()) if space.kind == "multi" else (),
        threshold_sentence=chosen.sentence,
        unreadable=unreadable,
        left_out=given.left_out,
        matched=matched,
        evaluation=None if matched is None else evaluate(source, logits, space, limits, matched),
        warnings=candidate_warnings(clip, space),
    )
    found = replace(found, trained_on=count_trained_on(adapter, found))
    if request.page is not None:
        _write_page(request.page, adapter, (method, clip), source, found)
    return found


def count_trained_on(adapter: Adapter, found: Predictions) -> int:
    """How many images that figures are made of are, byte for byte, training images of the data of the adapter's run.

    0 where no labels were given, and where it cannot be told: the data are gone, or not in files of their own.
    """
    path = adapter.folder / "provenance.json"
    if found.evaluation is None or found.matched is None or not is_file(path):
        return 0
    tested = [found.files[row] for row in found.matched.known]
    training = _training_files(load_json_object(read_bytes(path)))
    together = FileSource(Path(), (*training, *tested))
    return sum(first < len(training) for first in together.contents[len(training) :])


def _training_files(provenance: Mapping[str, Any]) -> list[str]:
    """The files that the data of a run have for training; none where they cannot be read as they were."""
    match provenance:
        case {"recipe": {"data": {"source": str(name), "path": str(path)}}} if name in SOURCES.names():
            # neither code nor a download that an adapter of others names
            if is_file(Path(path)) or is_folder(Path(path)):
                return _training_files_of(dict(provenance["recipe"]["data"]))
    return []


def _training_files_of(table: Mapping[str, Any]) -> list[str]:
    """The files for training of the data that a recipe's [data] names."""
    try:
        data = checked(DataTable, table, origin="the adapter")
        found = bind(data.source, SOURCES.find(data.source, place="the adapter"), data.options, place="the adapter")()
    except UserError:
        return []
    source = found.source
    if not isinstance(source, FileSource):
        return []
    return [str(source.root / source.files[row]) for row in found.rows(split="train").tolist()]


def _write_page(
    page: Path, adapter: Adapter, trained: tuple[Method, Clip], source: FileSource, found: Predictions
) -> None:
    """Write the page with the first images, their predictions and attention maps, and mistakes if labels are given."""
    position = {name: label for label, name in enumerate(found.space.names)}
    samples = []
    for number, one in enumerate(found.images[:PAGE_IMAGES]):
        image = Images(source, (number,))
        known = [position[name] for name in one.truth or () if name in position]
        recognised = {**recognise(*trained, image, found.space, truth=known), "truth": one.truth or ()}
        samples.append(
            SampleEvent(
                trial=adapter.card.method,
                sample=str(number),
                split="" if one.truth is None else GIVEN,
                picture=png(source.open(number)),
                decided=one.decided,
                **recognised,
            )
        )
    mistakes = () if found.evaluation is None else (found.evaluation.mistakes,)
    name = adapter.card.method
    content = predictions_page(
        TrialEvent(trial=name, method=name, idea=method_summary(type(trained[0]))),
        samples,
        mistakes=mistakes,
        total=len(found.images),
        unreadable=[(one.name, one.error) for one in found.unreadable],
        notes=list(_page_notes(adapter, found)),
    )
    write_atomic(page, content)


def _page_notes(adapter: Adapter, found: Predictions) -> Iterator[str]:
    """Which model predicted, its figures with given labels, and what to know about them; no path of this machine."""
    yield from introduction_on_page(adapter, others=gives_others(adapter, found.space.names))
    if found.threshold_sentence:
        yield found.threshold_sentence
    yield from figure_sentences(found)
    yield from label_notes(found)
    if said := trained_on_sentence(found):
        yield said
    yield from found.warnings


@dataclass(frozen=True)
class Batch:
    """The rows of the images of a batch that can be read, their logits [B, C], and the other images."""

    rows: Sequence[int]
    logits: Tensor
    unreadable: tuple[Unreadable, ...] = ()


@torch.no_grad()
def classify_files(
    method: Method, clip: Clip, source: FileSource, space: LabelSpace, on_step: OnStep | None = None
) -> Iterator[Batch]:
    """Classify image files in batches; no image or feature is kept longer than its batch (`adapters.CACHE_GB`)."""
    method.eval()
    classify = open_classifier(method, clip, space)

    def logits(rows: Sequence[int]) -> Tensor:
        own = source.take(rows)  # whose features are not kept for longer
        scores = classify(Images(own, tuple(range(len(own))))).float().cpu()
        require_finite(scores, type(method).__name__, trained=bool(method.trainable()))
        return scores

    for start in range(0, len(source), BATCH):
        rows = range(start, min(start + BATCH, len(source)))
        try:
            yield Batch(rows, logits(rows))
        except UserError:  # images are opened one by one only where a batch fails: nothing is decoded twice
            yield _without_unreadable(source, rows, logits, classes=len(space))
        if on_step is not None:
            on_step(rows.stop, len(source))


def _without_unreadable(
    source: FileSource, rows: Sequence[int], logits: Callable[[Sequence[int]], Tensor], *, classes: int
) -> Batch:
    unreadable = find_unreadable(source, rows)
    if not unreadable:
        return Batch(rows, logits(rows))  # which fails for another reason, and says so
    kept = [row for row in rows if row not in unreadable]
    return Batch(kept, logits(kept) if kept else torch.empty(0, classes), tuple(unreadable.values()))
