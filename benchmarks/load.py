"""Records, report and memory of runs with thousands of labels, clients or rounds, on the embedded demo CLIP."""

from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fedprompt.config.recipe import parse_recipe
from fedprompt.experiments import run as runs
from fedprompt.experiments.plan import resolve

ROOT = Path(__file__).resolve().parents[1]
LABELS_PER_IMAGE = 10
LABELS = """
name = "many-labels"
seed = 1
[data]
source = "label_table"
path = "{table}"
[partition]
rule = "iid"
clients = 10
[method]
name = "dualcoop"
[[compare]]
name = "zeroshot"
[train]
rounds = 2
fraction = 0.2
batch_size = 32
lr = 0.002
[evaluate]
every = 1
held_out = 0.1
"""
CLIENTS = """
name = "many-clients"
seed = 1
[data]
source = "emoji"
train = {train}
test = 1
[partition]
rule = "iid"
clients = {clients}
[method]
name = "promptfl"
[[compare]]
name = "zeroshot"
[train]
rounds = {rounds}
fraction = {fraction}
batch_size = 32
lr = 0.1
[evaluate]
every = {every}
samples = 2
"""


@dataclass(frozen=True)
class Case:
    """One run: how many labels, images, clients and rounds it has."""

    what: str
    labels: int = 0
    images: int = 0
    clients: int = 10
    rounds: int = 2

    def recipe(self, folder: Path) -> str:
        """The recipe, after writing the images that it needs."""
        if self.labels:
            return LABELS.format(table=make_table(folder, self.labels, self.images))
        train = max(1, -(-2 * self.clients // 180))  # 60 base classes by three artists, two images per client
        every, fraction = max(1, self.rounds // 100), min(1, 1000 / self.clients)
        return CLIENTS.format(train=train, clients=self.clients, rounds=self.rounds, every=every, fraction=fraction)


CASES: Mapping[str, Case] = {
    "labels": Case("5,000 labels, 1,500 images, 2 rounds of 2 of 10 clients", labels=5000, images=1500),
    "clients": Case("10,000 clients, 3 rounds of 1,000 of them", clients=10_000, rounds=3),
    "rounds": Case("1,000 rounds, 10 clients", clients=10, rounds=1000),
}


def make_table(folder: Path, labels: int, images: int) -> Path:
    """A table with a column per label and images of noise beside it, each with ten labels drawn at random."""
    draws = np.random.default_rng(1)
    folder.mkdir(parents=True)
    table = folder / "labels.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *(f"label {label:04d}" for label in range(labels))])
        for number in range(images):
            name = f"{number:05d}.png"
            Image.fromarray(draws.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / name)
            row = np.zeros(labels, dtype=int)
            row[draws.choice(labels, LABELS_PER_IMAGE, replace=False)] = 1
            writer.writerow([name, *row.tolist()])
    return table


def run_case(name: str) -> dict[str, float]:
    """Run a case in this process: megabytes of records and report, gigabytes of peak memory, and seconds."""
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "run"
        plan = resolve(parse_recipe(CASES[name].recipe(Path(temporary) / "images")))
        started = time.perf_counter()
        report = runs.start(plan, out)
        return {**sizes(out, report), "peak memory (GB)": peak_memory(), "seconds": time.perf_counter() - started}


def sizes(out: Path, report: Path) -> dict[str, float]:
    """Megabytes of the files of a run: records are all but report, adapters and checkpoints."""
    files = {path: path.stat().st_size / 1e6 for path in out.rglob("*") if path.is_file()}
    apart = {"adapters", "checkpoints", report.name}
    folders = ("run.jsonl", "vectors", "predictions", "partition.json")
    inside = {path: path.relative_to(out).parts[0] for path in files}
    return {
        "records (MB)": sum(size for path, size in files.items() if inside[path] not in apart),
        **{
            f"of these {folder} (MB)": sum(size for path, size in files.items() if inside[path] == folder)
            for folder in folders
        },
        "report (MB)": files[report],
    }


def peak_memory() -> float:
    """Gigabytes of memory that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def load(name: str) -> dict[str, float]:
    """The figures of a case, measured in a new process."""
    command = [sys.executable, "-m", "benchmarks.load", name]
    return dict(
        json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
    )


if __name__ == "__main__":
    print(json.dumps(run_case(sys.argv[1])))
