"""A published experiment run with its published settings: every run resumable, our figures beside the printed ones."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from fedprompt.build import runs
from fedprompt.build.experiment import resolve
from fedprompt.build.published import MEAN, Published, Reach, expected, recipe
from fedprompt.build.runs import RECIPE, SILENT, Watch
from fedprompt.config import Recipe, load_recipe
from fedprompt.errors import UserError
from fedprompt.published.tables import Cell
from fedprompt.records import write_atomic
from fedprompt.report import read_run
from fedprompt.report.reading import MEASURES, TUNED, Run, Trial

SCALE = {measure: name for name, measure in MEASURES.items()}  # "CF1" -> "cf1_macro"
HEADLINE = "mAP"


@dataclass(frozen=True)
class Job:
    """One run of an experiment: a label of what it differs in, and a seed."""

    label: str
    seed: int
    recipe: Recipe
    folder: Path


@dataclass(frozen=True)
class Difference:
    """Ours beside a published figure, both in percent; `ours` has a value a seed that has been run."""

    cell: Cell
    trial: str
    ours: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return fmean(self.ours)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None of one."""
        return stdev(self.ours) if len(self.ours) > 1 else None

    @property
    def difference(self) -> float:
        """Ours minus published."""
        return self.mean - self.cell.value


def jobs(
    about: Published, *, root: Path, out: Path, seeds: Sequence[int] = (), settings: Sequence[str] = ()
) -> list[Job]:
    """Every run of an experiment, seed by seed."""
    return [
        Job(label, seed, recipe(about, label, root=root, seed=seed, settings=settings), out / f"seed-{seed}" / label)
        for seed in seeds or about.seeds
        for label in about.variants
    ]


def conduct(todo: Sequence[Job], *, watch: Watch = SILENT) -> Iterator[tuple[int, float | None]]:
    """Do what is not done yet and go on with what was begun; yields how many are done and the seconds that are left.

    Raises UserError for a folder that holds a run with other settings.
    """
    spent: list[float] = []
    for number, job in enumerate(todo, start=1):
        started = time.perf_counter()
        worked = _conduct(job, watch)
        if worked:
            spent.append(time.perf_counter() - started)
        yield number, fmean(spent) * (len(todo) - number) if spent else None


def _conduct(job: Job, watch: Watch) -> bool:
    """Whether there was anything to do."""
    if not (job.folder / "run.jsonl").exists():
        runs.start(job.recipe, job.folder, watch=watch, origin=job.recipe.name)
        return True
    if load_recipe(job.folder / RECIPE).to_toml() != resolve(job.recipe).to_toml():
        raise UserError(f"{job.folder} holds a run with other settings; give another folder with --out, or delete it.")
    end = read_run(job.folder).end
    if end is not None and end.status == "done":
        return False
    runs.resume(job.folder, watch=watch)
    return True


def differences(about: Published, todo: Sequence[Job]) -> list[Difference]:
    """Ours minus published for every cell that finished runs have a figure for."""
    found = [(job, read_run(job.folder)) for job in todo if (job.folder / "run.jsonl").exists()]
    seeds = dict.fromkeys(job.seed for job, _ in found)
    by_seed = [{job.label: run for job, run in found if job.seed == seed} for seed in seeds]
    rows = []
    for reach, trial, cell in ((reach, trial, cell) for reach, trial, cells in expected(about) for cell in cells):
        ours = [_ours(reach, cell, trial, by_label, about) for by_label in by_seed]
        if known := tuple(100 * value for value in ours if value is not None):
            rows.append(Difference(cell, trial, known))
    return rows


def _ours(reach: Reach, cell: Cell, trial: str, by_label: Mapping[str, Run], about: Published) -> float | None:
    """Our figure for a published cell, a share of one; None if its runs are not all there."""
    wanted = [cell.column] if reach.axis == "run" and cell.column != MEAN else list(about.variants)
    if (reach.axis == "column" and cell.column != reach.column) or not set(wanted) <= by_label.keys():
        return None
    values = [_figure(reach, cell, _trial(by_label[label], trial), by_label[label]) for label in wanted]
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(wanted) else None


def _trial(run: Run, name: str) -> Trial | None:
    return next((trial for trial in run.trials if trial.name == name), None)


def _figure(reach: Reach, cell: Cell, trial: Trial | None, run: Run) -> float | None:
    if trial is None:
        return None
    if reach.axis == "figure":
        return trial.figures.get(cell.column)
    column = reach.figure or cell.measure
    if reach.axis == "part":
        # ImageNet itself is where training was: its figure stands under "base".
        parts = trial.by_part(column)
        return (
            trial.figures.get(column)
            if cell.column == MEAN
            else parts.get(cell.column, trial.by_part("base").get(cell.column))
        )
    if cell.measure in ("", HEADLINE):
        return trial.figures.get(column)
    name = f"{column}:{SCALE[cell.measure]}"
    return trial.figures.get(name + TUNED, trial.figures.get(name))


def head() -> tuple[str, ...]:
    """The columns of `lines`."""
    return ("method", "published in", "column", "published", "ours", "difference", "seeds", "source")


def lines(found: Sequence[Difference]) -> list[tuple[str, ...]]:
    """A row a cell, for tables."""
    return [
        (
            one.trial,
            one.cell.table,
            " ".join(filter(None, (one.cell.column, one.cell.measure))),
            f"{one.cell.value:.2f}",
            f"{one.mean:.2f}" + ("" if one.spread is None else f" ± {one.spread:.2f}"),
            f"{one.difference:+.2f}",
            str(len(one.ours)),
            f"{one.cell.source} ({one.cell.certainty})",
        )
        for one in found
    ]


def write(about: Published, found: Sequence[Difference], out: Path) -> Path:
    """Ours minus published as a Markdown page, rounds and seeds as they were run."""
    rows = [head(), ("---",) * len(head()), *lines(found)]
    body = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    page = out / "published.md"
    write_atomic(page, f"# {about.name}\n\nIn percent, ours minus published. {about.remark}\n\n{body}\n")
    return page
