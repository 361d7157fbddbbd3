"""Published figures beside our own, over seeds: how far each method is from what was printed of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from fedprompt.records.events import Expected
from fedprompt.records.reading import Run, Trial

HEAD = ("method", "figure", "published", "ours", "difference", "seeds")
PARAMETERS = "parameters (M)"  # the one figure that is no share


@dataclass(frozen=True)
class Difference:
    """Ours beside a published figure, both in percent or in what its name says; `ours` has a value a seed."""

    expected: Expected
    method: str
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
        return self.mean - self.expected.value

    @property
    def row(self) -> Sequence[str]:
        """As `HEAD` says."""
        spread = "" if self.spread is None else f" ± {self.spread:.2f}"
        values = (f"{self.expected.value:.2f}", f"{self.mean:.2f}{spread}", f"{self.difference:+.2f}")
        return (self.method, self.expected.name, *values, str(len(self.ours)))


def ours(run: Run, expected: Expected) -> float | None:
    """Our figure, in the unit of the published one that it belongs beside; None if the run has none."""
    for trial in run.trials:
        if trial.name == expected.trial:
            values = (_figure(trial, column, expected.part) for column in expected.columns)
            return next((value for value in values if value is not None), None)
    return None


def _figure(trial: Trial, column: str, part: str) -> float | None:
    """A column in percent, the mean of columns that "+" joins, or millions of trained numbers."""
    if column == PARAMETERS:
        return None if trial.about.trainable is None else trial.about.trainable / 1e6
    values = [trial.figure(one, part) for one in column.split("+")]
    known = [value for value in values if value is not None]
    return 100 * fmean(known) if len(known) == len(values) else None


def differences(runs: Sequence[Run]) -> list[Difference]:
    """Ours minus published for what the headers of runs, one a seed, expect and the runs have."""
    labels = {trial.name: trial.label for run in runs for trial in run.trials}
    found = []
    for one in dict.fromkeys(one for run in runs for one in run.header.expected):
        values = tuple(value for run in runs if (value := ours(run, one)) is not None)
        if values:
            found.append(Difference(one, labels[one.trial], values))
    return found


def printed_tables(found: Iterable[Difference]) -> list[tuple[str, list[Sequence[str]]]]:
    """For each published table its name with its source, and a row as `HEAD` says for each of its figures."""
    grouped: dict[str, list[Sequence[str]]] = {}
    for one in found:
        grouped.setdefault(f"{one.expected.table}: {one.expected.source}", []).append(one.row)
    return list(grouped.items())


def as_markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of words."""
    return "".join("| " + " | ".join(line) + " |\n" for line in (head, ["---"] * len(head), *rows))
