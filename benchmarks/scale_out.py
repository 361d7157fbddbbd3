"""Figures of training on Ray: `python -m benchmarks.scale_out` on a quiet machine, with `--quick` a trial of it.

Two actors against one on FedMVP's demo and on PromptFL with 1,000 clients, the overhead per client with 10,000 clients,
the memory of an actor and the start of the runtime are measured. The efficiency of up to 64 actors is modelled: the
queues of the runtime are played with the measured seconds of clients and of the driver.
"""

from __future__ import annotations

import argparse
import heapq
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import psutil

from fedprompt.config.recipe import find_recipe, load_recipe
from fedprompt.experiments.context import NO_CALLBACKS
from fedprompt.experiments.experiment import assemble
from fedprompt.experiments.given import NOTHING
from fedprompt.experiments.on_ray import sources_of, start_pool
from fedprompt.experiments.plan import resolve
from fedprompt.federated.rounds import federate
from fedprompt.runtimes.ray.cluster import connected
from fedprompt.runtimes.ray.queues import Costs, Homes, Queues
from fedprompt.runtimes.ray.transport import OnRay
from fedprompt.runtimes.simulator import Simulator

ACTORS = (1, 2, 4, 8, 16, 32, 64)
LIBRARIES = "import psutil, fedprompt.runtimes.ray.actor as actor; print(psutil.Process().memory_full_info().uss)"


@dataclass(frozen=True)
class Workload:
    """A recipe with settings whose main method is trained; `rounds` of it, of which the first opens images."""

    name: str
    recipe: str
    settings: tuple[str, ...]
    rounds: int


@dataclass(frozen=True)
class Measured:
    """Seconds to start the runtime, of rounds, and of the clients in each; bytes of the actors and of the backbone.

    An actor's bytes are those that no other process shares (USS).
    """

    start: float
    rounds: tuple[float, ...]
    clients: tuple[tuple[float, ...], ...]
    memory: tuple[int, ...]
    backbone: int

    @property
    def warm(self) -> float:
        """The median seconds of a round after the first."""
        return median(self.rounds[1:])

    def overhead(self, actors: int) -> float:
        """The median seconds of a round after the first that no client trained in, if the actors share them evenly."""
        return median(whole - sum(own) / actors for whole, own in zip(self.rounds[1:], self.clients[1:], strict=True))


def workloads(*, quick: bool) -> Mapping[str, Workload]:
    """What is measured, by its name."""
    few = ("data.train=4", "data.test=1") if quick else ()
    thousand, ten_thousand = (100, 500) if quick else (1_000, 10_000)
    pairs = ("data.train=12",)  # 2,160 images: two or three per client
    found = (
        Workload("FedMVP's demo", "demo", (*few, "evaluate.local=false"), 2 if quick else 6),
        Workload(
            f"PromptFL, {thousand:,} clients",
            "scale",
            (f"partition.clients={thousand}", "train.fraction=1.0", *(few or pairs)),
            2 if quick else 4,
        ),
        Workload(
            f"{ten_thousand:,} clients, 1% of them in a round",
            "scale",
            (f"partition.clients={ten_thousand}", *(("data.train=13",) if quick else ())),
            3 if quick else 6,
        ),
    )
    return {one.name: one for one in found}


def measure(work: Workload, *, actors: int, cpus: float = 1.0) -> Measured:
    """Train the main method of a workload on so many actors."""
    runtime = ("runtime.name=ray", f"runtime.actors={actors}", f"runtime.cpus={cpus}")
    plan = resolve(load_recipe(Path(find_recipe(work.recipe)), [*work.settings, *runtime]))
    started = time.perf_counter()
    with connected() as nodes:
        connecting = time.perf_counter() - started
        experiment = assemble(plan)
        started = time.perf_counter()
        pool = start_pool(experiment, plan.recipe.runtime, NOTHING, nodes, NO_CALLBACKS)
        start = connecting + time.perf_counter() - started
        trial, clip = experiment.trials[0], experiment.clip
        method, clients = trial.make_method(clip), experiment.trainers(trial)
        alone = Simulator(method, clip, clients, trial.settings)
        transport = OnRay(pool, trial, sources_of(experiment.dataset), alone)
        numbers, share = range(len(clients)), trial.fraction
        done = list(federate(method, transport, clients=numbers, rounds=work.rounds, fraction=share, seed=1))
        memory = tuple(psutil.Process(member.process).memory_full_info().uss for member in pool.members.values())
        pool.close()
    return Measured(
        start,
        tuple(record.seconds for record in done),
        tuple(tuple(update.seconds for update in record.updates) for record in done),
        memory,
        sum(weight.nbytes for weight in clip.model.state_dict().values()),
    )


def libraries() -> int:
    """Bytes of a process that has imported what an actor does, and has opened nothing."""
    return int(subprocess.run([sys.executable, "-c", LIBRARIES], check=True, stdout=subprocess.PIPE).stdout)


def play(clients: Sequence[float], *, actors: int, driver: float, fixed: float) -> float:
    """The modelled seconds of a round: the queues with clients of these seconds, after a round that filled the caches.

    The driver takes `driver` seconds for the answer of each client, one after another, and `fixed` for the round.
    """
    homes, costs = Homes(), Costs()
    for item, seconds in enumerate(clients):
        costs.add(item, seconds, warm=True)
        costs.add(item, seconds, warm=False)
    for _ in range(2):
        queues = Queues(range(len(clients)), range(actors), homes, costs)
        now, free = 0.0, dict.fromkeys(range(actors), 0.0)
        running: list[tuple[float, int, list[int]]] = []
        while queues or running:
            for actor in range(actors):
                while taken := queues.take(actor):
                    free[actor] = max(free[actor], now) + sum(clients[item] for item in taken)
                    heapq.heappush(running, (free[actor], actor, taken))
            ended, actor, items = heapq.heappop(running)
            now = max(now, ended) + driver * len(items)
            for item in items:
                queues.finish(actor, item, clients[item])
    return now + fixed


def figures(*, quick: bool, cpus: float) -> Iterator[str]:
    """The page, line by line."""
    empty = libraries()
    yield "| | seconds of a round, 1 actor | 2 actors | times as fast | overhead per client (ms) | per round (s) |"
    yield "|---|---|---|---|---|---|"
    found: dict[str, Measured] = {}
    for name, work in workloads(quick=quick).items():
        one, two = (measure(work, actors=actors, cpus=cpus) for actors in (1, 2))
        found[name] = one
        count = fmean(map(len, two.clients[1:]))
        yield (
            f"| {name} | {one.warm:.2f} | {two.warm:.2f} | {one.warm / two.warm:.2f} | "
            f"{1000 * one.overhead(1) / count:.1f} | {two.overhead(2):.2f} |"
        )
        memory = " and ".join(f"{size / 2**20:,.0f}" for size in two.memory)
        parts = f"libraries {empty / 2**20:,.0f} MiB, backbone {two.backbone / 2**20:,.0f} MiB"
        print(f"{name}: start {two.start:.1f} s; actors {memory} MiB, of which {parts}")
    yield ""
    yield "Efficiency of a round, modelled from one actor's measured seconds:"
    yield ""
    yield f"| actors | {' | '.join(found)} |"
    yield f"|---|{'---|' * len(found)}"
    for actors in ACTORS:
        cells = []
        for one in found.values():
            clients = one.clients[-1]
            driver = max(0.0, one.overhead(1)) / len(clients)
            alone, many = (play(clients, actors=number, driver=driver, fixed=0.0) for number in (1, actors))
            cells.append(f"{100 * alone / (actors * many):.0f}%")
        yield f"| {actors} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few clients and rounds, to try it")
    parser.add_argument("--cpus", type=float, default=1.0, help="cores per actor; below 1, more actors than cores")
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, {given.cpus:g} per actor")
    for line in figures(quick=given.quick, cpus=given.cpus):
        print(line, flush=True)


if __name__ == "__main__":
    main()
