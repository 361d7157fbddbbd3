"""A published experiment run with its published settings: every run resumable, our figures beside the printed ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from fedprompt.records.event_fields import ExpectedFigure
from fedprompt.records.reading import MEASURES, TUNED
from fedprompt.records.run_folder import write_atomic
from fedprompt.report import Run, comparable_figure
from fedprompt.report.published import HEAD, Difference, as_markdown, difference_tables
from fedprompt.studies.published import MEAN, Published, Reach, expected_cells, recipe
from fedprompt.studies.published_tables import PublishedCell
from fedprompt.studies.sweep import Job

SCALE = {measure: name for name, measure in MEASURES.items()}  # "CF1" -> "cf1_macro"
HEADLINE = "mAP"
UNSEEN = "unseen"
UNITS = "In percent, or in what a column names; the difference is ours minus published."


def jobs(
    about: Published, *, root: Path, out: Path, seeds: Sequence[int] = (), settings: Sequence[str] = ()
) -> list[Job]:
    """Every run of an experiment, seed by seed."""
    alone = {
        label: tuple(
            _expectation(reach, trial, cell)
            for reach, trial, cell in _cells(about)
            if _runs(reach, cell, about) == [label]
        )
        for label in about.variants
    }
    return [
        Job(
            recipe(about, label, root=root, seed=seed, settings=settings),
            out / f"seed-{seed}" / label,
            label,
            alone[label],
        )
        for seed in seeds or about.seeds
        for label in about.variants
    ]


def differences(about: Published, todo: Sequence[Job]) -> list[Difference]:
    """Ours minus published for every cell that finished runs have a figure for."""
    by_seed: dict[int, dict[str, Run]] = {}
    for job in todo:
        if run := job.run:
            by_seed.setdefault(job.recipe.seed, {})[job.label] = run
    rows = []
    for reach, trial, cell in _cells(about):
        expected = _expectation(reach, trial, cell)
        labels = _runs(reach, cell, about)
        means = [
            _mean(about, {label: by_label.get(label) for label in labels}, expected) for by_label in by_seed.values()
        ]
        if known := tuple(value for value in means if value is not None):
            rows.append(Difference(expected, trial, known))
    return rows


def _cells(about: Published) -> Iterator[tuple[Reach, str, PublishedCell]]:
    """The published cells that trials are compared with; of some tables one column only."""
    for reach, trial, cells in expected_cells(about):
        yield from ((reach, trial, cell) for cell in cells if reach.axis != "column" or cell.column == reach.column)


def _runs(reach: Reach, cell: PublishedCell, about: Published) -> list[str]:
    """Labels of the runs that a cell is the mean of."""
    return [cell.column] if reach.axis == "run" and cell.column != MEAN else list(about.variants)


def _mean(about: Published, runs: Mapping[str, Run | None], expected: ExpectedFigure) -> float | None:
    """The mean of a figure over runs, first of each data set; None if one lacks it: that of some is none of a table."""
    by_set: dict[str, list[float]] = {}
    for label, run in runs.items():
        value = None if run is None else comparable_figure(run, expected)
        if value is None:
            return None
        by_set.setdefault(str(about.variants[label].get("data.name", "")), []).append(value)
    return fmean(map(fmean, by_set.values()))


def _expectation(reach: Reach, trial: str, cell: PublishedCell) -> ExpectedFigure:
    """Which figure of a run's trial belongs beside a cell."""
    column, part = reach.figure or cell.measure, ""
    columns: tuple[str, ...] = (column,)
    if reach.axis == "figure":
        columns = (cell.column,)
    elif reach.axis == "part" and cell.column != MEAN:
        # A set that was trained on itself has its figure under "base".
        part, columns = cell.column, (column, "base") if column == UNSEEN else (column,)
    elif reach.axis != "part" and cell.measure not in ("", HEADLINE):
        columns = (f"{column}:{SCALE[cell.measure]}{TUNED}", f"{column}:{SCALE[cell.measure]}")
    source = f"{cell.source} ({cell.certainty})"
    name = " ".join(filter(None, (cell.column, cell.measure)))
    return ExpectedFigure(
        trial=trial, table=cell.table, name=name, value=cell.value, source=source, columns=columns, part=part
    )


def cautions(about: Published, settings: Sequence[str]) -> list[str]:
    """What to know before comparing; `settings` are those that are not the published ones."""
    changed = f"Not with the published settings: {', '.join(settings)}." if settings else ""
    return [caution for caution in (about.remark, changed) if caution]


def write(about: Published, found: Sequence[Difference], out: Path, *, settings: Sequence[str] = ()) -> Path:
    """Ours minus published as a Markdown page, with what to know above."""
    said = [f"# {about.name}", UNITS, *cautions(about, settings)]
    for title, rows in difference_tables(found):
        said += [f"## {title}", as_markdown(HEAD, rows).rstrip()]
    page = out / "published.md"
    write_atomic(page, "\n\n".join(said) + "\n")
    return page
