"""Predictions as values: their comparison with given labels, and their files as CSV, Parquet and JSON Lines."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from fedprompt.data.dataset import Examples
from fedprompt.data.file_source import FileSource
from fedprompt.data.images import Images
from fedprompt.data.intake.given_images import Unreadable
from fedprompt.data.intake.path_tables import GivenLabel, GivenLabels, Matched
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError, plural
from fedprompt.experiments.mistakes import mistakes_event
from fedprompt.experiments.sample_images import TOP
from fedprompt.experiments.test_sets import TestSet, class_probabilities
from fedprompt.federated.evaluate import Decision, Score, score
from fedprompt.records.events import MistakesEvent
from fedprompt.text_files import json_text

GIVEN = "given labels"  # the name of the images that have one, as that of a test set
BETWEEN = "; "  # labels of an image in one cell; no class name has a semicolon

Cell = str | float | bool | list[str] | None


@dataclass(frozen=True)
class Prediction:
    """The classes of an image with the highest probabilities, best first.

    `picture` is the image's name in results. `present` are the labels above the decision threshold; None for
    single-label data. `truth` are the labels that the user gave, classes of the model or not; None without any.
    """

    picture: str
    top: tuple[tuple[str, float], ...]
    present: tuple[str, ...] | None
    truth: tuple[str, ...] | None = None

    @property
    def decided(self) -> tuple[str, ...]:
        """The predicted labels: those above the threshold, or the one with the highest probability."""
        return (self.top[0][0],) if self.present is None else self.present


@dataclass(frozen=True)
class Evaluation:
    """Figures and mistakes on the images that have a given label."""

    score: Score
    mistakes: MistakesEvent


@dataclass(frozen=True)
class Predictions:
    """The predictions of images over the classes of `space` by a method, with all probabilities [N, C].

    `files` are the paths that the images have. `thresholds` are the probabilities per class from which a label is
    present (multi-label only), of which `threshold_sentence` says where they are from. `unreadable` images have no
    prediction; `left_out` counts files by the reason why they were left out, and `trained_on` images with given labels
    that the adapter's run trained on. `matched` are the given labels; None if the user gave no table of them.
    `evaluation` is None too if no image has a label that is a class.
    `warnings` are sentences on the candidates: names that the backbone does not read to the end, and one class alone.
    """

    images: tuple[Prediction, ...]
    space: LabelSpace
    probabilities: Tensor
    files: tuple[str, ...]
    method: str = ""
    thresholds: tuple[float, ...] = ()
    threshold_sentence: str = ""
    unreadable: tuple[Unreadable, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    matched: Matched | None = None
    evaluation: Evaluation | None = None
    trained_on: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def foreign(self) -> tuple[Prediction, ...]:
        """The images with a given label that is none of the classes."""
        known = set(self.space.names)
        return tuple(one for one in self.images if not known.issuperset(one.truth or ()))

    @property
    def threshold(self) -> float | dict[str, float] | None:
        """The decision threshold of all labels, or those by label where they differ; None for single-label data."""
        values = [round(value, 6) for value in self.thresholds]
        if len(set(values)) <= 1:
            return values[0] if values else None
        return dict(zip(self.space.names, values, strict=True))


def decide(
    names: Sequence[str],
    logits: Tensor,
    space: LabelSpace,
    thresholds: Tensor,
    targets: Sequence[GivenLabel | None] | None = None,
) -> tuple[Prediction, ...]:
    """The predictions of logits [N, C] for images; several labels are present from `thresholds` [C] on."""
    probabilities = class_probabilities(logits, space.kind)
    top = probabilities.topk(min(TOP, len(space)))
    present = (probabilities >= thresholds) if space.kind == "multi" else None
    rows = zip(names, top.indices.tolist(), top.values.tolist(), targets or [None] * len(names), strict=True)
    return tuple(
        Prediction(
            picture,
            tuple((space.names[label], probability) for label, probability in zip(best, values, strict=True)),
            None if present is None else _names(present[number], space),
            None if target is None else _true_names(target, space),
        )
        for number, (picture, best, values, target) in enumerate(rows)
    )


def _names(where: Tensor, space: LabelSpace) -> tuple[str, ...]:
    return tuple(space.names[label] for label in where.nonzero().flatten().tolist())


def _true_names(target: GivenLabel, space: LabelSpace) -> tuple[str, ...]:
    if isinstance(target, tuple):
        return target
    return (space.names[int(target)],) if space.kind == "single" else _names(target == 1, space)


def match(labels: GivenLabels, files: Sequence[str], *, unread: Sequence[str] = ()) -> Matched:
    """The labels of the files; UserError if there are files and none has one.

    Labels of files that cannot be read (`unread`) are not among the unused ones.
    """
    matched = labels.of(files)
    if unread:
        matched = replace(matched, unused=labels.of([*files, *unread]).unused)
    if files and all(target is None for target in matched.targets):
        raise UserError(
            f"The table {labels.path} has no label of an image that is predicted; its paths are those of the images, "
            f"absolute or below its folder.{_ambiguous(matched)}"
        )
    return matched


def evaluate(
    source: FileSource, logits: Tensor, space: LabelSpace, thresholds: Tensor, matched: Matched
) -> Evaluation | None:
    """Compare the predictions of logits [N, C] with labels; None if no image has one that is a class."""
    if not matched.known:
        return None
    rows = list(matched.known)
    chosen = torch.stack(list(matched.known.values()))
    test_set = TestSet(GIVEN, "all", "", Examples(Images(source, tuple(rows)), chosen, space))
    kept = logits[rows]
    return Evaluation(
        score(kept, chosen, space, name=GIVEN, decision=Decision(thresholds=thresholds)),
        mistakes_event("predictions", test_set, kept, thresholds=thresholds),
    )


def _ambiguous(matched: Matched) -> str:
    if not matched.ambiguous:
        return ""
    return f" The names of {plural(matched.ambiguous, 'image')} are in it, but several rows or images share each."


def csv_content(found: Predictions) -> bytes:
    """One row per image: name, method, predicted labels, true ones if given, and the probability of every class.

    Images that cannot be read come last, with an error and no prediction. An apostrophe stands before texts that a
    spreadsheet would compute.
    """
    file = io.StringIO()
    columns = _columns(found)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for cells in zip(*columns.values(), strict=True):
        texts = (BETWEEN.join(cell) if isinstance(cell, list) else cell for cell in cells)
        writer.writerow([f"'{cell}" if is_formula(cell) else cell for cell in texts])
    return file.getvalue().encode()


def is_formula(cell: object) -> bool:
    """Whether a spreadsheet takes a text for a formula, by its first character."""
    return isinstance(cell, str) and cell.startswith(("=", "+", "-", "@"))


def parquet_content(found: Predictions) -> bytes:
    """The same as Parquet; several labels are a list."""
    buffer = io.BytesIO()
    words = pa.list_(pa.string()) if found.space.kind == "multi" else pa.string()
    types = {"image": pa.string(), "method": pa.string(), "predicted": words, "truth": words, "error": pa.string()}
    columns = {  # with a type also where every image is without a value
        name: pa.array(column, types.get(name, pa.float64())) for name, column in _columns(found).items()
    }
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()


def jsonl_content(found: Predictions) -> bytes:
    """The same as JSON Lines: one object per image, with the probabilities by class."""
    return "".join(f"{json_text(one, ascii_only=False)}\n" for one in _objects(found)).encode()


WRITERS: Mapping[str, Callable[[Predictions], bytes]] = {
    "csv": csv_content,
    "parquet": parquet_content,
    "jsonl": jsonl_content,
}
PROBABILITY = "probability of "
THRESHOLD = "threshold of "


def _columns(found: Predictions) -> dict[str, list[Cell]]:
    """The columns of the files: a row per image, then one per image that cannot be read."""
    columns = _facts(found)
    if isinstance(found.threshold, dict):
        columns |= {f"{THRESHOLD}{name}": [value] * len(found.images) for name, value in found.threshold.items()}
    probabilities = found.probabilities.double().round(decimals=6).T.tolist()
    columns |= {f"{PROBABILITY}{name}": own for name, own in zip(found.space.names, probabilities, strict=True)}
    for name in columns.keys() - {"image", "method", "error"}:
        columns[name] = [*columns[name], *[None] * len(found.unreadable)]
    return columns


def _facts(found: Predictions) -> dict[str, list[Cell]]:
    """The columns that are not one per class; "image", "method" and "error" have the unreadable images too."""
    several = found.space.kind == "multi"
    unreadable = found.unreadable
    columns: dict[str, list[Cell]] = {
        "image": [*(one.picture for one in found.images), *(one.name for one in unreadable)],
        "method": [found.method for _ in (*found.images, *unreadable)],
        "predicted": [list(one.decided) if several else one.decided[0] for one in found.images],
    }
    if not several:
        columns["probability"] = [round(one.top[0][1], 6) for one in found.images]
    if found.matched is not None:
        columns["truth"] = [_cell(one.truth, several=several) for one in found.images]
    if isinstance(found.threshold, float):
        columns["threshold"] = [found.threshold for _ in found.images]
    columns["error"] = [*[None] * len(found.images), *(one.error for one in unreadable)]
    return columns


def _cell(truth: tuple[str, ...] | None, *, several: bool) -> Cell:
    return None if truth is None else list(truth) if several else truth[0]


def _objects(found: Predictions) -> Iterator[dict[str, object]]:
    facts = _facts(found)
    thresholds = {"threshold": found.threshold} if isinstance(found.threshold, dict) else {}
    for number, row in enumerate(found.probabilities.tolist()):
        own: dict[str, object] = {name: column[number] for name, column in facts.items()}
        values = {name: round(one, 6) for name, one in zip(found.space.names, row, strict=True)}
        yield own | thresholds | {"probabilities": values}
    for one in found.unreadable:
        yield dict.fromkeys((*facts, *thresholds, "probabilities")) | {
            "image": one.name,
            "method": found.method,
            "error": one.error,
        }
