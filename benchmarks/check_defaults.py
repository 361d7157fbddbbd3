"""Check the defaults for own images: `python -m benchmarks.check_defaults` trains on sets they were not tuned on.

Four drawn sets, each read by its recipe as it is, with the embedded CLIP. A table says what each method gains over
zero-shot CLIP on the test images, with the 95% interval, and how long the run took.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.own_images import CHECKED, draw
from fedprompt.records.reading import read_run
from fedprompt.records.run_record import Run
from fedprompt.report.verdict import headline_column

SEED = 200  # no set is tuned on its images
TABLE = "own-images.md"


def train(recipe: str, settings: Sequence[str], out: Path) -> Run:
    """The run of a recipe in a folder; one that was stopped goes on, and one that is done is read."""
    if not (out / "report.html").is_file():
        command = ["resume", str(out)] if out.is_dir() else ["run", recipe, "--out", str(out)]
        asked = () if out.is_dir() else ("backbone.path=demo", *settings)
        words = [word for setting in asked for word in ("--set", setting)]
        subprocess.run([sys.executable, "-m", "fedprompt", *command, *words], check=True)
    return read_run(out)


def rows(name: str, run: Run) -> Iterator[str]:
    """A row per method: its figure, the gain over zero-shot CLIP with its interval, rounds and minutes."""
    assert run.reference is not None
    column = headline_column(run)
    minutes = sum(run.sessions) / 60
    zero = 100 * run.reference.figures[column]
    for trial in run.trials:
        gain = run.interval(trial, column, run.reference)
        if trial.trains and gain is not None and gain.value is not None:
            low, high = (100 * (end or 0.0) for end in (gain.low, gain.high))
            better = "yes" if low > 0 else "no"
            figure, value = 100 * trial.figures[column], 100 * gain.value
            yield (
                f"| {name} | {trial.label} | {figure:.1f} | {zero:.1f} | {value:+.1f} ({low:+.1f} to {high:+.1f}) | "
                f"{better} | {minutes:.1f} |"
            )


def table(runs: dict[str, Run]) -> str:
    """The Markdown table of all sets."""
    head = [
        "| images | method | figure | zero-shot | gain, 95% interval | better | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(row for name, run in runs.items() for row in rows(name, run))]) + "\n"


def main() -> None:
    """Draw, train and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs") / "own-images", help="folder of images, runs, table")
    given = parser.parse_args()
    settings = draw(CHECKED, given.out / "images", seed=SEED)
    runs = {}
    for name, one in CHECKED.items():
        runs[name] = train(one.recipe, settings[name], given.out / name.replace(" ", "-"))
        (given.out / TABLE).write_text(table(runs), encoding="utf-8")


if __name__ == "__main__":
    main()
