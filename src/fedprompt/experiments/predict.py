"""Prediction with a trained adapter: images over the adapter's own classes or over any others, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from fedprompt import methods
from fedprompt.clip.model import Clip
from fedprompt.config.blocks import Block
from fedprompt.config.outside_code import is_outside, require_trusted
from fedprompt.config.recipe_tables import BackboneTable
from fedprompt.data.file_source import FileSource
from fedprompt.data.images import Images, OnStep
from fedprompt.data.intake.given_images import find_given
from fedprompt.data.intake.path_tables import read_labels
from fedprompt.data.labels import LabelSpace
from fedprompt.data.problems import scan_images
from fedprompt.errors import UserError
from fedprompt.experiments.class_descriptions import check_distinct_texts
from fedprompt.experiments.experiment import load_backbone
from fedprompt.experiments.model_card import adapter_folder
from fedprompt.experiments.plan import FindMethod, bind_method
from fedprompt.experiments.predictions import Predictions, decide, evaluate
from fedprompt.experiments.sample_images import png, recognise
from fedprompt.experiments.test_sets import class_probabilities
from fedprompt.federated.rounds import initial_state
from fedprompt.file_system import is_file, is_folder, read_bytes, require_folder
from fedprompt.methods import method_summary
from fedprompt.methods.base import Method
from fedprompt.ops.metrics import require_finite
from fedprompt.records.adapter import Adapter, check_tensors, load_adapter, load_tensors
from fedprompt.records.events import SampleEvent, TrialEvent
from fedprompt.records.output_folder import resuming
from fedprompt.records.run_folder import write_atomic
from fedprompt.report import predictions_page, read_run
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

    `trusted` are the modules outside fedprompt that the adapter may name as its method.
    """
    require_folder(place, "give the folder of a run or of an adapter")
    if not is_file(place / "run.jsonl"):
        return replace(load_adapter(place), trusted=tuple(trusted))
    run = read_run(place)
    known = [record.name for record in run.trials]
    name = trial or run.header.main
    if name not in known:
        raise UserError(f"The run {place} has no trial {name!r}; its trials are {', '.join(known) or 'not begun yet'}.")
    if name == ".." or Path(name).name != name:  # a made record must not lead to another folder
        raise UserError(f"The run {place} has a trial {name!r}, which is no name of a folder; restore it from a copy.")
    folder = adapter_folder(place, name)
    if not is_file(folder / "adapter_config.json"):
        raise UserError(f"The run {place} has no finished adapter of {name!r} yet; finish it with {resuming(place)}.")
    return replace(load_adapter(folder), trusted=tuple(trusted))


def introduction(place: Path, adapter: Adapter) -> tuple[str, ...]:
    """Which method of a run an adapter is of, its figure and rounds, and which other has a higher figure.

    Of an adapter outside a run, only the method.
    """
    if not is_file(place / "run.jsonl"):
        return (f"{adapter.card.method}, from the adapter {adapter.folder}.",)
    run = read_run(place)
    trial = next((one for one in run.trials if one.name == adapter.folder.name), None)
    return () if trial is None else tuple(introduced(run, trial))


def restore(
    adapter: Adapter, *, backbone: str | None = None, clip: Clip | None = None, find_method: FindMethod = methods.load
) -> tuple[Method, Clip]:
    """Open the adapter's backbone, or the copy of it at `backbone`, and load the trained tensors into a method.

    `clip` is a backbone that is open already, and `find_method` looks the method up. Raises UserError if the method is
    code outside fedprompt that is not trusted, if the backbone is another one, or if a tensor does not fit.
    """
    if is_outside(adapter.card.method):
        require_trusted((adapter.card.method,), adapter.trusted, place=f"The adapter {adapter.folder}")
    path = backbone or adapter.card.base_model_name_or_path
    clip = clip or load_backbone(BackboneTable(path=path, memory_gb=CACHE_GB))
    place = str(adapter.folder)
    block = bind_method(adapter.card.method, adapter.card.params, place=place, find_method=find_method)
    if not is_outside(adapter.card.method):  # code of others may not support this, and is trusted
        check_tensors(adapter, _without_memory(block, clip, adapter))
    method = block(clip, generator=stream(0, "method")).to(clip.device)
    shared, personal = initial_state(method)
    method.load_state_dict({**load_tensors(adapter, shared, fingerprint=clip.fingerprint), **personal})
    return method, clip


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

    An image that cannot be read costs only itself; UserError if none can.
    """
    given = find_given(request.places)
    if not given.files:
        raise UserError("\n".join(given.unusable))
    space = candidates(adapter, request.classes)
    labels = None if request.labels is None else read_labels(request.labels.expanduser(), space)
    method, clip = restore(adapter, backbone=request.backbone)
    check_distinct_texts(clip, space)
    batches = list(classify_files(method, clip, given.files, space, on_step))
    unreadable = (*given.unusable, *(reason for batch in batches for reason in batch.unreadable))
    source = FileSource(Path(), tuple(file for batch in batches for file in batch.source.files))
    if not len(source):
        raise UserError(unreadable[0] if len(unreadable) == 1 else f"No image can be read. {unreadable[0]}")
    logits = torch.cat([batch.logits for batch in batches])  # [N, C]
    limits = thresholds(adapter, space)
    found = Predictions(
        decide(source.files, logits, space, limits, labels),
        space,
        class_probabilities(logits, space.kind),
        method=adapter.card.method,
        unreadable=unreadable,
        left_out=given.left_out,
        evaluation=None if labels is None else evaluate(source, logits, space, limits, labels),
    )
    if request.page is not None:
        _write_page(request.page, adapter, (method, clip), source, found)
    return found


def may_be_trained_on(adapter: Adapter, found: Predictions) -> bool:
    """Whether images with given labels lie where the images were that the adapter's run trained on or tested with."""
    path = adapter.folder / "provenance.json"
    if found.evaluation is None or not is_file(path):
        return False
    match load_json_object(read_bytes(path)):
        case {"recipe": {"data": {"path": str(given)}}}:
            data = Path(given).expanduser().absolute()
            folder = data if is_folder(data) else data.parent
            return any(Path(one.picture).absolute().is_relative_to(folder) for one in found.images if one.truth)
    return False


def thresholds(adapter: Adapter, space: LabelSpace) -> Tensor:
    """[C] the probabilities from which labels are present: the adapter's own, 0.5 for a label without one."""
    fitted = dict(zip(adapter.card.class_names, adapter.card.thresholds or (), strict=False))
    return torch.tensor([fitted.get(name, 0.5) for name in space.names])


def _write_page(
    page: Path, adapter: Adapter, trained: tuple[Method, Clip], source: FileSource, found: Predictions
) -> None:
    """Write the page with the first images, their predictions and attention maps, and mistakes if labels are given."""
    position = {name: label for label, name in enumerate(found.space.names)}
    samples = [
        SampleEvent(
            trial=adapter.card.method,
            sample=str(number),
            picture=png(source.open(number)),
            decided=one.decided,
            **recognise(
                *trained,
                Images(source, (number,)),
                found.space,
                truth=[position[name] for name in one.truth or ()],
            ),
        )
        for number, one in enumerate(found.images[:PAGE_IMAGES])
    ]
    mistakes = () if found.evaluation is None else (found.evaluation.mistakes,)
    name = adapter.card.method
    about = TrialEvent(trial=name, method=name, idea=method_summary(type(trained[0])))
    write_atomic(page, predictions_page(about, samples, mistakes=mistakes, total=len(found.images)))


@dataclass(frozen=True)
class Batch:
    """The images of a batch that can be read, their logits [B, C], and a sentence on each of the others."""

    source: FileSource
    logits: Tensor
    unreadable: tuple[str, ...] = ()


@torch.no_grad()
def classify_files(
    method: Method, clip: Clip, files: Sequence[Path], space: LabelSpace, on_step: OnStep | None = None
) -> Iterator[Batch]:
    """Classify image files in batches; no image or feature is kept for longer than its batch, up to `CACHE_GB`."""
    method.eval()
    classify = method.classifier(clip, space)

    def logits(source: FileSource) -> Tensor:
        scores = classify(Images(source, tuple(range(len(source))))).float().cpu()
        require_finite(scores, type(method).__name__)
        return scores

    for start in range(0, len(files), BATCH):
        source = FileSource(Path(), tuple(map(str, files[start : start + BATCH])))
        try:
            yield Batch(source, logits(source))
        except UserError:  # images are opened one by one only where a batch fails: nothing is decoded twice
            yield _without_unreadable(source, logits, classes=len(space))
        if on_step is not None:
            on_step(start + len(source), len(files))


def _without_unreadable(source: FileSource, logits: Callable[[FileSource], Tensor], *, classes: int) -> Batch:
    reasons = scan_images(source, range(len(source))).unreadable
    if not reasons:
        return Batch(source, logits(source))  # which fails for another reason, and says so
    kept = source.take([row for row in range(len(source)) if row not in reasons])
    return Batch(kept, logits(kept) if len(kept) else torch.empty(0, classes), tuple(reasons.values()))
