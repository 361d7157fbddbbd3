"""The figures of a report, each a pure function of what the run recorded to an SVG document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedprompt.report.ink import (
    ALARM,
    INK,
    MAIN,
    MARKERS,
    MUTED,
    OTHERS,
    REFERENCE,
    RULE,
    SHADES,
    cells,
    draw,
    draw_svg,
    size_text,
    spread,
)
from fedprompt.report.reading import Run, Trial, mean_of

HALF, FULL = 504, 1036  # widths in pixels: two beside each other, or one across the page
MOST_ROWS, MOST_COLUMNS = 60, 140  # more would be too small to read

Curve = tuple[Sequence[int], Sequence[float]]


def colours(run: Run) -> Mapping[str, str]:
    """Trial name -> colour: grey for what learns nothing, blue for the main trial, the rest in order."""
    others = cycle(OTHERS)
    main, reference = run.main, run.reference
    fixed = {MAIN: main, REFERENCE: reference}
    chosen = {trial.name: colour for colour, trial in fixed.items() if trial is not None}
    return {trial.name: chosen.get(trial.name) or next(others) for trial in run.trials}


def _markers(run: Run) -> Mapping[str, str]:
    return {trial.name: marker for trial, marker in zip(run.trials, cycle(MARKERS), strict=False)}


def headline_figure(run: Run) -> str:
    """Every figure of the headline table as a dot, methods told apart by colour and shape."""
    return draw_svg("headline", _headline_size(run), lambda axes: _headline(axes, run))


def save_headline(run: Run, path: Path) -> None:
    """Write the headline figure to a `.png` or `.svg` file."""
    if path.suffix == ".png":
        path.write_bytes(draw("headline", _headline_size(run), lambda axes: _headline(axes, run), form="png"))
    else:
        path.write_text(headline_figure(run), encoding="utf-8")


def _headline_size(run: Run) -> tuple[float, float]:
    return FULL, 84 + 46 * len(run.columns)


def _headline(axes: Axes, run: Run) -> None:
    colour, marker = colours(run), _markers(run)
    main, reference = run.main, run.reference
    for row, column in enumerate(run.columns):
        values = {trial.name: 100 * trial.figures[column] for trial in run.trials if column in trial.figures}
        axes.plot([min(values.values()), max(values.values())], [row, row], color=RULE, linewidth=5, solid_capstyle="round", zorder=1)
        if main and reference and {main.name, reference.name} <= set(values):
            axes.plot([values[reference.name], values[main.name]], [row, row], color=MAIN, linewidth=2, zorder=2)
        for name, value in values.items():
            first = main is not None and name == main.name
            axes.plot(value, row, marker[name], color=colour[name], markersize=11 if first else 9, markeredgecolor="none", zorder=4 if first else 3)
        if main and main.name in values:
            shown = values[main.name]
            axes.annotate(f"{shown:.1f}", (shown, row), (0, 11), textcoords="offset points", ha="center", color=MAIN, fontweight="semibold")
    for trial in run.trials:
        axes.plot([], [], marker[trial.name], color=colour[trial.name], markeredgecolor="none", markersize=9, label=trial.label)
    axes.set_yticks(range(len(run.columns)), [run.title(column) for column in run.columns])
    axes.tick_params(axis="y", labelsize=13, labelcolor=INK)
    axes.set_ylim(len(run.columns) - 0.5, -0.75)
    axes.margins(x=0.06)
    axes.grid(axis="x")
    axes.set_xlabel(f"{metric_name(run)} (%)")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=min(len(run.trials), 5), handletextpad=0.2, borderaxespad=0)


def metric_name(run: Run) -> str:
    """The headline figure's name in words."""
    return run.header.metric.replace("_", " ")


def loss_figure(run: Run) -> str | None:
    """Mean training loss of the clients of each round; None before any round."""
    curves = {
        trial.name: _curve([(line.round, line.loss) for line in trial.rounds])
        for trial in run.trials
        if any(line.loss is not None for line in trial.rounds)
    }
    return _curves_figure(run, "loss", "Training loss", curves) if curves else None


def score_figure(run: Run, column: str) -> str | None:
    """How one column developed over the rounds, with the reference as a level; None unless it was scored twice."""
    curves: dict[str, Curve] = {}
    for trial in run.trials:
        rounds = sorted({score.round for score in trial.scores if score.column == column})
        at = {number: mean_of(s.value for s in trial.scores if s.column == column and s.round == number) for number in rounds}
        if trial.trains and rounds:
            curves[trial.name] = _curve([(number, None if value is None else 100 * value) for number, value in at.items()])
    if not any(len(curve[0]) > 1 for curve in curves.values()):
        return None
    reference = run.reference
    level = reference.figures.get(column) if reference else None
    return _curves_figure(run, f"score {column}", f"{run.title(column)} {metric_name(run)} (%)", curves, level=level)


def bytes_figure(run: Run) -> str | None:
    """Bytes all clients together upload in each round; None before any round."""
    curves = {
        trial.name: _curve([(line.round, sum(line.bytes_up.values())) for line in trial.rounds if line.bytes_up])
        for trial in run.trials
        if any(line.bytes_up for line in trial.rounds)
    }
    sizes = [size for curve in curves.values() for size in curve[1] if size > 0]
    if not sizes:
        return None
    scale = "log" if max(sizes) > 20 * min(sizes) else "linear"
    return _curves_figure(run, "bytes", f"Sent up per round, all clients{' (log scale)' if scale == 'log' else ''}", curves, scale=scale)


def _curve(points: Sequence[tuple[int, float | None]]) -> Curve:
    known = [(number, value) for number, value in points if value is not None]
    return [number for number, _ in known], [value for _, value in known]


def _curves_figure(run: Run, name: str, title: str, curves: Mapping[str, Curve], *, level: float | None = None, scale: str = "") -> str:
    """Lines over rounds with their names at their right ends; `scale` is set for bytes, which start at zero or are logarithmic."""
    colour = colours(run)

    def paint(axes: Axes) -> None:
        ends: list[tuple[str, str, float]] = []
        for trial in run.trials:
            numbers, values = curves.get(trial.name, ((), ()))
            if numbers:
                axes.plot(numbers, values, "o" if len(numbers) == 1 else "-", color=colour[trial.name], linewidth=2, zorder=2 + (trial == run.main))
                ends.append((trial.label, colour[trial.name], values[-1]))
        if level is not None and run.reference:
            axes.axhline(100 * level, color=REFERENCE, linewidth=1.5, dashes=(4, 3))
            ends.append((run.reference.label, REFERENCE, 100 * level))
        axes.set_title(title)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("round")
        if scale:
            axes.set_yscale(scale)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda size, _: size_text(size)))
            axes.yaxis.set_minor_formatter(FuncFormatter(lambda size, _: ""))
        if scale == "linear":
            axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.05)
        _name_ends(axes, ends)

    return draw_svg(name, (HALF, 300), paint)


def _name_ends(axes: Axes, ends: Sequence[tuple[str, str, float]]) -> None:
    """Write each curve's name beside its right end, moved apart where they would overlap."""
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [float(to_axes.transform((0, value))[1]) for _, _, value in ends]
    for (label, colour, _), height in zip(ends, spread(heights, 0.075), strict=True):
        text = label if len(label) <= 22 else label[:21] + "…"
        axes.text(1.015, height, text, transform=axes.transAxes, color=colour, va="center", fontsize=11, fontweight="semibold")


def partition_figure(counts: Sequence[Sequence[int]], clients: Sequence[str], classes: Sequence[str]) -> str:
    """Who holds what: clients as rows, classes as columns ordered by who holds most of them, darker for more pictures.

    `counts` is [clients, classes]; beyond 60 clients or 140 classes the first ones are shown.
    """
    rows = range(min(len(clients), MOST_ROWS))
    holder = {c: (max(rows, key=lambda r: counts[r][c], default=0), -max((counts[r][c] for r in rows), default=0)) for c in range(len(classes))}
    order = sorted(holder, key=lambda c: (holder[c][1] == 0, holder[c][0]))[:MOST_COLUMNS]
    shades = _levels(sorted({counts[r][c] for r in rows for c in order} - {0}))

    def paint(axes: Axes) -> None:
        cells(axes, [[shades.get(counts[r][c], 0) for c in order] for r in rows])
        axes.set_xticks(range(len(order)), [_short(classes[c]) for c in order], rotation=90, fontsize=10 if len(order) <= 80 else 6.5)
        axes.set_yticks(list(rows), [_short(clients[r]) for r in rows], fontsize=11 if len(rows) <= 30 else 9, color=INK)
        totals = axes.twinx()
        totals.set(ylim=axes.get_ylim())
        totals.spines["bottom"].set_visible(False)
        totals.set_yticks(list(rows), [f"{sum(counts[r]):,}" for r in rows], fontsize=11 if len(rows) <= 30 else 9)
        _shade_legend(axes, shades)

    height = max(18 if len(rows) <= 30 else 12, min(30, 900 / max(len(order), 1))) * len(rows)
    return draw_svg("partition", (FULL, height + 150), paint)


def _levels(values: Sequence[int]) -> dict[int, int]:
    """Value -> shade 1..5: each its own while there are at most five, else five equal steps up to the largest."""
    if len(values) <= len(SHADES):
        skipped = len(SHADES) - len(values) if len(values) > 1 else 1
        return {value: skipped + place for place, value in enumerate(values, 1)}
    return {value: 1 + min(4, 5 * value // (values[-1] + 1)) for value in values}


def _shade_legend(axes: Axes, shades: Mapping[int, int]) -> None:
    groups = {shade: [value for value, found in shades.items() if found == shade] for shade in sorted(set(shades.values()))}
    names = {shade: str(found[0]) if len(found) == 1 else f"{min(found)} to {max(found)}" for shade, found in groups.items()}
    handles = [Patch(facecolor=SHADES[shade - 1], label=name) for shade, name in names.items()]
    axes.legend(
        handles=handles,
        title="training pictures",
        title_fontsize=11,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=5,
        handlelength=1,
        handleheight=1,
        alignment="right",
    )


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def participation_figure(run: Run, trial: Trial) -> str | None:
    """Who took part in which round; darker for more bytes sent (relative to the largest upload), a cross where a client failed."""
    rounds = trial.rounds
    seen = sorted({client for line in rounds for client in (*line.clients, *line.failed)})[:MOST_ROWS]
    if not seen:
        return None
    names = run.header.partition.clients if run.header.partition else ()
    largest = max((sent for line in rounds for sent in line.bytes_up.values()), default=0)

    def level(client: int, place: int) -> int:
        line = rounds[place]
        if client in line.failed or client not in line.clients:
            return 0
        return 4 if not largest else 2 + round(2 * line.bytes_up.get(client, 0) / largest)

    def paint(axes: Axes) -> None:
        cells(axes, [[level(client, place) for place in range(len(rounds))] for client in seen], gap=0.16 if len(rounds) <= 60 else 0)
        crosses = [(place, row) for row, client in enumerate(seen) for place, line in enumerate(rounds) if client in line.failed]
        axes.plot([x for x, _ in crosses], [y for _, y in crosses], "x", color=ALARM, markersize=6, markeredgewidth=2, linestyle="none")
        axes.set_yticks(range(len(seen)), [_short(names[c] if c < len(names) else f"client {c}") for c in seen], fontsize=11 if len(seen) <= 30 else 9)
        step = max(1, len(rounds) // 10)
        axes.set_xticks(range(0, len(rounds), step), [str(line.round) for line in rounds[::step]])
        axes.set_title(trial.label)
        axes.set_xlabel("round")

    return draw_svg(f"participation {trial.name}", (HALF, 90 + (20 if len(seen) <= 30 else 13) * len(seen)), paint)


def class_figure(run: Run, column: str) -> str | None:
    """Accuracy of every class in one column, one dot a method, best class of the main method on top; None if not recorded."""
    scored = {trial.name: class_scores(trial, column) for trial in run.trials}
    main, reference = run.main, run.reference
    ranked = scored.get(main.name if main else "") or next((found for found in scored.values() if found), {})
    start = scored.get(reference.name, {}) if reference else {}
    names = sorted(ranked, key=lambda name: -abs(ranked[name] - start.get(name, 0)))[:MOST_ROWS]
    names.sort(key=lambda name: (-ranked[name], name))
    if not names:
        return None
    colour, marker = colours(run), _markers(run)

    def paint(axes: Axes) -> None:
        for row, name in enumerate(names):
            if name in start:
                axes.plot([100 * start[name], 100 * ranked[name]], [row, row], color=MAIN, linewidth=1.6, alpha=0.45)
        for trial in run.trials:
            found = scored[trial.name]
            rows = [row for row, name in enumerate(names) if name in found]
            values = [100 * found[names[row]] for row in rows]
            first = trial == main
            axes.plot(values, rows, marker[trial.name], color=colour[trial.name], markersize=7.5 if first else 5.5, markeredgecolor="none", zorder=3 + first)
        axes.set_yticks(range(len(names)), [_short(name) for name in names], color=INK)
        axes.set(xlim=(-3, 103), ylim=(len(names) - 0.4, -0.6), xticks=(0, 25, 50, 75, 100))
        axes.grid(axis="x")
        axes.set_title(f"{run.title(column)} classes, {metric_name(run)} (%)", color=MUTED)

    return draw_svg(f"classes {column}", (HALF, 70 + 17 * len(names)), paint)


def class_scores(trial: Trial, column: str) -> Mapping[str, float]:
    """Class -> score in a column's last round, the mean where several lines (domains) score it."""
    found: dict[str, list[float | None]] = {}
    for score in trial.final(column):
        for name, value in zip(score.classes, score.per_class, strict=False):
            found.setdefault(name, []).append(value)
    means = {name: mean_of(values) for name, values in found.items()}
    return {name: value for name, value in means.items() if value is not None}
