"""Average runs over seeds into a Markdown table: `python -m tools.tables runs/study-1 runs/study-2 runs/study-3`.

Folders are named SETTING-SEED. Runs of one setting give a row a method with all its figures; runs of several settings
give a row a setting, with the main figures of each method in it.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from fedprompt.records.reading import TrialRecord
from fedprompt.report import Run, read_run


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


def settings(groups: Mapping[str, Sequence[Run]]) -> str:
    """One row a setting: the main figures of every method, mean and standard deviation over the setting's runs."""
    some = next(iter(groups.values()))[0]
    columns = [column for column in some.columns if ":" not in column]
    names = [trial.name for trial in some.trials]
    titles = " / ".join(some.title(column) for column in columns)
    lines = [[f"setting: {titles}", *(f"`{name}`" for name in names)], ["---"] * (1 + len(names))]
    for setting, runs in groups.items():
        cells = []
        for number in range(len(names)):
            found = [[100 * run.trials[number].figures[column] for run in runs] for column in columns]
            cells.append(" / ".join(_spread(values) for values in found))
        lines.append([f"`{setting}`", *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def _bytes(trial: TrialRecord) -> str:
    last = list(trial.rounds[-1].bytes_up.values()) if trial.rounds else []
    return f"{trial.bytes_up:,.0f} ({fmean(last):,.0f})" if last and trial.bytes_up else "none"


if __name__ == "__main__":
    groups: dict[str, list[Run]] = defaultdict(list)
    for folder in sys.argv[1:]:
        groups[Path(folder).name.rpartition("-")[0]].append(read_run(Path(folder)))
    first = next(iter(groups.values()))
    print(table(first) if len(groups) == 1 else settings(groups))
