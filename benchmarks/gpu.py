"""Check and measure a GPU: `python -m benchmarks.gpu` compares it with the CPU, runs the tests for it, and times it.

It takes at most eight minutes. `--device cpu --size tiny` runs the same code where there is no GPU.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks.backbone import SIZES, make_clip, make_examples
from benchmarks.compiling import compiling, wait
from benchmarks.data import jpegs
from benchmarks.measure import Job, step_macs
from fedprompt import methods
from fedprompt.clip.devices import find_device
from fedprompt.clip.feature_cache import FeatureCache
from fedprompt.clip.model import Clip
from fedprompt.clip.precision import DTYPES, Precision
from fedprompt.data.dataset import Examples
from fedprompt.demo import weights_folder
from fedprompt.demo.emoji import emoji
from fedprompt.errors import UserError
from fedprompt.experiments.predict import classify_files
from fedprompt.federated.client import Client, TrainSettings, train_client
from fedprompt.federated.evaluate import predict
from fedprompt.federated.gradients import gradients
from fedprompt.federated.rounds import initial_state
from fedprompt.methods.base import Method
from fedprompt.seeding import stream

CLOSE = 1e-4  # largest difference from the CPU in float32
SECONDS = 480.0
SCHEDULE = 500  # rounds of FedTPG's schedule


@dataclass(frozen=True)
class Bench:
    """A device, the size of the random backbone, images per step, and when all must end (`time.perf_counter`)."""

    device: torch.device
    size: str
    batch: int
    until: float

    def clip(self, precision: Precision = "float32") -> Clip:
        """A random backbone on the device."""
        clip = make_clip(self.size, "ours", batch=self.batch, precision=precision)
        return clip.to(self.device)

    def seconds(self, work: Callable[[], object], *, repeats: int = 3) -> float:
        """Median seconds of a piece of work after one warm-up, the device's own work included."""
        work()
        spent = []
        for _ in range(repeats):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            spent.append(time.perf_counter() - started)
        return median(spent)

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        wait(self.device)


Figures = Iterator[tuple[str, float]]


def parity(bench: Bench) -> Figures:
    """Largest differences between the device and the CPU: frozen features, and the gradients of a FedMVP step."""
    data = emoji(seed=1000, train=1, test=1)
    some = data.examples(torch.arange(len(data.targets))[:8])
    for precision in precisions(bench.device):
        there = Clip.load(weights_folder(), device=bench.device, precision=precision)
        here = Clip.load(weights_folder())
        pairs = [
            (getattr(one, kind)(some.images) for one in (there, here)) for kind in ("image_features", "patch_features")
        ]
        texts = (one.text_features(data.space.texts()[:20]) for one in (there, here))
        worst = max(float((ours.cpu() - theirs).abs().max()) for ours, theirs in (*pairs, texts))
        yield f"features, {precision}: largest difference from the CPU", worst
        found = [step_gradients(one, some) for one in (there, here)]
        largest = max(float(one.abs().max()) for one in found[1])
        worst = max(float((ours - theirs).abs().max()) for ours, theirs in zip(*found, strict=True))
        yield f"gradients, {precision}: largest difference from the CPU, relative", worst / largest


def step_gradients(clip: Clip, examples: Examples) -> list[torch.Tensor]:
    """The gradients of a FedMVP step, on the CPU."""
    method = methods.load("fedmvp")(clip, generator=stream(1, "method")).to(clip.device)
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    loss = loss_of(method, clip, examples)
    return [one.cpu() for one in gradients(loss, trained, clip.dtype) if one is not None]


def loss_of(method: Method, clip: Clip, examples: Examples) -> torch.Tensor:
    """A method's loss with the same draws every time, so that cached features are hit."""
    targets = examples.targets.to(clip.device)
    return method.loss(clip, examples.images, targets, examples.space, stream=stream(1, "loss"))


def precisions(device: torch.device) -> list[Precision]:
    """The precisions that a device computes in."""
    found: list[Precision] = []
    for precision in DTYPES:
        try:
            find_device(str(device), precision)
        except UserError:
            continue
        found.append(precision)
    return found


def matrix_rate(bench: Bench, dtype: torch.dtype) -> float:
    """Multiply-adds per second of a large product."""
    width = 8192 if bench.device.type != "cpu" else 256
    x = torch.randn(width, width, device=bench.device, dtype=dtype)
    return width**3 / bench.seconds(lambda: x @ x)


def steps(bench: Bench) -> Figures:
    """Training steps, FedMVP's against the time of its multiply-adds at the measured matrix rate, and their memory."""
    for precision in precisions(bench.device):
        rate = matrix_rate(bench, DTYPES[precision])
        yield f"matrix products, {precision} (TMAC/s)", rate / 1e12
        for name in ("fedmvp", "promptfl", "fedtpg"):
            clip = bench.clip(precision)
            examples = make_examples(bench.batch, 20, 5, SIZES[bench.size][1])
            method = methods.load(name)(clip, generator=stream(1, "method")).to(bench.device)
            with measured_memory(bench) as peak:
                seconds = bench.seconds(partial(take_step, method, clip, examples))
            yield f"{name}, {precision}, batch {bench.batch}: step (s)", seconds
            yield f"{name}, {precision}, batch {bench.batch}: peak memory (GB)", peak()
            macs = step_macs(clip, method, Job(name, "ours", "train", size=bench.size, batch=bench.batch))
            if macs:
                yield f"{name}, {precision}, batch {bench.batch}: against the floor", seconds * rate / macs


def take_step(method: Method, clip: Clip, examples: Examples) -> None:
    """Loss and gradients."""
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    gradients(loss_of(method, clip, examples), trained, clip.dtype)


class measured_memory:  # noqa: N801  (a context manager)
    """Gives a function for the peak memory since it was opened, of the GPU, or of the process on a CPU, in GB."""

    def __init__(self, bench: Bench) -> None:
        self.cuda = bench.device.type == "cuda"
        self.device = bench.device

    def __enter__(self) -> Callable[[], float]:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        return self._peak

    def __exit__(self, *_: object) -> None:
        return None

    def _peak(self) -> float:
        if self.cuda:
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def evaluation(bench: Bench) -> Figures:
    """FedMVP's evaluation of one batch over many candidate classes."""
    clip = bench.clip(precisions(bench.device)[-1])
    method = methods.load("fedmvp")(clip, generator=stream(1, "method")).to(bench.device)
    for classes in (100, 1000) if bench.size != "tiny" else (10,):
        examples = make_examples(bench.batch, classes, 5, SIZES[bench.size][1])
        work = partial(predict, method, clip, examples.images, examples.space, batch_size=bench.batch)
        yield f"evaluation, {classes} classes, batch {bench.batch} (s)", bench.seconds(work, repeats=1)


def decoding(bench: Bench) -> Figures:
    """JPEG files of 500 x 375 through decoding and the image tower."""
    clip, count = bench.clip(precisions(bench.device)[-1]), 20 * bench.batch
    method = methods.load("zeroshot")(clip, generator=stream(1, "method")).to(bench.device)
    space = make_examples(1, 10, 2, SIZES[bench.size][1]).space
    with jpegs(count) as source:
        list(classify_files(method, clip, source.take(range(bench.batch)), space))
        clip.cache = FeatureCache(memory_bytes=0)
        started = time.perf_counter()
        for _ in classify_files(method, clip, source, space):
            pass
        yield "decoding and tower (images/s)", count / (time.perf_counter() - started)


def schedule(bench: Bench, *, clients: int = 10, rounds: int = SCHEDULE) -> Figures:
    """FedTPG's schedule: rounds of clients with 20 classes and 8 images of each, on cached features.

    It ends early when the time is over; then the whole schedule is what its rounds took so far, extended.
    """
    clip = bench.clip(precisions(bench.device)[-1])
    method = methods.load("fedtpg")(clip, generator=stream(1, "method")).to(bench.device)
    examples = make_examples(160 if bench.size != "tiny" else 8, 20, 5, SIZES[bench.size][1])
    shared, personal = initial_state(method)
    settings = TrainSettings(rounds=rounds, batch_size=bench.batch, lr=0.003)
    clip.image_features(examples.images)
    started, done = time.perf_counter(), 0
    for number in range(1, rounds + 1):
        updates = [
            train_client(
                method,
                clip,
                Client(one, "client", examples),
                shared=shared,
                personal=personal,
                round_number=number,
                settings=settings,
            )
            for one in range(clients)
        ]
        shared = {**shared, **type(method).aggregate(shared, updates, [1.0] * clients, {})[0]}
        done = number
        if time.perf_counter() > bench.until:
            break
    spent = time.perf_counter() - started
    yield f"FedTPG's schedule, {clients} clients per round: rounds that ran", done
    yield f"FedTPG's schedule: {SCHEDULE} rounds at this rate (minutes)", spent / done * SCHEDULE / 60


def compiled(bench: Bench) -> Figures:
    """What `torch.compile` gains on the blocks of the image tower, and how long it takes."""
    for what, value in compiling(size=bench.size, batch=bench.batch, device=str(bench.device)).items():
        yield f"torch.compile, {what}", value


PARTS: Mapping[str, Callable[[Bench], Figures]] = {
    "parity": parity,
    "steps": steps,
    "evaluation": evaluation,
    "decoding": decoding,
    "schedule": schedule,
    "compile": compiled,
}


def gpu_tests(device: torch.device) -> str:
    """What pytest says of the tests marked `gpu`, in its last line."""
    if device.type != "cuda":
        return "tests marked gpu: none ran, they need CUDA"
    tests = Path(__file__).parents[1] / "tests"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-m",
        "gpu",
        "-p",
        "no:warnings",
        str(tests / "test_gpu.py"),
    ]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(ran.stdout, flush=True)
    return f"tests marked gpu: {ran.stdout.strip().splitlines()[-1]}"


def report(bench: Bench) -> Iterator[str]:
    """The lines of the result, as they are found; parts for which no time is left are named."""
    title = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else str(bench.device)
    yield f"{title}, torch {torch.__version__}, size {bench.size}"
    yield gpu_tests(bench.device)
    for name, part in PARTS.items():
        if time.perf_counter() > bench.until:
            yield f"{name}: not measured, the time is over"
            continue
        for what, value in part(bench):
            far = name == "parity" and "float32" in what and value > CLOSE
            yield f"{what}: {value:.3g}{f' FAILED, more than {CLOSE:g}' if far else ''}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="vit-b-16", choices=tuple(SIZES))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which no part begins")
    given = parser.parse_args(arguments)
    try:
        device = find_device(given.device)
    except UserError as error:
        parser.error(str(error))
    failed = False
    for line in report(Bench(device, given.size, given.batch, time.perf_counter() + given.seconds)):
        print(line, flush=True)
        failed |= "failed" in line.lower()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
