"""Predictions as values: their comparison with given labels, and their files as CSV, Parquet and JSON Lines."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from fedprompt.data.dataset import Examples
from fedprompt.data.file_source import FileSource
from fedprompt.data.images import Images
from fedprompt.data.intake.path_tables import GivenLabels
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError
from fedprompt.experiments.mistakes import mistakes_event
from fedprompt.experiments.sample_images import TOP
from fedprompt.experiments.test_sets import TestSet, class_probabilities
from fedprompt.federated.evaluate import Decision, Score, score
from fedprompt.records.events import MistakesEvent
from fedprompt.text_files import json_text

BETWEEN = "; "  # labels of an image in one cell; no class name has a semicolon

Cell = str | float | bool | list[str] | None


@dataclass(frozen=True)
class Prediction:
    """The classes of an image with the highest probabilities, best first.

    `present` are the labels above the decision threshold; None for single-label data. `truth` are the labels that the
    user gave; None without any.
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
    """Figures and mistakes on the images that have a given label; `unused` labels belong to no image."""

    score: Score
    mistakes: MistakesEvent
    unused: int


@dataclass(frozen=True)
class Predictions:
    """The predictions of images over the classes of `space` by a method, with all probabilities [N, C].

    `unreadable` has a sentence on each image that cannot be read; `left_out` counts files by the reason why they were
    left out.
    """

    images: tuple[Prediction, ...]
    space: LabelSpace
    probabilities: Tensor
    method: str = ""
    unreadable: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    evaluation: Evaluation | None = None


def decide(
    files: Sequence[str], logits: Tensor, space: LabelSpace, thresholds: Tensor, labels: GivenLabels | None
) -> tuple[Prediction, ...]:
    """The predictions of logits [N, C] for files; several labels are present from `thresholds` [C] on."""
    probabilities = class_probabilities(logits, space.kind)
    top = probabilities.topk(min(TOP, len(space)))
    targets = labels.of(files) if labels else [None] * len(files)
    present = (probabilities >= thresholds) if space.kind == "multi" else None
    rows = zip(files, top.indices.tolist(), top.values.tolist(), targets, strict=True)
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


def _true_names(target: Tensor, space: LabelSpace) -> tuple[str, ...]:
    return (space.names[int(target)],) if space.kind == "single" else _names(target == 1, space)


def evaluate(
    source: FileSource, logits: Tensor, space: LabelSpace, thresholds: Tensor, labels: GivenLabels
) -> Evaluation:
    """Compare the predictions of logits [N, C] with labels; UserError if no image has one."""
    targets = labels.of(source.files)
    rows = [row for row, target in enumerate(targets) if target is not None]
    if not rows:
        raise UserError(
            f"The table {labels.path} has no label of an image that is predicted; its paths are those of the images, "
            "absolute or below its folder."
        )
    chosen = torch.stack([target for target in targets if target is not None])
    test_set = TestSet("given labels", "all", "", Examples(Images(source, tuple(rows)), chosen, space))
    kept = logits[rows]
    return Evaluation(
        score(kept, chosen, space, name="given labels", decision=Decision(thresholds=thresholds)),
        mistakes_event("predictions", test_set, kept, thresholds=thresholds),
        unused=len(labels.targets) - len(rows),
    )


def csv_content(found: Predictions) -> bytes:
    """One row per image: path, method, predicted labels, true ones if given, and the probability of every class.

    An apostrophe stands before texts that a spreadsheet would compute.
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
    pq.write_table(pa.table(_columns(found)), buffer, compression="zstd")
    return buffer.getvalue()


def jsonl_content(found: Predictions) -> bytes:
    """The same as JSON Lines: one object per image, with the probabilities by class."""
    facts = {name: column for name, column in _columns(found).items() if not name.startswith(PROBABILITY)}
    rows = found.probabilities.tolist()
    return "".join(f"{json_text(one, ascii_only=False)}\n" for one in _objects(facts, rows, found.space)).encode()


WRITERS: Mapping[str, Callable[[Predictions], bytes]] = {
    "csv": csv_content,
    "parquet": parquet_content,
    "jsonl": jsonl_content,
}
PROBABILITY = "probability of "


def _columns(found: Predictions) -> dict[str, list[Cell]]:
    several = found.space.kind == "multi"
    columns: dict[str, list[Cell]] = {
        "image": [one.picture for one in found.images],
        "method": [found.method for _ in found.images],
        "predicted": [list(one.decided) if several else one.decided[0] for one in found.images],
    }
    if not several:
        columns["probability"] = [round(one.top[0][1], 6) for one in found.images]
    if found.evaluation is not None:
        columns["truth"] = [_cell(one.truth, several=several) for one in found.images]
    probabilities = found.probabilities.double().round(decimals=6).T.tolist()
    columns |= {f"{PROBABILITY}{name}": own for name, own in zip(found.space.names, probabilities, strict=True)}
    return columns


def _cell(truth: tuple[str, ...] | None, *, several: bool) -> Cell:
    return None if truth is None else list(truth) if several else truth[0]


def _objects(
    facts: Mapping[str, Sequence[Cell]], rows: Sequence[Sequence[float]], space: LabelSpace
) -> Iterator[dict[str, object]]:
    for number, row in enumerate(rows):
        own: dict[str, object] = {name: column[number] for name, column in facts.items()}
        yield own | {"probabilities": {name: round(one, 6) for name, one in zip(space.names, row, strict=True)}}
