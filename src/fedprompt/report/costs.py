"""Scatter plot of the headline metric against a cost, one point per method, with labels that do not overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from fedprompt.records.run_record import TrialRecord
from fedprompt.report.comparison import Comparison, over_seeds
from fedprompt.report.style import MAIN, MUTED, REFERENCE, TEXT, draw_svg, shorten

SIZE = (760, 560)
LETTER, LINE = 6.6, 15.0  # width of a letter and height of a line of a label, in points
RINGS = 14  # largest distance of a label from its point, in lines
ACROSS = 2  # lines that a label may be further away so as not to cross a line of the figure
CONNECTION = {"arrowstyle": "-", "color": REFERENCE, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
Box = tuple[float, float, float, float]  # left, bottom, right, top


def cost_figure(
    compared: Comparison, cost: Callable[[TrialRecord], float | None], unit: str, *, format_cost: Callable[[float], str]
) -> str:
    """The headline metric against a cost on a logarithmic axis; a method without training is a horizontal line.

    `format_cost` makes the labels of the axis.
    """

    def paint(axes: Axes) -> None:
        run = compared.runs[0]
        points: list[tuple[float, float, str]] = []
        for trial in run.trials:
            spent, values = over_seeds(compared, trial, cost), compared.values(trial.name, compared.headline)
            if not values:
                continue
            if not trial.trains:
                axes.axhline(fmean(values), color=REFERENCE, linestyle="--", linewidth=1)
                axes.annotate(
                    trial.label,
                    (1, fmean(values)),
                    (0, 3),
                    xycoords=("axes fraction", "data"),
                    textcoords="offset points",
                    color=REFERENCE,
                    ha="right",
                    size=11,
                )
            if spent:
                axes.plot([spent], [fmean(values)], "o", color=MAIN if trial == run.main else TEXT, zorder=3)
                points.append((spent, fmean(values), shorten(trial.label)))
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: format_cost(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(visible=True)
        axes.margins(x=0.15, y=0.08)
        axes.set_xlabel(unit)
        axes.set_ylabel(f"{run.title(compared.headline)} (%)")
        label_points(axes, points)

    return draw_svg(f"cost {unit}", SIZE, paint)


def label_points(
    axes: Axes, points: Sequence[tuple[float, float, str]], *, lines: Sequence[Bbox] = (), beyond: float = 40
) -> None:
    """Label each point (x, y, name); where there is no room beside it, further away and with a line to it.

    Labels rather do not cross `lines` (boxes in pixels); they reach at most `beyond` points out of the axes on the
    right.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # settles the layout, which the positions depend on
    scale = 72 / figure.dpi
    places = [(scale * x, scale * y) for x, y in (axes.transData.transform((x, y)) for x, y, _ in points)]
    inside = _box(axes.get_window_extent(), scale)
    inside = (*inside[:2], inside[2] + beyond, inside[3])
    crossed = [_box(line, scale) for line in lines]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    taken += [_box(text.get_window_extent(), scale) for text in axes.texts]
    for (x, y, name), corner in sorted(zip(points, places, strict=True), key=lambda pair: -pair[0][1]):
        choices = list(_choices(corner, LETTER * len(name)))
        offset, box = min(choices, key=lambda choice: _badness(choice, inside, taken, crossed))
        taken.append(box)
        axes.annotate(
            name,
            (x, y),
            offset,
            textcoords="offset points",
            color=MUTED,
            va="center",
            size=11,
            arrowprops=CONNECTION if abs(offset[1]) > LINE else None,
        )


def _box(box: Bbox, scale: float) -> Box:
    return scale * box.x0, scale * box.y0, scale * box.x1, scale * box.y1


def _choices(point: tuple[float, float], width: float) -> Iterator[tuple[tuple[float, float], Box]]:
    """Offset from a point and box of its label, nearest first: right or left, higher or lower."""
    for ring in range(RINGS):
        for up in (ring * LINE, -ring * LINE):
            for right in (7, -7 - width):
                left, middle = point[0] + right, point[1] + up
                yield (right, up), (left, middle - LINE / 2, left + width, middle + LINE / 2)


def _badness(
    choice: tuple[tuple[float, float], Box], inside: Box, taken: Sequence[Box], crossed: Sequence[Box]
) -> float:
    """How bad a place of a label is, in lines of distance: worst outside, then on others, then across lines."""
    (_, up), box = choice
    covered = sum(_overlap(box, other) for other in taken)
    return (
        1000 * (not _within(box, inside))
        + 100 * covered
        + ACROSS * sum(_overlap(box, line) for line in crossed)
        + abs(up) / LINE
    )


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _within(box: Box, frame: Box) -> bool:
    return frame[0] <= box[0] and box[2] <= frame[2] and frame[1] <= box[1] and box[3] <= frame[3]
