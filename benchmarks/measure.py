"""One measurement of a method in a mode: seconds of a training step or an evaluation, and peak memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from types import ModuleType
from typing import Any

import torch

from benchmarks.backbone import SIZES, make_clip, make_examples
from fedprompt import methods
from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Examples
from fedprompt.data.labels import Kind
from fedprompt.federated.evaluate import predict
from fedprompt.methods.base import Method
from fedprompt.methods.fedmvp import FedMVP
from fedprompt.seeding import stream


@dataclass(frozen=True)
class Job:
    """What to measure: a training step on one batch, or an evaluation of `batches` of them over one candidate list."""

    method: str
    mode: str
    task: str  # "train" or "evaluate"
    size: str = "vit-b-16"
    batch: int = 32
    batches: int = 2
    classes: int = 20
    attributes: int = 5
    repeats: int = 3
    kind: Kind = "single"
    activations_gb: float = 0.0


@dataclass(frozen=True)
class Result:
    """Median seconds, the seconds of every repeat, the process's peak memory, and its matrix-product rate.

    `transport` are the seconds of the median's step that went into optimal transport, 0 for methods without it.
    """

    seconds: float
    all_seconds: tuple[float, ...]
    peak_gb: float
    macs_per_second: float
    macs: float
    transport: float = 0.0


class Stopwatch:
    """Replaces a module's function and adds up the time that it takes."""

    def __init__(self, module: ModuleType, name: str) -> None:
        self.seconds, self.function = 0.0, getattr(module, name)
        setattr(module, name, self)

    def __call__(self, *problem: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return self.function(*problem, **options)
        finally:
            self.seconds += time.perf_counter() - started


def measure(job: Job) -> Result:
    """Run a job: one warm-up, which fills the feature cache if the mode has one, then the timed repeats."""
    clip = make_clip(job.size, job.mode, batch=job.batch)
    clip.activation_bytes = int(job.activations_gb * 2**30)
    pixels = SIZES[job.size][1]
    count = job.batch if job.task == "train" else job.batch * job.batches
    examples = make_examples(count, job.classes, job.attributes, pixels, kind=job.kind)
    kind = methods.load(job.method)
    method = kind(clip, **methods.class_options(kind, examples.space.names), generator=stream(1, "method"))
    module = sys.modules[kind.__module__]
    stopwatch = Stopwatch(module, "sinkhorn") if hasattr(module, "sinkhorn") else None
    work = _step(method, clip, examples) if job.task == "train" else _pass(method, clip, examples, job)
    work()
    rates, seconds, transport = [], [], []
    for _ in range(job.repeats):
        rates.append(matrix_rate(clip, job.batch))
        started, before = time.perf_counter(), stopwatch.seconds if stopwatch else 0.0
        work()
        seconds.append(time.perf_counter() - started)
        transport.append(stopwatch.seconds - before if stopwatch else 0.0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    macs = step_macs(clip, method, job) if job.task == "train" else 0.0
    return Result(median(seconds), tuple(seconds), peak, median(rates), macs, median(transport))


def _step(method: Method, clip: Clip, examples: Examples) -> Callable[[], object]:
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-4) if parameters else None

    def step() -> None:
        draws = stream(1, "loss")  # the same random draws in every repeat, so that cached features are hit
        loss = method.loss(clip, examples.images, examples.targets, examples.space, stream=draws)
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return step


def _pass(method: Method, clip: Clip, examples: Examples, job: Job) -> Callable[[], object]:
    if job.mode != "as released":
        return lambda: predict(method, clip, examples.images, examples.space, batch_size=job.batch)

    def rebuild() -> None:  # published code encodes the class texts anew for every batch
        for start in range(0, len(examples), job.batch):
            predict(
                method,
                clip,
                examples.images.take(range(start, start + job.batch)),
                examples.space,
                batch_size=job.batch,
            )

    return rebuild


def matrix_rate(clip: Clip, batch: int) -> float:
    """Multiply-adds per second of the encoder's own matrix products: [tokens, W] x [W, 4W] and back."""
    width, tokens = clip.image_width, batch * (clip.patches + 1)
    x, wide, narrow = torch.randn(tokens, width), torch.randn(width, 4 * width), torch.randn(4 * width, width)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        _ = (x @ wide) @ narrow
        seconds.append(time.perf_counter() - started)
    return 8 * tokens * width * width / median(seconds)


def step_macs(clip: Clip, method: Method, job: Job) -> float:
    """Multiply-adds that a FedMVP training step must do; 0 for a method without a PromptFormer (`promptformer`).

    The encoder once forward and once backward to its inputs (its weights are frozen), for all tokens in every block but
    the last, where only the class token is read; the PromptFormer forward and twice backward (inputs and weights; its
    queries' inputs are frozen, but their LoRA factors and norms are not).
    """
    if not isinstance(method, FedMVP):
        return 0.0
    width, depth = clip.image_width, len(clip.model.vision_model.encoder.layers)
    tokens, count = 1 + clip.patches + method.n_tokens, job.classes * job.attributes
    ratio = clip.model.config.vision_config.intermediate_size / width
    block = tokens * (4 + 2 * ratio) * width**2 + 2 * tokens**2 * width
    last = (tokens * 2 + 2 + 2 * ratio) * width**2 + 2 * tokens * width
    tower = (depth - 1) * block + last + width * clip.dim
    former = clip.patches * (2 + 12) * width**2 + 2 * clip.patches * count * width + clip.patches * 2 * 8 * width
    shared = count * (clip.dim * width + 2 * width**2)  # attributes are projected once per step, not per image
    return job.batch * (2 * tower + 3 * former) + 3 * shared
