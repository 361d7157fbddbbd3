"""Scatter plot of accuracy on new classes against local accuracy, one dot per method, zero-shot CLIP as reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles, stdev

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from fedprompt.records.run_record import Run
from fedprompt.report.comparison import Comparison
from fedprompt.report.costs import label_points
from fedprompt.report.style import FULL, MAIN, MUTED, REFERENCE, TEXT, Drawing, shorten

LOCAL, NEW = "local", "new"  # the columns on the axes
ONE, BESIDE = (760, 560), (FULL, 500)  # sizes of one panel and of two beside each other
FEWEST = 8  # dots from which outliers are drawn at the edge, so that they do not press the others together
FENCE = 3.0  # interquartile ranges beyond the quartiles from which a dot is an outlier (Tukey, 1977: "far out")
LEAST = 1.0  # points that an interquartile range and an axis span at least
EDGE, STRIP = 0.07, 0.08  # outside the range of the dots, as parts of it: the place of outliers, room for notes
NOTES = {  # which quadrant around the reference: right, upper
    (True, True): "better on both",
    (True, False): "better on local, worse on new classes",
    (False, True): "worse on local, better on new classes",
    (False, False): "worse on both",
}
Range = tuple[float, float]


@dataclass(frozen=True)
class Dot:
    """A method's local and new accuracy in percent, one value per seed."""

    label: str
    local: tuple[float, ...]
    new: tuple[float, ...]
    main: bool = False
    trains: bool = True
    reference: bool = False

    @property
    def means(self) -> tuple[float, float]:
        """Means over seeds."""
        return fmean(self.local), fmean(self.new)

    @property
    def spreads(self) -> tuple[float, float]:
        """Standard deviations over seeds; 0 for one value."""
        return _spread(self.local), _spread(self.new)

    @property
    def colour(self) -> str:
        """Blue for the main method, grey for what does not train."""
        return MAIN if self.main else TEXT if self.trains else REFERENCE


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def measured_dots(compared: Comparison) -> list[Dot]:
    """The trials of a comparison that have both accuracies."""
    values = {
        trial.name: (tuple(compared.values(trial.name, LOCAL)), tuple(compared.values(trial.name, NEW)))
        for trial in compared.trials
    }
    return _dots(compared.runs[0], values)


def published_dots(run: Run) -> list[Dot]:
    """The trials of which the run expects both accuracies as they were published, means over data sets."""
    known: dict[tuple[str, str], tuple[float, ...]] = {}
    for one in run.header.expected:
        if not one.part and len(one.columns) == 1:
            known.setdefault((one.trial, one.columns[0]), (one.value,))
    return _dots(
        run,
        {trial.name: (known.get((trial.name, LOCAL), ()), known.get((trial.name, NEW), ())) for trial in run.trials},
    )


def _dots(run: Run, values: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]) -> list[Dot]:
    return [
        Dot(
            shorten(trial.label),
            *values[trial.name],
            main=trial == run.main,
            trains=trial.trains,
            reference=trial == run.reference,
        )
        for trial in run.trials
        if all(values[trial.name])
    ]


def comparison_drawing(compared: Comparison) -> Drawing | None:
    """Measured dots, and published ones beside them if the runs expect some; None without both accuracies."""
    panels = {"Measured": measured_dots(compared), "Published": published_dots(compared.runs[0])}
    return new_local_drawing({title: dots for title, dots in panels.items() if dots}) if panels["Measured"] else None


def new_local_drawing(panels: Mapping[str, Sequence[Dot]]) -> Drawing:
    """A panel per title, from left to right."""

    def paint(axes: Axes) -> None:
        figure = axes.get_figure(root=True)
        assert figure is not None
        grid = figure.add_gridspec(1, len(panels))
        axes.set_subplotspec(grid[0])
        placed = [axes, *(figure.add_subplot(grid[place]) for place in range(1, len(panels)))]
        for own, (title, dots) in zip(placed, panels.items(), strict=True):
            own.set_title(title)
            _draw(own, dots)
        figure.draw_without_rendering()  # settles the layout, which the notes depend on
        for own, dots in zip(placed, panels.values(), strict=True):
            _name(own, dots)

    return Drawing("new against local", ONE if len(panels) == 1 else BESIDE, paint)


def _draw(axes: Axes, dots: Sequence[Dot]) -> None:
    """Dots with bars; an outlier is an arrow at the edge."""
    axes.grid(visible=True)
    axes.set(xlabel="local classes: accuracy (%)", ylabel="new classes: accuracy (%)")
    across, along = ((low, high, (EDGE + STRIP) * (high - low)) for low, high in _ranges(dots))
    axes.set_xlim(across[0] - across[2], across[1] + across[2])
    axes.set_ylim(along[0] - along[2], along[1] + along[2])
    for dot, place in zip(dots, _places(dots), strict=True):
        if dot.reference:
            axes.axvline(place[0], color=REFERENCE, linestyle="--", linewidth=0.8, zorder=1)
            axes.axhline(place[1], color=REFERENCE, linestyle="--", linewidth=0.8, zorder=1)
        if place == dot.means:
            wide, high = dot.spreads
            axes.errorbar(*place, high, wide, fmt="o", color=dot.colour, ecolor=REFERENCE, elinewidth=1, zorder=3)
        else:
            axes.plot(*place, _arrow(dot.means, place), color=dot.colour, zorder=3)


def _ranges(dots: Sequence[Dot]) -> tuple[Range, Range]:
    """(lowest, highest) value on each axis, with bars and without outliers."""
    across, along = (
        _range([dot.means[axis] for dot in dots], [dot.spreads[axis] for dot in dots]) for axis in range(2)
    )
    return across, along


def _range(values: Sequence[float], spreads: Sequence[float]) -> Range:
    first, last = min(values), max(values)
    if len(values) >= FEWEST:
        low, _, high = quantiles(values, n=4, method="inclusive")
        around = FENCE * max(high - low, LEAST)
        first, last = low - around, high + around
    ends = [
        (value - spread, value + spread)
        for value, spread in zip(values, spreads, strict=True)
        if first <= value <= last
    ]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    missing = max(0.0, LEAST - (high - low)) / 2
    return low - missing, high + missing


def _places(dots: Sequence[Dot]) -> list[tuple[float, float]]:
    """Where each dot is drawn: at its means, or outside the range of the others at the edge."""
    across, along = _ranges(dots)
    return [(_at_edge(dot.means[0], across), _at_edge(dot.means[1], along)) for dot in dots]


def _at_edge(value: float, inside: Range) -> float:
    low, high = inside
    beyond = EDGE * (high - low)
    return low - beyond if value < low else high + beyond if value > high else value


def _arrow(means: tuple[float, float], place: tuple[float, float]) -> str:
    """The marker of an outlier: it points to where the dot would be."""
    if means[1] != place[1]:
        return "v" if means[1] < place[1] else "^"
    return "<" if means[0] < place[0] else ">"


def _name(axes: Axes, dots: Sequence[Dot]) -> None:
    """Notes in the quadrants around the reference, and a label at every dot; an outlier's has its figures."""
    places = _places(dots)
    reference = next((place for dot, place in zip(dots, places, strict=True) if dot.reference), None)
    if reference is not None:
        for quadrant in NOTES:
            _note(axes, reference, quadrant)
    labels = [
        dot.label if place == dot.means else "{} ({:.0f}, {:.0f})".format(dot.label, *dot.means)
        for dot, place in zip(dots, places, strict=True)
    ]
    points = [(*place, label) for place, label in zip(places, labels, strict=True)]
    label_points(axes, points, lines=_lines(axes, dots, reference), beyond=0)


def _lines(axes: Axes, dots: Sequence[Dot], reference: tuple[float, float] | None) -> list[Bbox]:
    """The bars and the reference's lines, which labels do not cross; in pixels."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    ends = []
    for dot, (x, y) in zip(dots, _places(dots), strict=True):
        across, along = dot.spreads if (x, y) == dot.means else (0.0, 0.0)
        ends += [((x - across, y), (x + across, y)), ((x, y - along), (x, y + along))]
    if reference is not None:
        ends += [((reference[0], bottom), (reference[0], top)), ((left, reference[1]), (right, reference[1]))]
    return [Bbox(axes.transData.transform(pair)).padded(1) for pair in ends]


def _note(axes: Axes, reference: tuple[float, float], quadrant: tuple[bool, bool]) -> None:
    """Write the note of a quadrant in its corner, unless it is wider than the quadrant."""
    right, upper = quadrant
    note = axes.text(0.99 if right else 0.01, 0.985 if upper else 0.015, NOTES[quadrant], transform=axes.transAxes)
    note.set(color=MUTED, fontsize=10, style="italic", ha="right" if right else "left", va="top" if upper else "bottom")
    line, _ = axes.transData.transform(reference)
    extent = note.get_window_extent()
    if (extent.x0 < line) if right else (extent.x1 > line):
        note.remove()
