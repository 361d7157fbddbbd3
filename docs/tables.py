"""Average runs of one recipe over seeds into a Markdown table: `python docs/tables.py runs/study-1 runs/study-2`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from fedprompt.report import Run, read_run
from fedprompt.report.reading import Trial


def table(runs: Sequence[Run]) -> str:
    """One row a trial: mean and standard deviation over runs, in percent, and bytes sent a client and round.

    Raises ValueError when the runs do not have the same trials.
    """
    names = [trial.name for trial in runs[0].trials]
    if any([trial.name for trial in run.trials] != names for run in runs):
        raise ValueError("The runs have different trials; give runs of one recipe that differ in their seeds alone.")
    columns = runs[0].columns
    head = ["method", *(runs[0].title(column) for column in columns), "bytes up, mean (last round)"]
    lines = [head, ["---"] * len(head)]
    for number, name in enumerate(names):
        trials = [run.trials[number] for run in runs]
        figures = [_spread([100 * trial.figures[column] for trial in trials]) for column in columns]
        lines.append([f"`{name}`", *figures, _bytes(trials[0])])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def _bytes(trial: Trial) -> str:
    last = list(trial.rounds[-1].bytes_up.values()) if trial.rounds else []
    return f"{trial.bytes_up:,.0f} ({fmean(last):,.0f})" if last and trial.bytes_up else "none"


if __name__ == "__main__":
    print(table([read_run(Path(folder)) for folder in sys.argv[1:]]))
