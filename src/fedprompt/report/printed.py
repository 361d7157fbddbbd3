"""Published figures beside a run's own: how far each method is from what was printed of it."""

from __future__ import annotations

from collections.abc import Sequence

from fedprompt.report.events import Expected
from fedprompt.report.reading import Run
from fedprompt.report.tables import MINUS


def ours(run: Run, expected: Expected) -> float | None:
    """Our figure in percent that belongs beside a published one; None if the run has none."""
    for trial in run.trials:
        if trial.name == expected.trial:
            values = (trial.figure(column, expected.part) for column in expected.columns)
            known = next((value for value in values if value is not None), None)
            return None if known is None else 100 * known
    return None


def printed_tables(run: Run) -> list[tuple[str, str, list[Sequence[str]]]]:
    """A published table, its source, and a row (method, figure, published, ours, difference) each that the run has."""
    labels = {trial.name: trial.label for trial in run.trials}
    found: dict[tuple[str, str], list[Sequence[str]]] = {}
    for one in run.header.expected:
        value = ours(run, one)
        if value is not None:
            row = (labels[one.trial], one.name, f"{one.value:.2f}", f"{value:.2f}", signed(value - one.value))
            found.setdefault((one.table, one.source), []).append(row)
    return [(table, source, rows) for (table, source), rows in found.items()]


def signed(difference: float) -> str:
    """Points with their sign, as wide for less as for more."""
    return f"{difference:+.2f}".replace("-", MINUS)
