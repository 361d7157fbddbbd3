"""Run benchmarks and write RESULTS.md: `python -m benchmarks [SECTION ...]` replaces these sections of the page."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.compiling import compiling
from benchmarks.coverage import coverage
from benchmarks.data import data
from benchmarks.load import CASES, load
from benchmarks.measure import Job, Result, measure
from benchmarks.precision import precision
from benchmarks.predicting import predicting
from benchmarks.scale import import_seconds, scale
from fedprompt import methods

WAYS = ("ours", "cache off", "as released")
PAGE = Path(__file__).parent / "RESULTS.md"
NOTES = """# Benchmarks

Every measurement is a process of its own with one warm-up, on a backbone with random weights (speed does not depend on
them). The rows of a method were measured in turns, and the median turn is shown. Machines are noisy: compare rows of
one method.

- *ours*: with the feature cache. *cache off*: without it. *as released*: without it, every text at the full context
  length, class texts encoded anew for every batch, as published code does (it still has our shortcut in each
  encoder's last block). *whole texts*: ours, without shared-prefix encoding.
- *against the floor*: time over the time that the step's necessary multiply-adds take at the matrix-product rate
  measured in the same process (encoder forward and backward to its inputs, PromptFormer forward and full backward).
- *transport*: the share of the step that optimal transport takes. *Many labels*: every image has three.
"""


def every_method(base: Job) -> Iterator[Job]:
    """Training steps and evaluation passes of every method in every mode."""
    for name in methods.installed():
        for mode in WAYS:
            for task in ("train", "evaluate"):
                yield dataclasses.replace(base, method=name, mode=mode, task=task)


def large_batch(base: Job) -> Iterator[Job]:
    """FedMVP's training step at the paper's batch of 128, four times the others'."""
    for mode in WAYS:
        yield dataclasses.replace(base, method="fedmvp", mode=mode, batch=4 * base.batch)


def text_alone(base: Job) -> Iterator[Job]:
    """Training steps of text-only methods, which encode no image when features are cached."""
    for name in ("promptfl", "fedtpg"):
        for mode in WAYS:
            yield dataclasses.replace(base, method=name, mode=mode)


def many_classes(base: Job) -> Iterator[Job]:
    """Evaluation over many candidate classes, of the method with most texts per class."""
    for classes in (100, 1000):
        for mode in ("ours", "as released"):
            job = dataclasses.replace(base, method="fedmvp", mode=mode, task="evaluate")
            yield dataclasses.replace(job, classes=classes, batches=1, repeats=1)


def many_labels(base: Job) -> Iterator[Job]:
    """Training steps on multi-label images, of the method with co-occurrence conditions."""
    for classes in (20, 80):
        for mode in (*WAYS, "whole texts"):
            yield dataclasses.replace(base, method="fedmpt", mode=mode, classes=classes, kind="multi")


def micro_batches(base: Job) -> Iterator[Job]:
    """FedCoCoOp's training step, which encodes a text per image and class; the larger one in four gigabytes."""
    for batch in (base.batch, 4 * base.batch):
        yield dataclasses.replace(base, method="fedcocoop", batch=batch, repeats=1)


def memory(base: Job) -> Iterator[Job]:
    """FedMVP's step at four times the batch, with a limit on the tower's activations and without; and on ViT-L/14."""
    for limit in (0.0, 1.0):
        yield dataclasses.replace(base, batch=4 * base.batch, activations_gb=limit * base.batch / 32)
    if base.size != "tiny":
        yield dataclasses.replace(base, size="vit-l-14", repeats=1)


SECTIONS: Mapping[str, Callable[[Job], Iterable[Job]]] = {
    "methods": every_method,
    "large-batch": large_batch,
    "text-alone": text_alone,
    "many-classes": many_classes,
    "many-labels": many_labels,
    "micro-batches": micro_batches,
    "memory": memory,
}

FIGURES: Mapping[str, tuple[str, Callable[[], Mapping[str, float]]]] = {
    "scale": ("ten thousand clients, two images each", lambda: scale() | import_seconds()),
    **{f"load-{name}": (case.what, partial(load, name)) for name, case in CASES.items()},
    "data": ("ImageNet's tree with empty files; JPEG files of 500 x 375 preprocessed for the encoder", data),
    "coverage": (
        "percent of 800 simulated test sets whose 95% interval holds the truth (standard error 0.8)",
        coverage,
    ),
    "precision": (
        "the embedded CLIP, 2 images per class and style, 20 scenes per context, methods trained for 2 rounds",
        precision,
    ),
    "compile": ("the blocks of the image tower of ViT-B/16, batches of 8, with torch.compile and without", compiling),
    "predict": (
        "1,000 JPEG files of 500 x 375, ten classes, one image per pass as on a CPU; the feature cache, which may take "
        "128 MiB, fills meanwhile",
        predicting,
    ),
}


def run(job: Job) -> Result:
    """Measure in a new process, so that peak memory is the job's own."""
    command = [sys.executable, "-m", "benchmarks", "--job", json.dumps(dataclasses.asdict(job))]
    return Result(**json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]))


def rows(found: Mapping[Job, Result]) -> Iterator[str]:
    """A line per measurement: seconds, relative to ours, relative to the floor, transport and memory."""
    yield "| method | task, batch | classes | mode | seconds | against ours | against the floor | transport | memory |"
    yield "|---|---|---|---|---|---|---|---|---|"
    first = next(iter(found))
    for job, result in found.items():
        ours = found[dataclasses.replace(job, mode="ours", activations_gb=0.0)].seconds
        mode = f"{job.mode}, activations in {job.activations_gb:g} GB" if job.activations_gb else job.mode
        floor = f"{result.seconds * result.macs_per_second / result.macs:.2f}" if result.macs else ""
        share = f"{100 * result.transport / result.seconds:.1f}%" if result.transport else ""
        task = job.task if job.kind == "single" else f"{job.task}, many labels"
        task += f" on {job.size}" if job.size != first.size else ""
        yield (
            f"| {job.method} | {task}, {job.batch} | {job.classes} x {job.attributes} | {mode} | "
            f"{result.seconds:.3f} | {result.seconds / ours:.2f} | {floor} | {share} | {result.peak_gb:.1f} GB |"
        )


def measured(name: str, base: Job) -> str:
    """The text of a section after running its jobs, those of a method in turn as often as they are repeated."""
    found: dict[Job, list[Result]] = {}
    todo = list(SECTIONS[name](base))
    for method, jobs in itertools.groupby(todo, key=lambda job: (job.method, job.size, job.classes)):
        group = list(jobs)
        turns = group * group[0].repeats
        for number, job in enumerate(turns, start=1):
            result = run(dataclasses.replace(job, repeats=1))
            found.setdefault(job, []).append(result)
            what = f"{job.task} {job.mode}, batch {job.batch}, {job.classes} classes: {result.seconds:.3f} s"
            print(f"[{name}, {method[0]} {number}/{len(turns)}] {what}", flush=True)
    middle = {job: together(results) for job, results in found.items()}
    rate = max(result.macs_per_second for result in middle.values()) / 1e9
    return "\n".join(
        [
            *_made(name, f"size {base.size}, {base.repeats} turn(s); matrix products at up to {rate:.0f} GMAC/s"),
            *rows(middle),
        ]
    )


def together(results: Sequence[Result]) -> Result:
    """The result with the median of the seconds (the faster of two), and the largest peak of memory."""
    middle = sorted(results, key=lambda result: result.seconds)[(len(results) - 1) // 2]
    return dataclasses.replace(middle, peak_gb=max(result.peak_gb for result in results))


def figured(name: str) -> str:
    """The text of a section of single figures."""
    what, measure_all = FIGURES[name]
    figures = [f"| {figure} | {value:.3g} |" for figure, value in measure_all().items()]
    return "\n".join([*_made(name, what), "| figure | value |", "|---|---|", *figures])


def _made(name: str, what: str) -> list[str]:
    machine = f"{torch.get_num_threads()} thread(s) of {platform.machine()}, torch {torch.__version__}, float32"
    title = name.replace("-", " ").capitalize()
    return [f"## {title}", "", f"`python -m benchmarks {name}` on {machine}; {what}.", ""]


def put(page: str, name: str, text: str) -> str:
    """The page with a section of that name replaced, or added at its end."""
    section = f"<!-- {name} -->\n{text}\n<!-- end of {name} -->\n"
    old = re.compile(rf"<!-- {name} -->\n.*?<!-- end of {name} -->\n", re.DOTALL)
    return old.sub(lambda _: section, page) if old.search(page) else f"{page}\n{section}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", help=f"of {', '.join((*SECTIONS, *FIGURES))}; all if none is named")
    parser.add_argument("--size", default="vit-b-16")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=PAGE, help="the page to write")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        print(json.dumps(dataclasses.asdict(measure(Job(**json.loads(given.job))))))
        return
    if unknown := set(given.sections) - {*SECTIONS, *FIGURES}:
        parser.error(f"there is no section {sorted(unknown)[0]!r}")
    base = Job("fedmvp", "ours", "train", size=given.size, batch=given.batch, repeats=given.repeats)
    for name in given.sections or (*SECTIONS, *FIGURES):
        text = figured(name) if name in FIGURES else measured(name, base)
        page = given.out.read_text(encoding="utf-8") if given.out.exists() else NOTES
        given.out.write_text(put(page, name, text), encoding="utf-8")


if __name__ == "__main__":
    main()
