"""An acceptance criterion and what was measured; where only a yes or a no can answer, tests are run as the proof."""

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

Verdict = Literal["held", "not met", "no criterion", "not measured"]


@dataclass(frozen=True)
class Row:
    """One line of the page; `where` says by what it was measured."""

    what: str
    bar: str
    measured: str
    verdict: Verdict
    where: str = "here"


@dataclass(frozen=True)
class Proof:
    """A criterion that is held if tests pass, each named `file.py::test`, below `tests/`."""

    what: str
    bar: str
    tests: tuple[str, ...]


Bar = Row | Proof


def row(what: str, bar: str, measured: str, *, held: bool) -> Row:
    """A line that was measured here."""
    return Row(what, bar, measured, verdict(held=held))


def verdict(*, held: bool) -> Verdict:
    return "held" if held else "not met"


def proof(what: str, bar: str, *tests: str) -> Proof:
    return Proof(what, bar, tests)


def settled(bars: Mapping[str, Sequence[Bar]]) -> dict[str, list[Row]]:
    """All as rows, after one run of all tests that prove something."""
    tests = {test for some in bars.values() for bar in some if isinstance(bar, Proof) for test in bar.tests}
    outcomes = ran(tests)
    return {
        title: [_proved(bar, outcomes) if isinstance(bar, Proof) else bar for bar in some]
        for title, some in bars.items()
    }


def _proved(bar: Proof, outcomes: Mapping[str, Sequence[str]]) -> Row:
    results = [outcome for test in bar.tests for outcome in outcomes.get(test, ["missing"])]
    good = results.count(PASSED)
    held = verdict(held=good == len(results))
    if SKIPPED in results and set(results) <= {PASSED, SKIPPED}:
        held = "not measured"
    files = ", ".join(f"`{name}`" for name in dict.fromkeys(test.partition("::")[0] for test in bar.tests))
    skipped = f", {results.count(SKIPPED)} skipped" if SKIPPED in results else ""
    return Row(bar.what, bar.bar, f"{good} of {len(results)} tests pass{skipped}", held, files)


def ran(tests: Iterable[str]) -> dict[str, list[str]]:
    """Run tests in a process of their own: what became of each `file.py::test`, with every parameter."""
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
    """A subject's lines."""
    yield "| what | criterion | measured | held | measured by |"
    yield "|---|---|---|---|---|"
    for one in rows:
        held = f"**{one.verdict}**" if one.verdict == "not met" else one.verdict
        yield "| " + " | ".join(_cell(text) for text in (one.what, one.bar, one.measured, held, one.where)) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
