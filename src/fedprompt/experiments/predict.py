"""Prediction with a trained adapter: image files and folders, over the adapter's own classes or over any others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from fedprompt import methods
from fedprompt.clip.model import Clip
from fedprompt.config.recipe_tables import BackboneTable
from fedprompt.data.file_source import FileSource
from fedprompt.data.images import Images, OnStep
from fedprompt.data.intake.given_images import find_given
from fedprompt.data.labels import LabelSpace
from fedprompt.data.problems import scan_images
from fedprompt.errors import UserError
from fedprompt.experiments.class_descriptions import check_distinct_texts
from fedprompt.experiments.experiment import load_backbone
from fedprompt.experiments.model_card import adapter_folder
from fedprompt.experiments.plan import FindMethod, bind_method
from fedprompt.experiments.sample_images import TOP, png, recognise
from fedprompt.experiments.test_sets import class_probabilities
from fedprompt.federated.rounds import initial_state
from fedprompt.file_system import is_file, require_folder
from fedprompt.methods.base import Method
from fedprompt.ops.metrics import require_finite
from fedprompt.records.adapter import Adapter, load_adapter, load_tensors
from fedprompt.records.events import SampleEvent
from fedprompt.records.run_folder import write_atomic
from fedprompt.report import predictions_page, read_run
from fedprompt.seeding import stream

BATCH = 128  # images that are classified together, and between two moves of a progress bar


@dataclass(frozen=True)
class Prediction:
    """The classes of an image with the highest probabilities, best first.

    `present` are the labels above the decision threshold; None for single-label data.
    """

    picture: str
    top: tuple[tuple[str, float], ...]
    present: tuple[str, ...] | None


@dataclass(frozen=True)
class Predictions:
    """The predictions of images; a sentence on each that cannot be read, and how many files were left out and why."""

    images: tuple[Prediction, ...]
    unreadable: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


def open_adapter(place: Path, *, trial: str | None = None) -> Adapter:
    """Read an adapter folder, or the adapter of a run's main trial or of `trial`; UserError if there is none."""
    require_folder(place, "give the folder of a run or of an adapter")
    if not is_file(place / "run.jsonl"):
        return load_adapter(place)
    run = read_run(place)
    known = [record.name for record in run.trials]
    name = trial or run.header.main
    if name not in known:
        raise UserError(f"The run {place} has no trial {name!r}; its trials are {', '.join(known) or 'not begun yet'}.")
    folder = adapter_folder(place, name)
    if not is_file(folder / "adapter_config.json"):
        raise UserError(
            f"The run {place} has no finished adapter of {name!r} yet; finish it with: fedprompt resume {place}"
        )
    return load_adapter(folder)


def restore(
    adapter: Adapter, *, backbone: str | None = None, clip: Clip | None = None, find_method: FindMethod = methods.load
) -> tuple[Method, Clip]:
    """Open the adapter's backbone, or the copy of it at `backbone`, and load the trained tensors into a method.

    `clip` is a backbone that is open already; `find_method` looks the method up. Raises UserError if the backbone is
    another one or a tensor does not fit.
    """
    clip = clip or load_backbone(BackboneTable(path=backbone or adapter.card.base_model_name_or_path))
    place = str(adapter.folder)
    block = bind_method(adapter.card.method, adapter.card.params, place=place, find_method=find_method)
    method = block(clip, generator=stream(0, "method")).to(clip.device)
    shared, personal = initial_state(method)
    method.load_state_dict({**load_tensors(adapter, shared, fingerprint=clip.fingerprint), **personal})
    return method, clip


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


def predict_files(
    adapter: Adapter,
    places: Sequence[str | Path],
    *,
    classes: Sequence[str] = (),
    backbone: str | None = None,
    page: Path | None = None,
    on_step: OnStep | None = None,
) -> Predictions:
    """Predict the classes of image files, of all images in folders, and of those that patterns match.

    `page` is an HTML file to write, with every image, its most probable classes and attention maps. An image that
    cannot be read costs only itself; UserError if none can.
    """
    given = find_given(places)
    method, clip = restore(adapter, backbone=backbone)
    space = candidates(adapter, classes)
    check_distinct_texts(clip, space)
    batches = list(_classified(method, clip, given.files, space, on_step))
    unreadable = (*given.unusable, *(reason for batch in batches for reason in batch.unreadable))
    source = FileSource(Path(), tuple(file for batch in batches for file in batch.source.files))
    if not len(source):
        raise UserError(unreadable[0] if len(unreadable) == 1 else f"No image can be read. {unreadable[0]}")
    probabilities = class_probabilities(torch.cat([batch.logits for batch in batches]), space.kind)  # [B, C]
    if page is not None:
        samples = [
            SampleEvent(
                trial=adapter.card.method,
                sample=str(number),
                picture=png(source.open(number)),
                **recognise(method, clip, Images(source, (number,)), space),
            )
            for number in range(len(source))
        ]
        write_atomic(page, predictions_page(adapter.card.method, samples))
    top = probabilities.topk(min(TOP, len(space)))
    rows = zip(source.files, top.indices.tolist(), top.values.tolist(), probabilities.tolist(), strict=True)
    predictions = (
        Prediction(
            picture,
            tuple((space.names[label], probability) for label, probability in zip(labels, values, strict=True)),
            _present(every, space, adapter),
        )
        for picture, labels, values, every in rows
    )
    return Predictions(tuple(predictions), unreadable, given.left_out)


@dataclass(frozen=True)
class Batch:
    """The images of a batch that can be read, their logits [B, C], and a sentence on each of the others."""

    source: FileSource
    logits: Tensor
    unreadable: tuple[str, ...] = ()


@torch.no_grad()
def _classified(
    method: Method, clip: Clip, files: Sequence[Path], space: LabelSpace, on_step: OnStep | None
) -> Iterator[Batch]:
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


def _present(probabilities: Sequence[float], space: LabelSpace, adapter: Adapter) -> tuple[str, ...] | None:
    """The labels at or above the adapter's threshold, which is 0.5 for a label without one."""
    if space.kind == "single":
        return None
    pairs = zip(space.names, probabilities, strict=True)
    return tuple(name for name, probability in pairs if probability >= fitted_threshold(adapter, name))


def fitted_threshold(adapter: Adapter, name: str) -> float:
    """The probability from which a label counts as present: the adapter's, or 0.5 for a label without one."""
    fitted = dict(zip(adapter.card.class_names, adapter.card.thresholds or (), strict=False))
    return fitted.get(name, 0.5)
