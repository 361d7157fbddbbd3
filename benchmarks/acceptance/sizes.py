"""Criteria for the size of records and reports, and for memory, with thousands of labels, clients and rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from benchmarks.acceptance.criteria import Row, row
from benchmarks.load import CASES, load

RECORDS, REPORT, MEMORY = "records (MB)", "report (MB)", "peak memory (GB)"
LIMITS: Mapping[str, Mapping[str, float]] = {
    "labels": {RECORDS: 20, REPORT: 3, MEMORY: 1.5},
    "clients": {RECORDS: 20, REPORT: 3, MEMORY: 1.5},
    "rounds": {RECORDS: 20, REPORT: 3, MEMORY: 1.5},
}


def criteria() -> Iterator[Row]:
    """All criteria, one run per case."""
    for case, limits in LIMITS.items():
        found = load(case)
        for figure, most in limits.items():
            name, _, unit = figure.removesuffix(")").partition(" (")
            criterion = f"at most {most:g} {unit}"
            yield row(
                f"{CASES[case].what}: {name}", criterion, f"{found[figure]:.2f} {unit}", met=found[figure] <= most
            )
