"""Co-occurrence matrices of labels: in the annotations, and as each method predicts them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from fedprompt.records.events import CooccurrenceEvent
from fedprompt.records.run_record import BROKEN, NATURAL, Run
from fedprompt.report.style import draw_grid, draw_svg, shorten

SIDE = 330  # pixels of a matrix without its labels
STEP = 0.1  # conditional probability per shade
MOST_CLASSES = 100  # drawn per matrix; more would be too small to read


@dataclass(frozen=True)
class Matrix:
    """One co-occurrence matrix with its title and SVG; `bias_position` as the function of that name, for a method."""

    title: str
    drawing: str
    bias_position: float | None = None


def cooccurrence_matrices(run: Run) -> list[Matrix]:
    """The matrices of the annotations per test set, then each trial's predictions on `broken`, else the last set."""
    truths = {event.split: event for event in run.cooccurrence if not event.trial}
    if not truths:
        return []
    asked = BROKEN if BROKEN in truths else list(truths)[-1]
    natural, true = truths.get(NATURAL), truths[asked]
    found = [
        Matrix(f"{run.title(split).split(' ')[0]}: true", _draw(event, split, drawn_classes(event)))
        for split, event in truths.items()
    ]
    predicted = {event.trial: event for event in run.cooccurrence if event.split == asked}
    for trial in run.trials:
        if event := predicted.get(trial.name):
            position = bias_position(event, true, natural) if natural else None
            title = f"{run.title(asked).split(' ')[0]}: {trial.label}"
            found.append(Matrix(title, _draw(event, trial.name, drawn_classes(true)), position))
    return found


def bias_position(predicted: CooccurrenceEvent, true: CooccurrenceEvent, natural: CooccurrenceEvent) -> float | None:
    """Position of predicted co-occurrence between the true (0) and the natural (1), by least squares over label pairs.

    None where natural and true co-occurrence are the same.
    """
    events = (predicted, true, natural)
    common = set.intersection(*(set(event.classes) for event in events))  # the most frequent classes may differ
    matrices = [_of_classes(event, common) for event in events]
    guess, fact, usual = map(shares, matrices)
    pairs = [
        (guess[i][j] - fact[i][j], usual[i][j] - fact[i][j])
        for i in range(len(fact))
        for j in range(len(fact))
        if i != j and all(counts[i][i] for counts in matrices)
    ]
    whole = math.fsum(usual * usual for _, usual in pairs)
    return math.fsum(excess * usual for excess, usual in pairs) / whole if whole else None


def _of_classes(event: CooccurrenceEvent, classes: Collection[str]) -> list[list[int]]:
    """The counts of some classes, in the event's order."""
    chosen = [place for place, name in enumerate(event.classes) if name in classes]
    return [[event.counts[row][column] for column in chosen] for row in chosen]


def shares(counts: Sequence[Sequence[int]]) -> list[list[float]]:
    """P(column | row): the share of the images with the row's label that also have the column's."""
    return [[count / row[place] if row[place] else 0.0 for count in row] for place, row in enumerate(counts)]


def drawn_classes(event: CooccurrenceEvent) -> list[str]:
    """All classes in their order or, of more than 100, the most frequent ones."""
    counts = {name: event.counts[place][place] for place, name in enumerate(event.classes)}
    frequent = set(sorted(counts, key=lambda name: -counts[name])[:MOST_CLASSES])
    return [name for name in event.classes if name in frequent]


def drawn_labels(run: Run) -> str:
    """Which labels the matrices show, in a sentence; empty if all."""
    event = next((event for event in run.cooccurrence if not event.trial), None)
    labels = max(len(event.classes), len(event.positives)) if event else 0
    if event is None or labels <= MOST_CLASSES:
        return ""
    kept = f"; pull is measured on the {len(event.classes)} most frequent ones" if labels > len(event.classes) else ""
    return f" Of {labels:,} labels the {MOST_CLASSES} most frequent are drawn{kept}."


def _draw(event: CooccurrenceEvent, name: str, classes: Sequence[str]) -> str:
    names = [shorten(name, 14) for name in classes]
    levels = [
        [0 if row == column else min(5, math.floor(share / STEP)) for column, share in enumerate(found)]
        for row, found in enumerate(shares(_of_classes(event, classes)))
    ]

    def paint(axes: Axes) -> None:
        draw_grid(axes, levels)
        size = min(9.0, 180 / len(names))
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
        axes.set_aspect("equal")

    return draw_svg(f"cooccurrence {name}", (SIDE, SIDE), paint)
