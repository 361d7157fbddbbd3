"""A trained adapter on pictures of one's own, over its own classes or over words named at call time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedprompt.clip.model import Clip
from fedprompt.config.recipe import BackboneTable
from fedprompt.data.file_source import FileSource
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError
from fedprompt.experiments.experiment import Trial, load_backbone, make_method
from fedprompt.experiments.model_card import adapter_folder
from fedprompt.experiments.sample_images import TOP, png, recognised
from fedprompt.experiments.test_sets import chances
from fedprompt.federated.client import Settings
from fedprompt.federated.evaluate import predict
from fedprompt.federated.rounds import initial_state
from fedprompt.methods.base import Method
from fedprompt.records.adapter import Adapter, load_adapter, load_tensors
from fedprompt.records.run_folder import write_atomic
from fedprompt.report import predictions_page, read_run


@dataclass(frozen=True)
class Prediction:
    """One picture's strongest classes with their probabilities, best first.

    `present` are the labels of many that count as there; None where a picture has one label.
    """

    picture: str
    top: tuple[tuple[str, float], ...]
    present: tuple[str, ...] | None


def open_adapter(place: Path, *, trial: str | None = None) -> Adapter:
    """Read an adapter folder, or the adapter of a run: of its main trial unless another is named."""
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
    """Open the adapter's backbone (or another copy of it) and put the trained tensors in a method.

    Raises UserError when the backbone is another one or a tensor does not fit.
    """
    clip = load_backbone(BackboneTable(path=backbone or adapter.card.base_model_name_or_path))
    trial = Trial(
        str(adapter.folder),
        adapter.card.method,
        adapter.card.params,
        Settings(rounds=1),
        fraction=1.0,
        weighting="uniform",
    )
    method = make_method(trial, clip)
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
    pictures: Sequence[Path],
    *,
    classes: Sequence[str] = (),
    backbone: str | None = None,
    page: Path | None = None,
) -> list[Prediction]:
    """Recognise pictures; UserError names the one that cannot be read.

    `page` is an HTML file to draw, with every picture, its strongest classes and where the method looks.
    """
    method, clip = restore(adapter, backbone=backbone)
    space = candidates(adapter, classes)
    images = Images(FileSource(Path(), tuple(str(picture) for picture in pictures)), tuple(range(len(pictures))))
    probabilities = chances(predict(method, clip, images, space), space.kind)  # [B, C]
    top = probabilities.topk(min(TOP, len(space)))
    if page is not None:
        singly = [images.take([place]) for place in range(len(images))]
        lines = [recognised(method, clip, one, space) | {"picture": png(one.decode(0))} for one in singly]
        write_atomic(page, predictions_page(adapter.card.method, lines))
    return [
        Prediction(
            str(picture),
            tuple((space.names[label], chance) for label, chance in zip(labels, values, strict=True)),
            _present(every, space, adapter),
        )
        for picture, labels, values, every in zip(
            pictures, top.indices.tolist(), top.values.tolist(), probabilities.tolist(), strict=True
        )
    ]


def _present(probabilities: Sequence[float], space: LabelSpace, adapter: Adapter) -> tuple[str, ...] | None:
    """The labels that reach the adapter's threshold, 0.5 if it has none or does not know the label."""
    if space.kind == "single":
        return None
    fitted = dict(zip(adapter.card.class_names, adapter.card.thresholds or (), strict=False))
    pairs = zip(space.names, probabilities, strict=True)
    return tuple(name for name, chance in pairs if chance >= fitted.get(name, 0.5))
