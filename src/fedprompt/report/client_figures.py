"""Figures with one row per client: training images per class, and participation per round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from fedprompt.records.atomic_files import write_atomic
from fedprompt.records.event_fields import PartitionCounts
from fedprompt.records.events import RoundEvent
from fedprompt.records.run_record import Run, TrialRecord
from fedprompt.report.style import ALARM, FULL, HALF, MANY, MUTED, SHADES, TEXT, Drawing, draw_grid, shorten

MOST_CLIENTS, MOST_CLASSES = 60, 100  # more would be too small to read
FEW = 30  # up to this number of rows, rows are drawn tall


def partition_figure(held: PartitionCounts) -> str:
    """Training images per client (rows) and class (columns, grouped by the client with most of them), as SVG.

    At most the first 60 clients and 100 classes are shown.
    """
    return partition_drawing(held).svg


def save_partition(held: PartitionCounts, path: Path) -> None:
    """Write the figure of a partition to a file: PNG for the suffix `.png`, SVG for `.svg`."""
    write_atomic(path, partition_drawing(held).content(path))


def partition_drawing(held: PartitionCounts) -> Drawing:
    """The figure of a partition, to be written in a form of choice."""
    counts, clients, classes = held.counts, held.clients, held.classes
    rows = range(min(len(counts), MOST_CLIENTS))
    most = {label: max(rows, key=lambda row: counts[row][label]) for label in range(len(classes))}
    assigned = [label for label in most if counts[most[label]][label]]
    order = sorted(assigned or most, key=lambda label: most[label])[:MOST_CLASSES]
    shades = _shades(sorted({counts[row][label] for row in rows for label in order} - {0}))

    def paint(axes: Axes) -> None:
        draw_grid(axes, [[shades.get(counts[row][label], 0) for label in order] for row in rows])
        size = 10 if len(order) <= 2 * FEW else 8
        axes.set_xticks(range(len(order)), [shorten(classes[label]) for label in order], rotation=90, fontsize=size)
        _name_rows(axes, [clients[row] for row in rows])
        for row in rows:
            total = axes.text(len(order) - 0.3, row, f"{held.images(row):,}", va="center", fontsize=_font(len(rows)))
            total.set_color(MUTED)
        _shade_legend(axes, shades)

    below = 6.5 * max((len(shorten(classes[label])) for label in order), default=0)
    return Drawing("partition", (FULL, 50 + _height(len(rows), 27) + below), paint, cropped=True)


def _shades(values: Sequence[int]) -> dict[int, int]:
    """Count -> shade 1..5: one shade per count for at most five counts, else five equal steps up to the largest."""
    if len(values) <= len(SHADES):
        return (
            {value: 5 if value == values[-1] else place for place, value in enumerate(values, 1)}
            if len(values) > 1
            else dict.fromkeys(values, 4)
        )
    return {value: 1 + 5 * value // (values[-1] + 1) for value in values}


def _shade_legend(axes: Axes, shades: Mapping[int, int]) -> None:
    handles: list[Patch] = []
    for shade in sorted(set(shades.values())):
        found = [value for value in shades if shades[value] == shade]
        name = str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
        handles.append(
            Patch(facecolor=SHADES[shade - 1], label=name if handles else f"{name} image{'s' * (name != '1')}")
        )
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=5, handlelength=1, handleheight=1)


def participation_figure(run: Run, trial: TrialRecord) -> Drawing | None:
    """Participation per client and round: stronger colour for more uploaded bytes, a cross for a failed update.

    None before the first round. At most the first 60 clients are shown.
    """
    rounds = trial.rounds
    seen = sorted({client for event in rounds for client in (*event.clients, *event.failed)})[:MOST_CLIENTS]
    names = run.header.partition.clients if run.header.partition else ()
    largest = max((size for event in rounds for size in event.bytes_up.values()), default=1) or 1
    columns = {event.round: event for event in rounds}
    last = max([trial.about.rounds or 1, *columns])
    levels = [[_level(columns.get(number), client, largest) for number in range(1, last + 1)] for client in seen]

    def paint(axes: Axes) -> None:
        draw_grid(axes, levels, gap=0.16 if last <= MOST_CLIENTS else 0)
        failed = [
            (event.round - 1, row) for row, client in enumerate(seen) for event in rounds if client in event.failed
        ]
        (crosses,) = axes.plot([x for x, _ in failed], [y for _, y in failed], "x", color=ALARM)
        crosses.set(markersize=6, markeredgewidth=2, rasterized=len(failed) > MANY)
        _name_rows(axes, [names[client] if client < len(names) else f"client {client}" for client in seen])
        step = 5 * -(-last // 20) if last >= 10 else 1
        ticks = [number for number in range(1, last + 1) if number == 1 or number % step == 0]
        axes.set_xticks([number - 1 for number in ticks], [str(number) for number in ticks])
        axes.set_title(trial.label)
        axes.set_xlabel("round", loc="left")

    return Drawing(f"participation {trial.name}", (HALF, 80 + _height(len(seen), 20)), paint) if seen else None


def _level(event: RoundEvent | None, client: int, largest: int) -> int:
    """Shade of one client in one round: 2 to 4 by its upload, 0 without participation, -1 before the round."""
    if event is None:
        return -1
    if client not in event.clients or client in event.failed:
        return 0
    return 2 + round(2 * event.bytes_up.get(client, largest) / largest)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [shorten(name) for name in names], fontsize=_font(len(names)), color=TEXT)


def _font(rows: int) -> float:
    return 11 if rows <= FEW else 8.5


def _height(rows: int, tall: float) -> float:
    return rows * (tall if rows <= FEW else 12)
