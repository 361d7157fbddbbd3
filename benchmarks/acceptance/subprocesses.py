"""Measurements in separate processes, because of memory or file system; run as `benchmarks.acceptance.subprocesses`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.acceptance.adapters import measure
from benchmarks.acceptance.criteria import ROOT
from benchmarks.mutations import fuzz
from fedprompt.config.recipe import Recipe, parse_recipe
from fedprompt.errors import UserError
from fedprompt.experiments import run as runs
from fedprompt.experiments.context import RunCallbacks
from fedprompt.experiments.plan import resolve
from fedprompt.records.run_folder import RunFolder

RECIPE = """
name = "bars"
seed = 1
[data]
source = "emoji"
train = 1
test = 1
[partition]
rule = "iid"
clients = {clients}
[method]
name = "{method}"
[train]
rounds = {rounds}
batch_size = 16
[evaluate]
local = false
samples = 0
"""
WARM = 20  # rounds after which memory must not grow
Figures = dict[str, float | str]


def recipe(method: str, *, clients: int, rounds: int) -> Recipe:
    """A small run on the demo data set."""
    return parse_recipe(RECIPE.format(method=method, clients=clients, rounds=rounds))


def run_in_process(name: str, *words: object, within: tuple[str, ...] = ()) -> Figures:
    """Run a measurement in a new process, inside the command `within` if given, and return its figures."""
    command = [*within, sys.executable, "-m", "benchmarks.acceptance.subprocesses", name, *map(str, words)]
    return dict(
        json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
    )


def memory(folder: str, rounds: str) -> Figures:
    """Resident memory of a run in MiB, after round 20 and at its peak from then on."""
    after: dict[int, float] = {}

    class MemoryProbe(RunCallbacks):
        def on_round(self, number: int, loss: float | None) -> None:
            after[number] = psutil.Process().memory_info().rss / 2**20

    plan = resolve(recipe("promptfl", clients=10, rounds=int(rounds)))
    runs.start(plan, Path(folder), callbacks=MemoryProbe())
    return {"warm": after[WARM], "most": max(size for number, size in after.items() if number > WARM)}


def mutations(count: str) -> Figures:
    """Refused and harmless messages, the number of reasons, and the growth of memory."""
    reasons, growth = fuzz(int(count))
    return {"used": reasons.pop("used", 0), "refused": reasons.total(), "codes": len(reasons), "growth": growth}


def full_disk(folder: str, method: str, clients: str, rounds: str) -> Figures:
    """Fill a file system while a run saves round 3, then make room and resume: the error, and the rounds kept."""
    size = 4 << 20
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    filler, out = Path(folder) / "filler", Path(folder) / "run"

    class DiskFiller(RunCallbacks):
        def on_round(self, number: int, loss: float | None) -> None:
            with suppress(OSError), filler.open("ab", buffering=0) as file:
                while number == 2:
                    file.write(bytes(1024))

    said = ""
    try:
        plan = resolve(recipe(method, clients=int(clients), rounds=int(rounds)))
        runs.start(plan, out, callbacks=DiskFiller())
    except UserError as error:
        said = str(error)
    kept = kept_round(out, method)
    filler.unlink()
    runs.resume(out)
    return {"said": said, "kept": kept, "last": kept_round(out, method)}


def kept_round(out: Path, trial: str) -> int:
    """The round of the newest valid checkpoint; 0 if there is none."""
    with RunFolder.open(out) as run:
        found = run.load_checkpoint(trial)
    return found.round_number if found else 0


def adapters(folder: str) -> Figures:
    """Results with malicious adapters."""
    return measure(Path(folder))


MEASURES: Mapping[str, Callable[..., Figures]] = {
    function.__name__: function for function in (memory, mutations, full_disk, adapters)
}

if __name__ == "__main__":
    print(json.dumps(MEASURES[sys.argv[1]](*sys.argv[2:])))
