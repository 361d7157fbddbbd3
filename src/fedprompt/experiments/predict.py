"""Prediction with a trained adapter: image files, over the adapter's own classes or over any others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedprompt.clip.model import Clip
from fedprompt.config.recipe_tables import BackboneTable
from fedprompt.data.file_source import FileSource
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError
from fedprompt.experiments.experiment import load_backbone
from fedprompt.experiments.model_card import adapter_folder
from fedprompt.experiments.plan import bind_method
from fedprompt.experiments.sample_images import TOP, png, recognise
from fedprompt.experiments.test_sets import class_probabilities
from fedprompt.federated.evaluate import predict
from fedprompt.federated.rounds import initial_state
from fedprompt.methods.base import Method
from fedprompt.records.adapter import Adapter, load_adapter, load_tensors
from fedprompt.records.events import SampleEvent
from fedprompt.records.run_folder import write_atomic
from fedprompt.report import predictions_page, read_run
from fedprompt.seeding import stream


@dataclass(frozen=True)
class Prediction:
    """The classes of an image with the highest probabilities, best first.

    `present` are the labels above the decision threshold; None for single-label data.
    """

    picture: str
    top: tuple[tuple[str, float], ...]
    present: tuple[str, ...] | None


def open_adapter(place: Path, *, trial: str | None = None) -> Adapter:
    """Read an adapter folder, or the adapter of a run's main trial or of `trial`; UserError if there is none."""
    if not place.is_dir():
        raise UserError(f"There is no folder {place}; give the folder of a run or of an adapter.")
    if not (place / "run.jsonl").is_file():
        return load_adapter(place)
    run = read_run(place)
    known = [record.name for record in run.trials]
    name = trial or run.header.main
    if name not in known:
        raise UserError(f"The run {place} has no trial {name!r}; its trials are {', '.join(known) or 'not begun yet'}.")
    folder = adapter_folder(place, name)
    if not (folder / "adapter_config.json").is_file():
        raise UserError(
            f"The run {place} has no finished adapter of {name!r} yet; finish it with: fedprompt resume {place}"
        )
    return load_adapter(folder)


def restore(adapter: Adapter, *, backbone: str | None = None) -> tuple[Method, Clip]:
    """Open the adapter's backbone, or the copy of it at `backbone`, and load the trained tensors into a method.

    Raises UserError if the backbone is another one or a tensor does not fit.
    """
    clip = load_backbone(BackboneTable(path=backbone or adapter.card.base_model_name_or_path))
    block = bind_method(adapter.card.method, adapter.card.params, place=str(adapter.folder))
    method = block(clip, generator=stream(0, "method")).to(clip.device)
    shared, personal = initial_state(method)
    method.load_state_dict({**load_tensors(adapter, shared, fingerprint=clip.fingerprint), **personal})
    return method, clip


def candidates(adapter: Adapter, classes: Sequence[str]) -> LabelSpace:
    """The adapter's own classes, or those named, each with the attributes the adapter knows for it."""
    if not classes:
        return adapter.space
    known = {name: adapter.space.attributes[name] for name in classes if name in adapter.space.attributes}
    return replace(adapter.space, names=tuple(classes), attributes=known)


def predict_files(
    adapter: Adapter,
    files: Sequence[Path],
    *,
    classes: Sequence[str] = (),
    backbone: str | None = None,
    page: Path | None = None,
) -> list[Prediction]:
    """Predict the classes of image files; UserError naming one that cannot be read.

    `page` is an HTML file to write, with every image, its most probable classes and attention maps.
    """
    method, clip = restore(adapter, backbone=backbone)
    space = candidates(adapter, classes)
    images = Images(FileSource(Path(), tuple(map(str, files))), tuple(range(len(files))))
    probabilities = class_probabilities(predict(method, clip, images, space), space.kind)  # [B, C]
    top = probabilities.topk(min(TOP, len(space)))
    if page is not None:
        singly = [images.take([place]) for place in range(len(images))]
        samples = [
            SampleEvent(
                trial=adapter.card.method,
                sample=str(number),
                picture=png(image.decode(0)),
                **recognise(method, clip, image, space),
            )
            for number, image in enumerate(singly)
        ]
        write_atomic(page, predictions_page(adapter.card.method, samples))
    return [
        Prediction(
            str(picture),
            tuple((space.names[label], probability) for label, probability in zip(labels, values, strict=True)),
            _present(every, space, adapter),
        )
        for picture, labels, values, every in zip(
            files, top.indices.tolist(), top.values.tolist(), probabilities.tolist(), strict=True
        )
    ]


def _present(probabilities: Sequence[float], space: LabelSpace, adapter: Adapter) -> tuple[str, ...] | None:
    """The labels at or above the adapter's threshold, which is 0.5 for a label without one."""
    if space.kind == "single":
        return None
    fitted = dict(zip(adapter.card.class_names, adapter.card.thresholds or (), strict=False))
    pairs = zip(space.names, probabilities, strict=True)
    return tuple(name for name, probability in pairs if probability >= fitted.get(name, 0.5))
