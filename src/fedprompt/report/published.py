"""Comparison with published figures: the difference of each figure of ours, over seeds, to the published one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from fedprompt.records.event_fields import ExpectedFigure
from fedprompt.records.run_record import Run, TrialRecord

HEAD = ("method", "figure", "published", "ours", "difference", "seeds")
PARAMETERS = "parameters (M)"  # the one figure that is not in percent


@dataclass(frozen=True)
class Difference:
    """A published figure and ours, in percent or in the unit that its name gives; `ours` has one value per seed."""

    expected: ExpectedFigure
    method: str
    ours: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of ours over seeds."""
        return fmean(self.ours)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for one seed."""
        return stdev(self.ours) if len(self.ours) > 1 else None

    @property
    def difference(self) -> float:
        """Ours minus published."""
        return self.mean - self.expected.value

    @property
    def row(self) -> Sequence[str]:
        """The columns of `HEAD`."""
        spread = "" if self.spread is None else f" ± {self.spread:.2f}"
        values = (f"{self.expected.value:.2f}", f"{self.mean:.2f}{spread}", f"{self.difference:+.2f}")
        return (self.method, self.expected.name, *values, str(len(self.ours)))


def comparable_figure(run: Run, expected: ExpectedFigure) -> float | None:
    """The run's figure that is compared with a published one, in its unit; None if the run has none."""
    for trial in run.trials:
        if trial.name == expected.trial:
            values = (_figure(trial, column, expected.part) for column in expected.columns)
            return next((value for value in values if value is not None), None)
    return None


def _figure(trial: TrialRecord, column: str, part: str) -> float | None:
    """A column in percent, the mean of columns joined by "+", or millions of trained parameters."""
    if column == PARAMETERS:
        return None if trial.about.trainable is None else trial.about.trainable / 1e6
    values = [trial.figure(one, part) for one in column.split("+")]
    known = [value for value in values if value is not None]
    return 100 * fmean(known) if len(known) == len(values) else None


def differences(runs: Sequence[Run]) -> list[Difference]:
    """Ours minus published for the expected figures of runs, one run per seed, as far as the runs have them."""
    labels = {trial.name: trial.label for run in runs for trial in run.trials}
    found = []
    for one in dict.fromkeys(one for run in runs for one in run.header.expected):
        values = tuple(value for run in runs if (value := comparable_figure(run, one)) is not None)
        if values:
            found.append(Difference(one, labels[one.trial], values))
    return found


def difference_tables(found: Iterable[Difference]) -> list[tuple[str, list[Sequence[str]]]]:
    """(name and source, rows with the columns of `HEAD`) for each published table."""
    grouped: dict[str, list[Sequence[str]]] = {}
    for one in found:
        grouped.setdefault(f"{one.expected.table}: {one.expected.source}", []).append(one.row)
    return list(grouped.items())


def as_markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "".join("| " + " | ".join(line) + " |\n" for line in (head, ["---"] * len(head), *rows))
