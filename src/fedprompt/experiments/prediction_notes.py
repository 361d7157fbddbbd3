"""Sentences about predictions, for the terminal and the page: by which adapter, figures with given labels, cautions."""

from __future__ import annotations

from collections.abc import Iterator

from fedprompt.data.labels import LabelSpace
from fedprompt.demo import DEMO, LIMIT
from fedprompt.errors import did_you_mean, plural
from fedprompt.experiments.adapters import label_of, usable_precision
from fedprompt.experiments.model_card import adapter_folder
from fedprompt.experiments.predictions import Prediction, Predictions
from fedprompt.file_system import is_file
from fedprompt.records.adapter import Adapter
from fedprompt.records.output_folder import FINAL
from fedprompt.records.run_record import Run
from fedprompt.report import read_run
from fedprompt.report.facts import title
from fedprompt.report.verdict import introduced

SHOWN_FOREIGN = 20  # images with labels of other classes that are named
FIGURES = {
    "single": {"accuracy": "accuracy", "macro_f1": "macro F1"},
    "multi": {"mean_average_precision": "mAP", "cf1_macro_tuned": "CF1", "of1_tuned": "OF1"},
}


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


def _run_with(adapter: Adapter) -> Run | None:
    """The run in whose folder an adapter lies."""
    place = adapter.folder.absolute().parent.parent
    inside = adapter_folder(place, adapter.folder.name) == adapter.folder.absolute() and is_file(place / "run.jsonl")
    return read_run(place) if inside else None


def trained_on_sentence(found: Predictions) -> str:
    """That figures may be too high, as images were trained on; empty without figures or such images.

    Their labels need not be those that the run trained with, so it is not sure.
    """
    if not found.trained_on or found.evaluation is None:
        return ""
    are = "is a training image" if found.trained_on == 1 else "are training images"
    return (
        f"{found.trained_on:,} of {_tested(found, found.evaluation.mistakes.images)} {are} of the "
        "adapter's own run, so these figures may be too high; those of its test images are in the report of the run."
    )


def figure_sentences(found: Predictions) -> Iterator[str]:
    """The figures on the images with given labels, and what they count as 0; nothing without a table of labels."""
    if found.evaluation is None:
        if found.matched is not None:
            yield "There are no figures, since no image that can be read has a label that is a class of the model."
        return
    mistakes, figures, kind = found.evaluation.mistakes, found.evaluation.score.figures, found.space.kind
    said = ", ".join(f"{name} {100 * figures[key]:.1f}%" for key, name in FIGURES[kind].items())
    others = f" ({plural(len(found.foreign), 'other')} with one that is none)" if found.foreign else ""
    yield f"Of {_tested(found, mistakes.images)}{others}: {said}."
    if absent := sum(one.predicted > 0 and not one.images for one in mistakes.classes):
        macro = "CF1" if kind == "multi" else "macro F1"
        were = "class was" if absent == 1 else "classes were"
        yield f"{absent:,} {were} predicted that no image has; {macro} counts each as 0."


def _tested(found: Predictions, images: int) -> str:
    """The images that figures are made of."""
    return f"{plural(images, 'image')} with a given label{' that is a class of the model' if found.foreign else ''}"


def label_notes(found: Predictions) -> Iterator[str]:
    """Which images have no given label, or one that is no class, and how labels were found; none without a table."""
    matched = found.matched
    if matched is None:
        return
    if said := _foreign_sentence(found):
        yield said
    if without := sum(target is None for target in matched.targets):
        yield f"Images without a label in the table: {without:,}."
    if matched.unused:
        yield f"Labels of other images in the table: {matched.unused:,}."
    if matched.by_name:
        yield f"Labels found by file name only, since the paths differ: {matched.by_name:,}."
    if matched.ambiguous:
        yield (
            f"Images without a label since several rows or images have their file name: {matched.ambiguous:,}; give "
            "their paths in the table."
        )


def _foreign_sentence(found: Predictions) -> str:
    """Which images are left out of the figures, as the model does not have their label; empty without any."""
    if not found.foreign:
        return ""
    count = len(found.foreign)
    are, their = ("is", "its") if count == 1 else ("are", "their")
    named = ", ".join(_foreign(one, found.space) for one in found.foreign[:SHOWN_FOREIGN])
    more = f" and {count - SHOWN_FOREIGN:,} more" if count > SHOWN_FOREIGN else ""
    return (
        f"{plural(count, 'image')} {are} left out of the figures, since the model has no class of {their} label: "
        f"{named}{more}."
    )


def _foreign(one: Prediction, space: LabelSpace) -> str:
    labels = [name for name in one.truth or () if name not in space.names]
    return f"{one.picture} ({', '.join(f'{name!r}{did_you_mean(name, space.names)}' for name in labels)})"
