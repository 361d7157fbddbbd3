"""Published figures beside our own, over seeds: how far each method is from what was printed of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from fedprompt.report.events import Expected
from fedprompt.report.reading import Run

HEAD = ("method", "figure", "published", "ours", "difference", "seeds")


@dataclass(frozen=True)
class Difference:
    """Ours beside a published figure, both in percent; `ours` has a value a seed that has been run."""

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
    """Our figure in percent that belongs beside a published one; None if the run has none."""
    for trial in run.trials:
        if trial.name == expected.trial:
            values = (trial.figure(column, expected.part) for column in expected.columns)
            known = next((value for value in values if value is not None), None)
            return None if known is None else 100 * known
    return None


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
