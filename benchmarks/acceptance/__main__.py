"""Measure every acceptance criterion and write docs/acceptance.md: `python -m benchmarks.acceptance`."""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.acceptance import attacks, crashes, images, privacy, processes, secure, sizes, untrusted
from benchmarks.acceptance.criteria import ROOT, Criterion, Row, settled, table
from benchmarks.robustness import RESULTS, ROUNDS, SEEDS, Bench, average
from fedprompt.records.atomic_files import write_atomic

PAGE = ROOT / "docs" / "acceptance.md"
PACKAGES = ("torch", "transformers", "numpy", "cryptography", "dp-accounting", "flwr")
HEAD = """# Acceptance criteria, measured

What [robustness and privacy](privacy.md) and [deploying](deploying.md) promise: each promise with its acceptance
criterion and what was measured. Made by

```
{command}
```

in {minutes:.0f} minutes, on
{machine}.

*Here* is this command itself; where the answer is a yes or a no, it runs the tests in the files that are named.
Attacks on whole trainings are `python -m benchmarks.robustness`, whose every case is in `docs/robustness.jsonl`;
real processes are `fedprompt deploy rehearse --full`.

{count}
"""


def subjects(given: argparse.Namespace, folder: Path) -> Mapping[str, Callable[[], Iterable[Criterion]]]:
    """The tables of the page by title."""
    benches = [Bench(given.method, ROUNDS[given.method], seed) for seed in SEEDS]
    found = average([bench.read(given.robustness) for bench in benches])
    return {
        "Secure aggregation": secure.criteria,
        "Differential privacy": lambda: privacy.criteria(folder),
        "Faulty and malicious clients": lambda: attacks.criteria(benches[0], found),
        "Crashes and resumes": lambda: crashes.criteria(folder),
        "Real processes": lambda: processes.criteria(given.rehearsal),
        "Images at a site": lambda: images.criteria(folder),
        "Files and messages": lambda: untrusted.criteria(folder),
        "Records and reports": sizes.criteria,
    }


def machine() -> str:
    """A description of this machine and the installed packages."""
    found = [f"{os.cpu_count()} cores of {platform.machine()}, {platform.system()}, Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def page(found: Mapping[str, Sequence[Row]], *, command: str, minutes: float) -> str:
    """The text of docs/acceptance.md."""
    verdicts = Counter(row.verdict for rows in found.values() for row in rows)
    count = ", ".join(f"{number} {word}" for word, number in verdicts.most_common())
    head = HEAD.format(command=command, minutes=minutes, machine=machine(), count=f"Of {verdicts.total()}: {count}.")
    return "\n".join([head, *(line for title, rows in found.items() for line in section(title, rows))])


def section(title: str, rows: Sequence[Row]) -> Iterator[str]:
    """A table under its title."""
    yield from (f"## {title}", "", *table(rows), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rehearsal", type=Path, nargs="*", default=[], help="folders of `fedprompt deploy rehearse --full`"
    )
    parser.add_argument("--robustness", type=Path, default=RESULTS, help="results of `python -m benchmarks.robustness`")
    parser.add_argument("--method", choices=list(ROUNDS), default="promptfl", help="the method of those results")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write")
    given = parser.parse_args()
    started = time.monotonic()
    found: dict[str, list[Criterion]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for title, measure in subjects(given, Path(folder)).items():
            print(f"[{time.monotonic() - started:4.0f} s] {title}", flush=True)
            found[title] = list(measure())
    print(f"[{time.monotonic() - started:4.0f} s] Tests", flush=True)
    rows = settled(found)
    command = "python -m benchmarks.acceptance" + " --rehearsal FOLDER" * bool(given.rehearsal)
    write_atomic(given.page, page(rows, command=command, minutes=(time.monotonic() - started) / 60))
    for row in (row for every in rows.values() for row in every if row.verdict == "not met"):
        print(f"not met: {row.what}: {row.measured} (criterion: {row.criterion})")
    print(f"Written: {given.page}")


if __name__ == "__main__":
    main()
