"""Figures that compare methods: headline metrics, curves over rounds, and scores per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from fedprompt.records.run_record import MEASURES, Run, TrialRecord, mean_of
from fedprompt.report.style import (
    FULL,
    HALF,
    LINE,
    MAIN,
    MUTED,
    OTHERS,
    REFERENCE,
    TEXT,
    Drawing,
    separate,
    shorten,
    size_text,
)

MOST_CLASSES = 60  # rows of the figure of scores per class
LEAST_SPAN = 5  # smallest range of an axis in percent, in points
LOG_RATIO = 20  # above this ratio of largest to smallest, bytes are drawn on a logarithmic scale

Curve = tuple[Sequence[int], Sequence[float]]


def markers_of(run: Run) -> Mapping[str, tuple[str, str]]:
    """Trial -> (colour, marker): a grey bar for the reference, a blue circle for the main trial."""
    others = cycle(zip(OTHERS, "sD^vP", strict=True))
    fixed = [(run.main, (MAIN, "o")), (run.reference, (REFERENCE, "|"))]
    chosen = {trial.name: marker for trial, marker in fixed if trial is not None}
    return {trial.name: chosen.get(trial.name) or next(others) for trial in run.trials}


def distinct_markers(wanted: Sequence[tuple[str, str] | None]) -> list[tuple[str, str]]:
    """A (colour, marker) for each of several: the one that is wanted, or a free one for those that are taken already.

    So methods of one run look as in its report, and the first of others as a main method does.
    """
    taken = {marker for marker in wanted if marker is not None}
    known = ((MAIN, "o"), *zip(OTHERS, "sD^vP", strict=True))
    free = cycle([one for one in known if one not in taken] or known)
    found: list[tuple[str, str]] = []
    for marker in wanted:
        found.append(next(free) if marker is None or marker in found else marker)
    return found


def _draw_points(axes: Axes, run: Run, points: Mapping[str, Sequence[tuple[float, int]]], *, size: float) -> None:
    """Draw each trial's (value, row) points with its own marker, the main trial in front, and label it for a legend."""
    for trial in run.trials:
        colour, marker = markers_of(run)[trial.name]
        axes.plot(
            [value for value, _ in points[trial.name]],
            [row for _, row in points[trial.name]],
            marker,
            color=colour,
            markersize=size * {"|": 1.5, "o": 1.15}.get(marker, 0.9),
            markeredgewidth=2.5 if marker == "|" else 0,
            zorder=4 if trial == run.main else 3,
            label=trial.label,
        )


def metric_name(run: Run) -> str:
    """Name of the headline metric."""
    return MEASURES.get(run.header.metric) or run.header.metric.replace("_", " ")


def headline_drawing(run: Run) -> Drawing:
    """The values of the headline table as points, one colour and marker per method."""
    return Drawing("headline", _headline_size(run), lambda axes: _headline(axes, run))


def headline_figure(run: Run) -> str:
    """The values of the headline table as points, one colour and marker per method."""
    return headline_drawing(run).svg


def save_headline(run: Run, path: Path) -> None:
    """Write the headline figure to a file: PNG for the suffix `.png`, SVG for `.svg`."""
    path.write_bytes(headline_drawing(run).content(path))


def _headline_size(run: Run) -> tuple[float, float]:
    return FULL, 84 + 46 * len(run.headlines)


def _headline(axes: Axes, run: Run) -> None:
    main = run.main
    for row, column in enumerate(run.headlines):
        values = [100 * trial.figures[column] for trial in run.trials if column in trial.figures]
        axes.plot([min(values), max(values)], [row, row], color=LINE, linewidth=5, solid_capstyle="round")
        if main and column in main.figures:
            shown = 100 * main.figures[column]
            text = axes.annotate(f"{shown:.1f}", (shown, row), (0, 11), textcoords="offset points")
            text.set(color=MAIN, fontweight="bold", ha="center")
    points = {
        trial.name: [
            (100 * trial.figures[name], row) for row, name in enumerate(run.headlines) if name in trial.figures
        ]
        for trial in run.trials
    }
    _draw_points(axes, run, points, size=10)
    axes.set_yticks(range(len(run.headlines)), [run.title(column) for column in run.headlines])
    axes.tick_params(axis="y", labelsize=13, labelcolor=TEXT)
    axes.set_ylim(len(run.headlines) - 0.5, -0.75)
    axes.margins(x=0.06)
    axes.grid(axis="x")
    axes.set_xlabel(f"{metric_name(run)} (%)")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=min(len(run.trials), 5), handletextpad=0.2)


def loss_figure(run: Run) -> Drawing | None:
    """Mean training loss over clients per round; None if none was recorded."""
    curves = {trial.name: _curve({event.round: event.loss for event in trial.rounds}) for trial in run.trials}
    return _curves_figure(run, "Training loss", curves)


def score_figure(run: Run, column: str) -> Drawing | None:
    """One column over the rounds, the reference as a horizontal line; None unless a trial was scored twice."""
    curves: dict[str, Curve] = {}
    for trial in run.trials:
        values: dict[int, list[float | None]] = {}
        for score in trial.scores:
            if score.column == column:
                values.setdefault(score.round, []).append(score.value)
        means = {number: mean_of(found) for number, found in values.items()}
        curves[trial.name] = _curve({number: None if mean is None else 100 * mean for number, mean in means.items()})
    if all(len(numbers) < 2 for numbers, _ in curves.values()):
        return None
    return _curves_figure(run, f"{run.title(column)} {metric_name(run)} (%)", curves, scale="percent")


def validation_figure(run: Run) -> Drawing | None:
    """The metric of held-out images by which rounds were chosen, over the rounds; None if it was not scored twice."""
    curves = {
        trial.name: _curve({one.round: None if one.value is None else 100 * one.value for one in trial.validations})
        for trial in run.trials
    }
    if all(len(numbers) < 2 for numbers, _ in curves.values()):
        return None
    return _curves_figure(run, "Held-out images (%)", curves, scale="percent")


def bytes_figure(run: Run) -> Drawing | None:
    """Bytes uploaded by all clients together per round; None if none were recorded."""
    sums = {trial.name: {event.round: sum(event.bytes_up.values()) for event in trial.rounds} for trial in run.trials}
    curves = {name: _curve({number: size or None for number, size in found.items()}) for name, found in sums.items()}
    sizes = [size for _, found in curves.values() for size in found]
    scale = "log" if sizes and max(sizes) > LOG_RATIO * min(sizes) else "linear"
    return _curves_figure(run, f"Uploaded by all clients{' (log scale)' * (scale == 'log')}", curves, scale=scale)


def _curve(points: Mapping[int, float | None]) -> Curve:
    known = {number: value for number, value in points.items() if value is not None}
    return list(known), list(known.values())


def _curves_figure(run: Run, title: str, curves: Mapping[str, Curve], *, scale: str = "") -> Drawing | None:
    """Curves over rounds, labelled at their right ends; None if no curve has a point.

    `scale` is `linear` or `log` for bytes and `percent` for scores. What learns nothing is a level across all rounds.
    """
    shown = [trial for trial in run.trials if curves[trial.name][0]]

    def paint(axes: Axes) -> None:
        for trial in shown:
            numbers, values = curves[trial.name]
            colour = markers_of(run)[trial.name][0]
            if trial.trains:
                axes.plot(numbers, values, "-" if len(numbers) > 1 else "o", color=colour, linewidth=2)
            else:
                axes.axhline(values[-1], color=colour, linewidth=1.5, dashes=(4, 3))
        axes.set_title(title)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("round")
        if scale in ("linear", "log"):
            axes.set_yscale(scale)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda size, _: size_text(size)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        _limit(axes, scale)
        _name_ends(axes, [(trial.label, markers_of(run)[trial.name][0], curves[trial.name][1][-1]) for trial in shown])

    return Drawing(title, (HALF, 300), paint) if shown else None


def _limit(axes: Axes, scale: str) -> None:
    """Start an axis of bytes at zero, and let an axis in percent span at least five points."""
    axes.autoscale_view()
    low, high = axes.get_ylim()
    if scale == "linear":
        axes.set_ylim(bottom=0)
    elif scale == "percent" and high - low < LEAST_SPAN:
        middle = min(max((low + high) / 2, LEAST_SPAN / 2), 100 - LEAST_SPAN / 2)
        axes.set_ylim(middle - LEAST_SPAN / 2, middle + LEAST_SPAN / 2)


def _name_ends(axes: Axes, ends: Sequence[tuple[str, str, float]]) -> None:
    """Label each curve at its right end, moving labels apart where they would overlap."""
    axes.autoscale_view()
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [float(to_axes.transform((0, value))[1]) for _, _, value in ends]
    for (label, colour, _), height in zip(ends, separate(heights, 0.075), strict=True):
        text = axes.text(1.015, height, shorten(label), transform=axes.transAxes)
        text.set(color=colour, va="center", fontsize=11, fontweight="bold")


def class_figure(run: Run, column: str) -> Drawing | None:
    """Score per class in one column, one point per method, the main method's best class on top; None if not recorded.

    Of more than 60 classes, those with the largest change against the reference are shown.
    """
    scored = {trial.name: class_scores(trial, column) for trial in run.trials}
    ranked = scored[run.main.name] if run.main else next(iter(scored.values()), {})
    start = scored[run.reference.name] if run.reference else {}
    names = sorted(ranked, key=lambda name: -abs(ranked[name] - start.get(name, 0)))[:MOST_CLASSES]
    names.sort(key=lambda name: (-ranked[name], name))

    def paint(axes: Axes) -> None:
        for row, name in enumerate(names):
            if name in start:
                axes.plot([100 * start[name], 100 * ranked[name]], [row, row], color=MAIN, linewidth=1.6, alpha=0.45)
        points = {
            trial: [(100 * found[name], row) for row, name in enumerate(names) if name in found]
            for trial, found in scored.items()
        }
        _draw_points(axes, run, points, size=6.5)
        axes.set_yticks(range(len(names)), [shorten(name) for name in names], color=TEXT)
        axes.set(xlim=(-3, 103), ylim=(len(names) - 0.4, -0.6), xticks=(0, 25, 50, 75, 100))
        axes.grid(axis="x")
        which = "each class" if len(ranked) == len(names) else f"the {len(names)} classes that changed most"
        what = "average precision" if run.header.data.kind == "multi" else metric_name(run)  # mAP is its mean
        axes.set_title(f"{run.test_set_title(column)}: {what} of {which} (%)", color=MUTED)

    return Drawing(f"classes {column}", (HALF, 70 + 17 * len(names)), paint) if names else None


def class_scores(trial: TrialRecord, column: str) -> Mapping[str, float]:
    """Class -> score in a column's last round, the mean over domains."""
    found: dict[str, list[float | None]] = {}
    for score in trial.final(column):
        for name, value in zip(score.classes, score.per_class, strict=False):
            found.setdefault(name, []).append(value)
    means = {name: mean_of(values) for name, values in found.items()}
    return {name: value for name, value in means.items() if value is not None}
