"""Scatter plot of the headline metric against a cost, one point per method, with labels that do not overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fedprompt.records.reading import TrialRecord
from fedprompt.report.comparison import Comparison, over_seeds
from fedprompt.report.style import MAIN, MUTED, REFERENCE, TEXT, draw_svg, shorten

SIZE = (760, 560)
LETTER, LINE = 6.6, 15.0  # width of a letter and height of a line of a label, in points
RINGS = 14  # largest distance of a label from its point, in lines
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


def label_points(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Label each point (x, y, name); where there is no room beside it, further away and with a line to it."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # settles the layout, which the positions depend on
    scale = 72 / figure.dpi
    places = [tuple(scale * axes.transData.transform((x, y))) for x, y, _ in points]
    frame = axes.get_window_extent()
    taken: list[Box] = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    for (x, y, name), (left, bottom) in sorted(zip(points, places, strict=True), key=lambda pair: -pair[0][1]):
        width = LETTER * len(name)
        inside = (scale * frame.x0, scale * frame.y0, scale * frame.x1 + 40, scale * frame.y1)
        for right, up in _offsets(width):
            box = (left + right, bottom + up - LINE / 2, left + right + width, bottom + up + LINE / 2)
            if _within(box, inside) and not any(_overlap(box, other) for other in taken):
                break
        taken.append(box)
        axes.annotate(
            name,
            (x, y),
            (right, up),
            textcoords="offset points",
            color=MUTED,
            va="center",
            size=11,
            arrowprops=CONNECTION if abs(up) > LINE else None,
        )


def _offsets(width: float) -> Iterator[tuple[float, float]]:
    """Offsets of a label from its point, nearest first: right or left, higher or lower."""
    for ring in range(RINGS):
        for up in (ring * LINE, -ring * LINE):
            yield 7, up
            yield -7 - width, up


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _within(box: Box, frame: Box) -> bool:
    return frame[0] <= box[0] and box[2] <= frame[2] and frame[1] <= box[1] and box[3] <= frame[3]
