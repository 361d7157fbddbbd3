"""Which labels stand together: in truth, and as a method predicts them where company says nothing about a label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from fedprompt.records.events import CooccurrenceLine
from fedprompt.records.reading import BROKEN, NATURAL, Run
from fedprompt.report.style import cells, draw_svg, short

SIDE = 330  # pixels of a matrix without its labels
STEP = 0.1  # share of company that a shade stands for


@dataclass(frozen=True)
class Matrix:
    """One matrix of company: what it is of, its drawing, and for a method how far it is pulled to usual company."""

    title: str
    drawing: str
    pull: float | None = None


def cooccurrence_matrices(run: Run) -> list[Matrix]:
    """Company in truth, first the natural, then as every trial that was scored predicts it in the last test set."""
    truths = {line.split: line for line in run.company if not line.trial}
    if not truths:
        return []
    asked = BROKEN if BROKEN in truths else list(truths)[-1]
    natural, true = truths.get(NATURAL), truths[asked]
    found = [Matrix(f"{run.title(split).split(' ')[0]}: true", _draw(line, split)) for split, line in truths.items()]
    for trial in run.trials:
        line = next((line for line in run.company if (line.trial, line.split) == (trial.name, asked)), None)
        if line is not None:
            pulled = pull(line, true, natural) if natural else None
            title = f"{run.title(asked).split(' ')[0]}: {trial.label}"
            found.append(Matrix(title, _draw(line, trial.name), pulled))
    return found


def pull(predicted: CooccurrenceLine, true: CooccurrenceLine, natural: CooccurrenceLine) -> float | None:
    """How far predicted company lies from the true (0) towards the natural (1), by least squares over label pairs.

    None where natural company is no different from the true.
    """
    guess, fact, usual = (shares(line.counts) for line in (predicted, true, natural))
    pairs = [
        (guess[i][j] - fact[i][j], usual[i][j] - fact[i][j])
        for i in range(len(fact))
        for j in range(len(fact))
        if i != j and predicted.counts[i][i] and true.counts[i][i] and natural.counts[i][i]
    ]
    whole = math.fsum(usual * usual for _, usual in pairs)
    return math.fsum(excess * usual for excess, usual in pairs) / whole if whole else None


def shares(counts: Sequence[Sequence[int]]) -> list[list[float]]:
    """P(column | row): of the pictures that show the row's label, how many show the column's."""
    return [[count / row[place] if row[place] else 0.0 for count in row] for place, row in enumerate(counts)]


def _draw(line: CooccurrenceLine, name: str) -> str:
    names = [short(name, 14) for name in line.classes]
    levels = [
        [0 if row == column else min(5, math.floor(share / STEP)) for column, share in enumerate(found)]
        for row, found in enumerate(shares(line.counts))
    ]

    def paint(axes: Axes) -> None:
        cells(axes, levels)
        size = min(9.0, 180 / len(names))
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
        axes.set_aspect("equal")

    return draw_svg(f"company {name}", (SIDE, SIDE), paint)
