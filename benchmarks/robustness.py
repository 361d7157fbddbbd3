"""Faulty and malicious clients against every rule: `python -m benchmarks.robustness` measures and writes a page."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from fedprompt.config.recipe import parse_recipe
from fedprompt.config.recipe_tables import ServerTable
from fedprompt.config.registry import AGGREGATION_RULES
from fedprompt.experiments.experiment import Experiment, assemble
from fedprompt.experiments.plan import resolve
from fedprompt.experiments.server import set_up
from fedprompt.experiments.test_sets import make_test_sets
from fedprompt.federated.evaluate import evaluate
from fedprompt.federated.rounds import federate, initial_state
from fedprompt.records.run_folder import append_line
from fedprompt.runtimes.simulator import Simulator

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = DOCS / "robustness.jsonl"  # a line per case, appended when it is measured; the page is made from it
DIGITS = 4  # of an accuracy, measured on some hundred images
CLIENTS, ADVERSARIES = 10, 2
OPTIONS: Mapping[str, dict[str, object]] = {
    "krum": {"adversaries": ADVERSARIES},
    "multi_krum": {"adversaries": ADVERSARIES},
}
ATTACKS: Mapping[str, dict[str, object]] = {
    "sign_flip": {"scale": 10.0},
    "gaussian": {"sigma": 10.0},
    "scaled": {"factor": 100.0},
    "alie": {},
    "inner_product": {},
    "label_flip": {},
}
BROKEN = tuple(f"broken.{kind}" for kind in ("nan", "infinity", "shape", "name", "weight"))
PARTITIONS = {
    "iid": 'rule = "iid"\nclients = 10\nshots = 8',
    "one_tenth": 'rule = "class_chunks"\nclasses_per_client = 6\nshots = 8',
}
RECIPE = """
name = "robustness"
seed = 1
[data]
source = "emoji"
[partition]
{partition}
[evaluate]
local = false
[method]
{method}
[train]
rounds = {rounds}
{train}
"""
METHODS = {
    "promptfl": ('name = "promptfl"', 'batch_size = 32\noptimizer = "adamw"\nlr = 0.03'),
    "fedclip": ('name = "fedclip"', 'batch_size = 32\noptimizer = "adamw"\nlr = 0.003'),
    "fedmvp": ('name = "fedmvp"\nconsistency = 1.0\nsigma = 0.1', 'batch_size = 32\noptimizer = "adamw"\nlr = 0.001'),
}


@dataclass(frozen=True)
class Case:
    """One training run: the aggregation rule, the attack, the partition and the number of clients."""

    rule: str = "fedavg"
    attack: str = ""
    partition: str = "iid"
    clients: int = CLIENTS

    def __str__(self) -> str:
        return f"{self.rule}, {self.attack or 'no attack'}, {self.partition}, {self.clients} clients"


@dataclass(frozen=True)
class Found:
    """The result: accuracy on the base classes after the last round, and updates refused in all rounds."""

    accuracy: float
    refused: int | None = None


Results = Mapping[Case, Found]


def cases() -> Iterator[Case]:
    """All cases of the page and of the acceptance criteria."""
    yield Case(clients=CLIENTS - ADVERSARIES)
    yield from (Case(attack=fault) for fault in BROKEN)
    yield from (Case(rule, partition=partition) for partition in PARTITIONS for rule in AGGREGATION_RULES.names())
    yield from (Case(rule, attack) for rule in AGGREGATION_RULES.names() for attack in ATTACKS)


@dataclass(frozen=True)
class Bench:
    """Trains one method on the demo data set with any aggregation rule and attack."""

    method: str
    rounds: int

    @cache  # noqa: B019  (a bench lives as long as the process)
    def experiment(self, partition: str) -> Experiment:
        """The experiment of a partition, the same for every case; frozen features are cached."""
        method, train = METHODS[self.method]
        text = RECIPE.format(partition=PARTITIONS[partition], method=method, train=train, rounds=self.rounds)
        return assemble(resolve(parse_recipe(text)))

    def measure(self, case: Case) -> Found:
        """Train and score."""
        experiment = self.experiment(case.partition)
        trial = experiment.trials[0]
        table = ServerTable.model_validate(
            # The rule alone is measured: most attacks here would not get past the default limit of norms.
            {"norm_limit": 0, "aggregate": {"name": case.rule, **OPTIONS.get(case.rule, {})}}
            | ({"attack": {"adversaries": ADVERSARIES, **_attack(case.attack)}} if case.attack else {})
        )
        method = trial.make_method(experiment.clip)
        shared, personal = initial_state(method)
        setup = set_up(table, type(method), place=str(case))
        adversaries = setup.adversaries(clients=CLIENTS, seed=1)
        simulator = Simulator(method, experiment.clip, experiment.clients, trial.settings, adversaries=adversaries)
        refused = 0
        clients = range(case.clients)
        for record in federate(method, simulator, clients=clients, rounds=self.rounds, seed=1, server=setup.server):
            shared = record.shared
            refused += len(record.refused)
        method.load_state_dict({**shared, **personal})
        base = next(test_set for test_set in make_test_sets(experiment.dataset) if test_set.split == "base")
        score = evaluate(method, experiment.clip, base.examples, name="base")
        return Found(round(score.figures["accuracy"], DIGITS), refused)

    def read(self, path: Path = RESULTS) -> Results:
        """The results of this bench in a file; none if there is no file."""
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        found = {}
        for line in map(json.loads, lines):
            if (line.pop("method"), line.pop("rounds")) == (self.method, self.rounds):
                accuracy, refused = line.pop("accuracy"), line.pop("refused", None)
                found[Case(**line)] = Found(accuracy, refused)
        return found

    def complete(self, path: Path) -> Results:
        """Measure every case that the file lacks, and append each result at once."""
        known = dict(self.read(path))
        for case in cases():
            if case not in known:
                started = time.perf_counter()
                known[case] = self.measure(case)
                line = {**asdict(self), **asdict(case), **asdict(known[case])}
                append_line(path, json.dumps(line).encode() + b"\n")
                print(f"{case}: {known[case].accuracy:.4f} ({time.perf_counter() - started:.0f} s)", flush=True)
        return known


def _attack(words: str) -> dict[str, object]:
    name, _, kind = words.partition(".")
    return {"name": name, **({"kind": kind} if kind else ATTACKS[name])}


def broken_rows(found: Results) -> Iterator[str]:
    """A line per fault: accuracy with two faulty clients of ten, and the difference to only the other eight."""
    yield "| two of ten clients send | accuracy | the two absent | points | refused, with the reason |"
    yield "|---|---|---|---|---|"
    absent = found[Case(clients=CLIENTS - ADVERSARIES)].accuracy
    for fault in BROKEN:
        one = found[Case(attack=fault)]
        kind = fault.partition(".")[2]
        points = 100 * (one.accuracy - absent)
        yield f"| {kind} | {one.accuracy:.3f} | {absent:.3f} | {points:+.1f} | {one.refused} |"


def attack_rows(found: Results) -> Iterator[str]:
    """A line per rule: accuracy without an attack and under each; share of the mean's clean accuracy in brackets."""
    yield "| rule | no attack | " + " | ".join(ATTACKS) + " |"
    yield "|---|---|" + "---|" * len(ATTACKS)
    clean = found[Case()].accuracy
    for rule in AGGREGATION_RULES.names():
        values = (found[Case(rule, attack)].accuracy for attack in ATTACKS)
        cells = " | ".join(f"{value:.3f} ({100 * value / clean:.0f}%)" for value in values)
        yield f"| {rule} | {found[Case(rule)].accuracy:.3f} | {cells} |"


def clean_rows(found: Results) -> Iterator[str]:
    """A line per rule without an attack: its cost against the mean, for IID clients and for disjoint classes."""
    yield "| rule | clients alike | points against the mean | clients of disjoint classes | points against the mean |"
    yield "|---|---|---|---|---|"
    for rule in AGGREGATION_RULES.names():
        pairs = [(found[Case(rule, partition=one)], found[Case(partition=one)]) for one in PARTITIONS]
        cells = (f"{own.accuracy:.3f} | {100 * (own.accuracy - mean.accuracy):+.1f}" for own, mean in pairs)
        yield f"| {rule} | {' | '.join(cells)} |"


def page(bench: Bench, found: Results) -> str:
    """The text of docs/robustness.md."""
    parts = [
        "# Robustness, measured\n",
        f"Made by `python -m benchmarks.robustness --method {bench.method} --rounds {bench.rounds}`:\n"
        f"{bench.method} on the embedded images, ten clients, {bench.rounds} rounds, one seed, top-1 accuracy on\n"
        "the base classes. What rules and attacks are for is in [privacy.md](privacy.md), and which criteria they\n"
        "must meet in [acceptance.md](acceptance.md).\n",
        "## Faulty clients\n",
        *broken_rows(found),
        f"\n## {ADVERSARIES} adversaries of ten\n",
        "In brackets the share of the plain mean's accuracy without an attack.\n",
        *attack_rows(found),
        "\n## What a rule costs without an attack\n",
        *clean_rows(found),
    ]
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=sorted(METHODS), default="promptfl")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--results", type=Path, default=RESULTS, help="what is there already is not measured again")
    parser.add_argument("--page", type=Path, default=DOCS / "robustness.md")
    given = parser.parse_args()
    bench = Bench(given.method, given.rounds)
    given.page.write_text(page(bench, bench.complete(given.results)), encoding="utf-8")
    print(f"Written: {given.page}")


if __name__ == "__main__":
    main()
