"""Mistakes on test images: confusion matrix, decisions per class, and the worst mistakes with their pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes

from fedprompt.records.event_fields import MistakeRecord
from fedprompt.records.events import MistakesEvent
from fedprompt.records.run_record import Run
from fedprompt.report.sample_images import png_data_url
from fedprompt.report.style import draw_grid, draw_svg, inline, shorten
from fedprompt.report.tables import DASH

SIDE = 420  # pixels of a matrix without its labels
STEP = 0.2  # share of a class's images per shade
MOST_NAMES = 40  # classes that a matrix names
CONFUSED = 10  # pairs of classes that are shown
ROWS = 60  # classes of the table
WRONG = "Predicted labels that are wrong, the highest probability first."
MISSED = "True labels that were missed, the lowest probability first."


@dataclass(frozen=True)
class WorstMistake:
    """One wrong prediction: the image as a data URL ("" without one), and texts."""

    url: str
    name: str
    truth: str
    predicted: str
    wrong: str
    probability: str


@dataclass(frozen=True)
class MistakesSection:
    """The mistakes on one test set: a drawing ("" without one), rows of texts, and how many rows were left out."""

    title: str
    images: int
    drawing: Markup
    classes: tuple[tuple[str, ...], ...]  # class, images, right of them, predicted, right of those
    more: int
    confused: tuple[tuple[str, ...], ...]  # true class, predicted class, images
    more_confused: int  # pairs that are not shown
    worst: tuple[tuple[str, tuple[WorstMistake, ...]], ...]  # with their captions: wrong labels, then missed ones


def mistakes_sections(run: Run) -> list[MistakesSection]:
    """One section per test set of the main trial, in file order."""
    return [mistakes_section(event, run.test_set_title(event.split)) for event in run.mistakes if event.images]


def mistakes_section(event: MistakesEvent, title: str) -> MistakesSection:
    """The values of the section's template for one test set."""
    where = ", ".join(name for name in (event.part, event.name if event.name != "all" else "") if name)
    rows = sorted(event.classes, key=lambda one: (_share(one.right, one.images), one.name))
    return MistakesSection(
        f"{title} ({where})" if where else title,
        event.images,
        Markup(inline(_draw(event), f"Confusion matrix, {title}")) if event.counts else Markup(),
        tuple(
            (
                one.name,
                f"{one.images:,}",
                _text(one.right, one.images),
                f"{one.predicted:,}",
                _text(one.right, one.predicted),
            )
            for one in rows[:ROWS]
        ),
        max(0, len(rows) - ROWS),
        tuple((true, predicted, f"{count:,}") for true, predicted, count in event.confused[:CONFUSED]),
        max(0, event.confusions - CONFUSED),
        (
            (WRONG, tuple(_worst(one) for one in event.worst if not _is_missed(one))),
            (MISSED, tuple(_worst(one) for one in event.worst if _is_missed(one))),
        ),
    )


def _is_missed(found: MistakeRecord) -> bool:
    """Whether the mistake is a true label that was not predicted, as with several labels per image."""
    return found.wrong in found.truth


def _worst(found: MistakeRecord) -> WorstMistake:
    return WorstMistake(
        png_data_url(found.picture),
        found.name,
        " + ".join(found.truth) or "none",
        " + ".join(found.predicted) or "none",
        found.wrong,
        DASH if found.probability is None else f"{100 * found.probability:.1f}%",  # beside a threshold
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.inf


def _text(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}%" if whole else DASH


def _draw(event: MistakesEvent) -> str:
    """The matrix with a row per true class: five shades of a fifth of the row's images each."""
    names = [shorten(one.name, 14) for one in event.classes]
    levels = [
        # off the diagonal, a square without images is not drawn: the file stays small
        [min(5, math.ceil(count / (sum(row) * STEP))) if count else -(place != own) for own, count in enumerate(row)]
        for place, row in enumerate(event.counts)
    ]

    def paint(axes: Axes) -> None:
        draw_grid(axes, levels)
        size = min(9.0, 180 / len(names))
        shown = range(len(names)) if len(names) <= MOST_NAMES else range(0)
        axes.set_xticks(shown, [names[place] for place in shown], rotation=90, fontsize=size)
        axes.set_yticks(shown, [names[place] for place in shown], fontsize=size)
        axes.set(xlabel="predicted", ylabel="true")
        axes.set_aspect("equal")

    return draw_svg(f"confusion {event.split} {event.name} {event.part}", (SIDE, SIDE), paint)
