"""Acceptance criteria with their measurements; criteria that are met or not are proved by running tests."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
PASSED, SKIPPED = "passed", "skipped"
ENDS = ("failure", "error", SKIPPED)  # as pytest's report calls them
CASES = 200  # that property tests of aggregation rules try

Verdict = Literal["met", "not met", "no criterion", "not measured"]


@dataclass(frozen=True)
class Row:
    """One line of the page; `where` says how it was measured."""

    what: str
    criterion: str
    measured: str
    verdict: Verdict
    where: str = "here"


@dataclass(frozen=True)
class Proof:
    """A criterion that is met if tests pass, each named `file.py::test`, below `tests/`."""

    what: str
    criterion: str
    tests: tuple[str, ...]


Criterion = Row | Proof


def row(what: str, criterion: str, measured: str, *, met: bool) -> Row:
    """A line that was measured here."""
    return Row(what, criterion, measured, verdict(met=met))


def verdict(*, met: bool) -> Verdict:
    return "met" if met else "not met"


def proof(what: str, criterion: str, *tests: str) -> Proof:
    return Proof(what, criterion, tests)


def settled(criteria: Mapping[str, Sequence[Criterion]]) -> dict[str, list[Row]]:
    """All criteria as rows, after one run of the tests of all proofs."""
    tests = {test for some in criteria.values() for one in some if isinstance(one, Proof) for test in one.tests}
    outcomes = ran(tests)
    return {
        title: [_proved(one, outcomes) if isinstance(one, Proof) else one for one in some]
        for title, some in criteria.items()
    }


def _proved(one: Proof, outcomes: Mapping[str, Sequence[str]]) -> Row:
    results = [outcome for test in one.tests for outcome in outcomes.get(test, ["missing"])]
    good = results.count(PASSED)
    met = verdict(met=good == len(results))
    if SKIPPED in results and set(results) <= {PASSED, SKIPPED}:
        met = "not measured"
    files = ", ".join(f"`{name}`" for name in dict.fromkeys(test.partition("::")[0] for test in one.tests))
    skipped = f", {results.count(SKIPPED)} skipped" if SKIPPED in results else ""
    return Row(one.what, one.criterion, f"{good} of {len(results)} tests pass{skipped}", met, files)


def ran(tests: Iterable[str]) -> dict[str, list[str]]:
    """Run tests in a process and return the outcomes of each `file.py::test`, one per parameter."""
    names = sorted(tests)
    outcomes: dict[str, list[str]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-o", "junit_family=xunit1", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *options, *(f"tests/{name}" for name in names)]
        environment = os.environ | {"FEDPROMPT_CASES": str(CASES)}
        subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=False)
        for case in ElementTree.parse(report).iter("testcase"):
            name = f"{Path(case.attrib['file']).name}::{case.attrib['name'].partition('[')[0]}"
            outcomes[name].append(next((child.tag for child in case if child.tag in ENDS), PASSED))
    return outcomes


def table(rows: Iterable[Row]) -> Iterator[str]:
    """The lines of a table."""
    yield "| what | criterion | measured | met | measured by |"
    yield "|---|---|---|---|---|"
    for one in rows:
        met = f"**{one.verdict}**" if one.verdict == "not met" else one.verdict
        yield "| " + " | ".join(_cell(text) for text in (one.what, one.criterion, one.measured, met, one.where)) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
