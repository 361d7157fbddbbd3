"""Reproduce a published experiment: its runs with their published settings, and our figures beside the published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from fedprompt.errors import option
from fedprompt.file_system import require_folder
from fedprompt.records.atomic_files import write_atomic
from fedprompt.records.event_fields import ExpectedFigure
from fedprompt.records.run_record import MEASURES, TUNED
from fedprompt.report import Run, comparable_figure
from fedprompt.report.published import HEAD, Difference, as_markdown, difference_tables
from fedprompt.studies.published import MEAN, PublishedExperiment, TableMatch, matched_cells, recipe
from fedprompt.studies.published_tables import PublishedCell
from fedprompt.studies.sweep import Job

SCALE = {measure: name for name, measure in MEASURES.items()}  # "CF1" -> "cf1_macro"
HEADLINE = "mAP"
UNSEEN = "unseen"
UNITS = "In percent, or in what a column names; the difference is ours minus published."


def require_root(root: Path) -> None:
    """UserError unless the folder of the data sets is there."""
    require_folder(root, f"give with {option('root')} the folder that has a folder per data set")


def jobs(
    about: PublishedExperiment, *, root: Path, out: Path, seeds: Sequence[int] = (), settings: Sequence[str] = ()
) -> list[Job]:
    """The runs of an experiment, seed by seed."""
    alone = {
        label: tuple(
            _expectation(match, trial, cell)
            for match, trial, cell in _cells(about)
            if _runs(match, cell, about) == [label]
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


def differences(about: PublishedExperiment, todo: Sequence[Job]) -> list[Difference]:
    """Ours minus published, for every cell with a figure from finished runs."""
    by_seed: dict[int, dict[str, Run]] = {}
    for job in todo:
        if run := job.run:
            by_seed.setdefault(job.recipe.seed, {})[job.label] = run
    rows = []
    for match, trial, cell in _cells(about):
        expected = _expectation(match, trial, cell)
        labels = _runs(match, cell, about)
        means = [
            _mean(about, {label: by_label.get(label) for label in labels}, expected) for by_label in by_seed.values()
        ]
        if known := tuple(value for value in means if value is not None):
            rows.append(Difference(expected, trial, known))
    return rows


def _cells(about: PublishedExperiment) -> Iterator[tuple[TableMatch, str, PublishedCell]]:
    """Every published cell that corresponds to a trial; of some tables only one column does."""
    for match, trial, cells in matched_cells(about):
        yield from ((match, trial, cell) for cell in cells if match.axis != "column" or cell.column == match.column)


def _runs(match: TableMatch, cell: PublishedCell, about: PublishedExperiment) -> list[str]:
    """Labels of the runs whose mean a cell is."""
    return [cell.column] if match.axis == "run" and cell.column != MEAN else list(about.variants)


def _mean(about: PublishedExperiment, runs: Mapping[str, Run | None], expected: ExpectedFigure) -> float | None:
    """The mean of a figure over runs, first within each data set; None if a run lacks it."""
    by_set: dict[str, list[float]] = {}
    for label, run in runs.items():
        value = None if run is None else comparable_figure(run, expected)
        if value is None:
            return None
        by_set.setdefault(str(about.variants[label].get("data.name", "")), []).append(value)
    return fmean(map(fmean, by_set.values()))


def _expectation(match: TableMatch, trial: str, cell: PublishedCell) -> ExpectedFigure:
    """The figure of a run's trial that corresponds to a cell."""
    column, part = match.figure or cell.measure, ""
    columns: tuple[str, ...] = (column,)
    if match.axis == "figure":
        columns = (cell.column,)
    elif match.axis == "part" and cell.column != MEAN:
        # A data set that was trained on has its figure under "base".
        part, columns = cell.column, (column, "base") if column == UNSEEN else (column,)
    elif match.axis != "part" and cell.measure not in ("", HEADLINE):
        columns = (f"{column}:{SCALE[cell.measure]}{TUNED}", f"{column}:{SCALE[cell.measure]}")
    source = f"{cell.source} ({cell.certainty})"
    name = " ".join(filter(None, (cell.column, cell.measure)))
    return ExpectedFigure(
        trial=trial, table=cell.table, name=name, value=cell.value, source=source, columns=columns, part=part
    )


def cautions(about: PublishedExperiment, settings: Sequence[str]) -> list[str]:
    """Caveats of the comparison; `settings` are those that differ from the published ones."""
    changed = f"Not with the published settings: {', '.join(settings)}." if settings else ""
    return [caution for caution in (about.remark, changed) if caution]


def write(about: PublishedExperiment, found: Sequence[Difference], out: Path, *, settings: Sequence[str] = ()) -> Path:
    """Write ours minus published as a Markdown page with its caveats."""
    said = [f"# {about.name}", UNITS, *cautions(about, settings)]
    for title, rows in difference_tables(found):
        said += [f"## {title}", as_markdown(HEAD, rows).rstrip()]
    page = out / "published.md"
    write_atomic(page, "\n\n".join(said) + "\n")
    return page
