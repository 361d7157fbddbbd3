"""Benchmarks of ten thousand clients with two images each, and of importing the package."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import psutil
import torch

from fedprompt import methods
from fedprompt.config.recipe import find_recipe, load_recipe
from fedprompt.experiments.experiment import assemble
from fedprompt.experiments.plan import resolve
from fedprompt.federated.rounds import federate
from fedprompt.methods.base import Method
from fedprompt.runtimes.simulator import Simulator
from fedprompt.seeding import stream


def scale(*, clients: int = 10_000) -> dict[str, float]:
    """Seconds to assemble the run, overhead per client in milliseconds, memory after the first and last round."""
    recipe = load_recipe(Path(find_recipe("scale")), [f"partition.clients={clients}"])
    started = time.perf_counter()
    experiment = assemble(resolve(recipe))
    built = time.perf_counter() - started
    trial, clip, process = experiment.trials[0], experiment.clip, psutil.Process()
    method = methods.load(trial.method)(clip, generator=stream(1, "method"))
    simulator = Simulator(method, clip, experiment.clients, trial.settings)
    memory, overhead = [], []
    numbers = range(len(experiment.clients))
    for record in federate(method, simulator, clients=numbers, rounds=5, fraction=trial.fraction, seed=1):
        memory.append(process.memory_info().rss / 2**30)
        compute = bare_seconds(method, simulator, record.clients)
        started = time.perf_counter()
        simulator.train(record.number, record.shared, record.clients)
        overhead.append((time.perf_counter() - started - compute) / len(record.clients) * 1000)
    return {
        "assembly with data and partition (s)": built,
        "overhead a client (ms)": median(overhead),
        "memory after round 1 (GB)": memory[0],
        "memory after round 5 (GB)": memory[-1],
    }


def bare_seconds(method: Method, simulator: Simulator, clients: tuple[int, ...]) -> float:
    """Seconds of loss, backward and one optimiser step alone, on the images of these clients."""
    total = 0.0
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)
    for number in clients:
        data = simulator.clients[number].train
        started = time.perf_counter()
        method.loss(simulator.clip, data.images, data.targets, data.space, stream=stream(1, "x")).backward()
        optimizer.step()
        optimizer.zero_grad()
        total += time.perf_counter() - started
    return total


def import_seconds() -> dict[str, float]:
    """Seconds of importing fedprompt after torch, in new processes."""

    def seconds(statement: str) -> float:
        program = f"import time; import torch; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
        return median(float(subprocess.check_output([sys.executable, "-c", program])) for _ in range(3))

    return {"import fedprompt beyond torch (s)": seconds("import fedprompt")}
