"""Prediction with a trained adapter: images over the adapter's own classes or over any others, in batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fedprompt import methods
from fedprompt.clip.devices import find_device
from fedprompt.clip.hub import require_available
from fedprompt.clip.model import Clip
from fedprompt.clip.precision import Precision
from fedprompt.config.blocks import Block, bind
from fedprompt.config.outside_code import is_outside, require_trusted
from fedprompt.config.recipe import checked
from fedprompt.config.recipe_tables import BackboneTable, DataTable
from fedprompt.config.registry import SOURCES
from fedprompt.data.file_source import FileSource
from fedprompt.data.images import Images, OnStep
from fedprompt.data.intake.given_images import Unreadable, find_given
from fedprompt.data.intake.path_tables import read_labels
from fedprompt.data.labels import LabelSpace
from fedprompt.data.problems import scan_images
from fedprompt.demo import DEMO, LIMIT
from fedprompt.errors import UserError, did_you_mean, option, plural
from fedprompt.experiments.class_descriptions import candidate_warnings, check_distinct_texts
from fedprompt.experiments.experiment import load_backbone
from fedprompt.experiments.model_card import adapter_folder
from fedprompt.experiments.plan import FindMethod, bind_method
from fedprompt.experiments.prediction_notes import (
    figure_sentences,
    label_notes,
    trained_on_sentence,
)
from fedprompt.experiments.prediction_thresholds import choose_thresholds
from fedprompt.experiments.predictions import GIVEN, Predictions, decide, evaluate, match
from fedprompt.experiments.sample_images import png, recognise
from fedprompt.experiments.test_sets import class_probabilities
from fedprompt.federated.rounds import initial_state
from fedprompt.file_system import is_file, is_folder, read_bytes, require_folder
from fedprompt.methods import method_summary
from fedprompt.methods.base import Method, open_classifier
from fedprompt.ops.metrics import require_finite
from fedprompt.records.adapter import Adapter, check_backbone, check_tensors, load_adapter, load_tensors
from fedprompt.records.events import SampleEvent, TrialEvent
from fedprompt.records.output_folder import FINAL, final_folder, resuming, searching
from fedprompt.records.reading import Run, trial_label
from fedprompt.records.run_folder import write_atomic
from fedprompt.report import predictions_page, read_run
from fedprompt.report.page import title
from fedprompt.report.verdict import introduced
from fedprompt.seeding import stream
from fedprompt.text_files import load_json_object
from fedprompt.updates import State

MOST_NUMBERS = 1 << 28  # that a method may hold, shared and personal: 1 GiB
BATCH = 32  # images that are classified together, and between two moves of a progress bar
PAGE_IMAGES = 100  # images that a page shows
CACHE_GB = 0.125  # memory for features of a batch, which a method may read more than once


def open_adapter(place: Path, *, trial: str | None = None, trusted: Sequence[str] = ()) -> Adapter:
    """Read an adapter folder, or the adapter of a run's main trial or of `trial`; UserError if there is none.

    Of a search for settings, it is the final run.
    `trusted` are the modules outside fedprompt that the adapter may name as its method.
    """
    require_folder(place, "give the folder of a run or of an adapter")
    place = run_of(place)
    if not is_file(place / "run.jsonl"):
        return replace(load_adapter(place), trusted=tuple(trusted))
    run = read_run(place)
    known = [record.name for record in run.trials]
    name = trial or run.header.main
    if name not in known:
        raise UserError(unknown_trial(str(name), known, f" {place}"))
    if name == ".." or Path(name).name != name:  # a made record must not lead to another folder
        raise UserError(f"The run {place} has a trial {name!r}, which is no name of a folder; restore it from a copy.")
    folder = adapter_folder(place, name)
    if not is_file(folder / "adapter_config.json"):
        raise UserError(f"The run {place} has no finished adapter of {name!r} yet; finish it with {resuming(place)}.")
    return replace(load_adapter(folder), trusted=tuple(trusted))


def run_of(place: Path) -> Path:
    """The folder, or that of the final run if it holds a search for settings; UserError if that has not begun."""
    final = final_folder(place)
    if final is None or is_file(final / "run.jsonl"):
        return final or place
    raise UserError(f"The final run in {final} has not begun: {searching(place)}.")


def unknown_trial(name: str, known: Collection[str], place: str = "") -> str:
    """The sentence about a trial that a run does not have."""
    names = ", ".join(known) or "not begun yet"
    return f"The run{place} has no trial {name!r}{did_you_mean(name, known)} (its trials are {names})."


def introduction(adapter: Adapter, *, others: bool = False) -> Iterator[str]:
    """Which method of a run an adapter is of, its figure and rounds, and which other has a higher figure.

    With `others`, other classes than the adapter's are or may be given, of which the figures are not. Of an adapter
    outside a run, only the method.
    """
    yield from _introduced(adapter, _run_with(adapter), others=others)
    if said := usable_precision(adapter)[1]:
        yield said


def _introduced(adapter: Adapter, run: Run | None, *, others: bool) -> Iterator[str]:
    trial = next((one for one in run.trials if one.name == adapter.folder.name), None) if run else None
    if run is None or trial is None:
        yield f"{label_of(adapter)}, from the adapter {adapter.folder}."
        return
    yield from introduced(run, trial)
    if others and trial.figures:
        own = plural(len(adapter.space), "class")
        yield f"Figures of the run are of its own {own} and do not hold for a choice among others."


def introduction_on_page(adapter: Adapter, *, others: bool) -> Iterator[str]:
    """The same without a path of this machine; then the run, its training images, and what its CLIP does not know."""
    run = _run_with(adapter)
    for said in _introduced(adapter, run, others=others):
        yield said.replace(str(adapter.folder), adapter.folder.name)
    if run is not None:
        place = adapter.folder.absolute().parent.parent
        yield f"From the run {place.parent.name if place.name == FINAL else place.name}: {title(run)}."
    held = run.header.partition if run else None
    if held is not None and (images := sum(map(held.images, range(len(held.clients))))):
        yield f"The clients hold {plural(images, 'training image')} of {plural(len(held.classes), 'class')}."
    if said := usable_precision(adapter)[1]:
        yield said
    if adapter.card.base_model_name_or_path == DEMO:
        yield LIMIT


def gives_others(adapter: Adapter, classes: Sequence[str]) -> bool:
    """Whether candidates are given that are not the adapter's own classes."""
    return bool(classes) and set(classes) != set(adapter.space.names)


def _run_with(adapter: Adapter) -> Run | None:
    """The run in whose folder an adapter lies."""
    place = adapter.folder.absolute().parent.parent
    inside = adapter_folder(place, adapter.folder.name) == adapter.folder.absolute() and is_file(place / "run.jsonl")
    return read_run(place) if inside else None


def label_of(adapter: Adapter) -> str:
    """The adapter's method as tables spell it."""
    name = adapter.card.method
    return trial_label(name, name, method_summary(methods.load(name))) if name in methods.names() else name


def method_of(adapter: Adapter, find_method: FindMethod = methods.load) -> Block[Method]:
    """The adapter's method with its options; UserError if it is code outside fedprompt that is not trusted."""
    name = adapter.card.method
    if is_outside(name):
        require_trusted((name,), adapter.trusted, place=f"The adapter {adapter.folder}")
    return bind_method(name, adapter.card.params, place=str(adapter.folder), find_method=find_method)


def restore(
    adapter: Adapter, *, backbone: str | None = None, clip: Clip | None = None, find_method: FindMethod = methods.load
) -> tuple[Method, Clip]:
    """Open the adapter's backbone, or the copy of it at `backbone`, and load the trained tensors into a method.

    `clip` is a backbone that is open already, and `find_method` looks the method up. Raises UserError if the method is
    code outside fedprompt that is not trusted, if the backbone is another one, or if a tensor does not fit.
    """
    block = method_of(adapter, find_method)
    path = backbone or adapter.card.base_model_name_or_path
    if clip is None and not path:
        raise UserError(
            f"The adapter {adapter.folder} was trained with a backbone that lay in no folder; give it with "
            f"{option('backbone', 'clip')}."
        )
    if clip is None:
        if path != DEMO:
            fix = f"give the folder of a copy with {option('backbone', 'clip=load_clip(folder)')}"
            require_available(path, fix=fix)
        clip = load_backbone(BackboneTable(path=path, memory_gb=CACHE_GB, precision=usable_precision(adapter)[0]))
    check_backbone(adapter, clip.fingerprint)
    if not is_outside(adapter.card.method):  # code of others may not support this, and is trusted
        check_tensors(adapter, _without_memory(block, clip, adapter))
    method = block(clip, generator=stream(0, "method")).to(clip.device)
    shared, personal = initial_state(method)
    method.load_state_dict({**load_tensors(adapter, shared, fingerprint=clip.fingerprint), **personal})
    return method, clip


def usable_precision(adapter: Adapter) -> tuple[Precision, str]:
    """The precision of the adapter's run, or float32 with a sentence where the device does not compute in it."""
    try:
        find_device("auto", adapter.card.precision)
    except UserError:
        return "float32", (
            f"The backbone computed in {adapter.card.precision} in the run and does so in float32 here, since this "
            "device cannot; predictions may differ a little."
        )
    return adapter.card.precision, ""


def _without_memory(block: Block[Method], clip: Clip, adapter: Adapter) -> State:
    """The shared tensors of an adapter's method on PyTorch's meta device, where they have a shape and no memory."""
    with torch.device("meta"):
        method = block(clip, generator=None)
    count = sum(tensor.numel() for tensor in method.state_dict().values())
    if count > MOST_NUMBERS:
        raise UserError(
            f"The options of the adapter {adapter.folder} make a method of {count:,} numbers, more than "
            f"{MOST_NUMBERS:,}; copy the adapter again."
        )
    return {name: tensor for name, tensor in method.named_parameters() if not name.startswith(method.personal)}


def candidates(
    adapter: Adapter, classes: Sequence[str], *, attributes: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> LabelSpace:
    """The adapter's own classes, or those named, each with the attributes given or else known to the adapter."""
    if not classes and not attributes:
        return adapter.space
    classes = classes or adapter.space.names
    every = {**adapter.space.attributes, **{name: tuple(own) for name, own in attributes.items()}}
    known = {name: every[name] for name in classes if name in every}
    return replace(adapter.space, names=tuple(classes), attributes=known)


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
    """Classify image files in batches; no image or feature is kept for longer than its batch, up to `CACHE_GB`."""
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


def find_unreadable(source: FileSource, rows: Sequence[int]) -> dict[int, Unreadable]:
    """The images among these rows that cannot be read."""
    reasons = scan_images(source, rows).unreadable
    return {
        row: Unreadable(source.describe(row), str(source.root / source.files[row]), reason)
        for row, reason in reasons.items()
    }
