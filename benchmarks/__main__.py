"""Run everything and write RESULTS.md: `python -m benchmarks` (half an hour on two cores; `--quick` is small)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.backbone import MODES
from benchmarks.measure import Job, Result, measure
from benchmarks.scale import import_seconds, scale
from fedprompt import methods

PAGE = Path(__file__).parent / "RESULTS.md"
NOTES = """# Benchmarks

Made by `python -m benchmarks{quick}` on {machine}; matrix products of the tower's shapes ran at up to
{rate:.0f} GMAC/s. Medians of {job.repeats} after one warm-up; a backbone of size {job.size} with random weights; batch
{job.batch}; an evaluation takes {job.batches} batches (2 where classes are many). Every measurement is a process of its
own.

- *ours*: frozen features remembered. *store off*: nothing remembered. *as released*: nothing remembered, every text at
  the full context length, class texts encoded anew for every batch, as published code does (it still profits from our
  shortcut in each tower's last block).
- *against the floor*: time over the time that the step's necessary multiply-adds take at the matrix-product rate seen
  in the same process (tower forward and backward to its inputs, PromptFormer forward and full backward).

"""


def jobs(base: Job) -> Iterator[Job]:
    """Training steps and evaluation passes of every method in every mode, then evaluation with many classes."""
    for name in (name for name in methods.names() if not methods.missing(methods.load(name))):
        for task in ("train", "evaluate"):
            for mode in MODES:
                yield dataclasses.replace(base, method=name, mode=mode, task=task)


def wide_jobs(base: Job, classes: int) -> Iterator[Job]:
    """Evaluation over a long candidate list, of the method that writes most text per class."""
    for mode in ("ours", "as released"):
        yield dataclasses.replace(
            base, method=base.method, mode=mode, task="evaluate", classes=classes, batches=2, repeats=1
        )


def run(job: Job) -> Result:
    """Measure in a fresh process, so that peak memory is the job's own."""
    command = [sys.executable, "-m", "benchmarks", "--job", json.dumps(dataclasses.asdict(job))]
    return Result(**json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]))


def rows(found: dict[Job, Result]) -> Iterator[str]:
    """A line a measurement: seconds, how many times slower than ours, fraction of the floor, memory."""
    yield "| method | task | classes | mode | seconds | against ours | against the floor | peak memory |"
    yield "|---|---|---|---|---|---|---|---|"
    for job, result in found.items():
        ours = found[dataclasses.replace(job, mode="ours")]
        floor = f"{result.seconds * result.macs_per_second / result.macs:.2f}" if result.macs else ""
        yield (
            f"| {job.method} | {job.task} | {job.classes} x {job.attributes} | {job.mode} | {result.seconds:.3f} | "
            f"{result.seconds / ours.seconds:.2f} | {floor} | {result.peak_gb:.1f} GB |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="batch 8, one repeat")
    parser.add_argument("--size", default="vit-b-16")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--wide", type=int, nargs="*", default=[100, 1000], help="numbers of classes for evaluation")
    parser.add_argument("--main", default="fedmvp", help="the method measured over many classes")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        print(json.dumps(dataclasses.asdict(measure(Job(**json.loads(given.job))))))
        return
    base = Job(given.main, "ours", "train", size=given.size, batch=given.batch, repeats=given.repeats)
    if given.quick:
        base = dataclasses.replace(base, batch=min(given.batch, 8), repeats=1)
    todo = [*jobs(base), *(job for classes in given.wide for job in wide_jobs(base, classes))]
    found: dict[Job, Result] = {}
    for number, job in enumerate(todo, start=1):
        found[job] = run(job)
        print(
            f"[{number}/{len(todo)}] {job.method} {job.task} {job.mode}, {job.classes} classes: "
            f"{found[job].seconds:.3f} s",
            flush=True,
        )
    PAGE.write_text(page(base, found, scale() | import_seconds()), encoding="utf-8")
    print(f"Written: {PAGE}")


def page(base: Job, found: dict[Job, Result], other: dict[str, float]) -> str:
    """The text of RESULTS.md."""
    rate = max(result.macs_per_second for result in found.values()) / 1e9
    notes = NOTES.format(
        quick=" --quick" if base.repeats == 1 else "",
        machine=f"{torch.get_num_threads()} threads of {platform.machine()}, torch {torch.__version__}, float32",
        rate=rate,
        job=base,
    )
    figures = "".join(f"| {name} | {value:.3g} |\n" for name, value in other.items())
    return notes + "\n".join(rows(found)) + f"\n\n## Scale\n\n| figure | value |\n|---|---|\n{figures}"


if __name__ == "__main__":
    main()
