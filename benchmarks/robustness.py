"""Faulty and malicious clients against every rule: `python -m benchmarks.robustness` measures and writes a page."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, stdev

from fedprompt.config.recipe import parse_recipe
from fedprompt.config.recipe_tables import ServerTable
from fedprompt.config.registry import AGGREGATION_RULES
from fedprompt.experiments.experiment import Experiment, assemble
from fedprompt.experiments.plan import resolve
from fedprompt.experiments.server import set_up
from fedprompt.experiments.test_sets import make_test_sets
from fedprompt.federated.evaluate import evaluate
from fedprompt.federated.rounds import federate, initial_state
from fedprompt.methods import load, method_summary
from fedprompt.records.atomic_files import append_line
from fedprompt.records.run_record import trial_label
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
seed = {seed}
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


ROUNDS = {"promptfl": 20, "fedmvp": 5}  # of the methods on the page
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Scope:
    """The rules, attacks, partitions and faulty updates that are measured with a method."""

    rules: tuple[str, ...] = AGGREGATION_RULES.names()
    attacks: tuple[str, ...] = tuple(ATTACKS)
    partitions: tuple[str, ...] = tuple(PARTITIONS)
    faults: tuple[str, ...] = BROKEN


ALL = Scope()
SCOPES: Mapping[str, Scope] = {
    # A case takes ten times as long as with PromptFL. What is refused is refused by the same screening.
    "fedmvp": Scope(
        rules=("fedavg", "median", "trimmed_mean", "multi_krum"),
        attacks=("sign_flip", "gaussian", "scaled"),
        partitions=("iid",),
        faults=(),
    )
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
    """The result: accuracy on the base classes after the last round, and updates refused in all rounds.

    Of several seeds: the mean of accuracies, their standard deviation, and the updates refused in all runs.
    """

    accuracy: float
    refused: int | None = None
    runs: int = 1
    deviation: float = 0.0

    def __str__(self) -> str:
        return f"{self.accuracy:.3f}" + (f" ± {self.deviation:.3f}" if self.runs > 1 else "")


Results = Mapping[Case, Found]


def cases(scope: Scope = ALL) -> Iterator[Case]:
    """The cases of a page and, with all rules and attacks, of the acceptance criteria."""
    if scope.faults:
        yield Case(clients=CLIENTS - ADVERSARIES)
    yield from (Case(attack=fault) for fault in scope.faults)
    yield from (Case(rule, partition=partition) for partition in scope.partitions for rule in scope.rules)
    yield from (Case(rule, attack) for rule in scope.rules for attack in scope.attacks)


def average(found: Sequence[Results]) -> Results:
    """The cases that every seed has: means over seeds. No case, if there are no results."""
    known = set(found[0]).intersection(*found[1:]) if found else ()
    return {case: _average([one[case] for one in found]) for case in known}


def _average(found: Sequence[Found]) -> Found:
    accuracies = [one.accuracy for one in found]
    refused = [one.refused for one in found if one.refused is not None]
    total = sum(refused) if len(refused) == len(found) else None
    return Found(fmean(accuracies), total, len(found), stdev(accuracies) if len(found) > 1 else 0.0)


@dataclass(frozen=True)
class Bench:
    """Trains one method on the demo data set with any aggregation rule and attack.

    The seed draws images, partition, initial state, batches and the attack.
    """

    method: str
    rounds: int
    seed: int = 1

    @property
    def scope(self) -> Scope:
        """What is measured with the method."""
        return SCOPES.get(self.method, ALL)

    @property
    def title(self) -> str:
        """The method as tables spell it."""
        return trial_label(self.method, self.method, method_summary(load(self.method)))

    @cache  # noqa: B019  (a bench lives as long as the process)
    def experiment(self, partition: str) -> Experiment:
        """The experiment of a partition, the same for every case; frozen features are cached."""
        method, train = METHODS[self.method]
        text = RECIPE.format(
            partition=PARTITIONS[partition], method=method, train=train, rounds=self.rounds, seed=self.seed
        )
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
        adversaries = setup.adversaries(clients=CLIENTS, seed=self.seed)
        simulator = Simulator(method, experiment.clip, experiment.clients, trial.settings, adversaries=adversaries)
        refused = 0
        clients, rounds = range(case.clients), self.rounds
        for record in federate(method, simulator, clients=clients, rounds=rounds, seed=self.seed, server=setup.server):
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
            if {key: line.pop(key) for key in asdict(self)} == asdict(self):
                accuracy, refused = line.pop("accuracy"), line.pop("refused", None)
                found[Case(**line)] = Found(accuracy, refused)
        return found

    def complete(self, path: Path) -> Results:
        """Measure every case that the file lacks, and append each result at once."""
        known = dict(self.read(path))
        for case in cases(self.scope):
            if case not in known:
                started = time.perf_counter()
                found = known[case] = self.measure(case)
                figures = {"accuracy": found.accuracy, "refused": found.refused}
                append_line(path, json.dumps({**asdict(self), **asdict(case), **figures}).encode() + b"\n")
                seconds = time.perf_counter() - started
                print(f"{self.method}, seed {self.seed}, {case}: {found} ({seconds:.0f} s)", flush=True)
        return known


def _attack(words: str) -> dict[str, object]:
    name, _, kind = words.partition(".")
    return {"name": name, **({"kind": kind} if kind else ATTACKS[name])}


def broken_rows(found: Results) -> Iterator[str]:
    """A line per fault: accuracy with two faulty clients of ten, and the difference to only the other eight."""
    yield "| two of ten clients send | accuracy | the two absent | points | refused, with the reason |"
    yield "|---|---|---|---|---|"
    absent = found[Case(clients=CLIENTS - ADVERSARIES)]
    for fault in BROKEN:
        one = found[Case(attack=fault)]
        kind = fault.partition(".")[2]
        points = 100 * (one.accuracy - absent.accuracy)
        yield f"| {kind} | {one} | {absent} | {points:+.1f} | {one.refused} |"


def attack_rows(found: Results, scope: Scope) -> Iterator[str]:
    """A line per rule: accuracy without an attack and under each; share of the mean's clean accuracy in brackets."""
    yield "| rule | no attack | " + " | ".join(scope.attacks) + " |"
    yield "|---|---|" + "---|" * len(scope.attacks)
    clean = found[Case()].accuracy
    for rule in scope.rules:
        values = (found[Case(rule, attack)] for attack in scope.attacks)
        cells = " | ".join(f"{value} ({100 * value.accuracy / clean:.0f}%)" for value in values)
        yield f"| {rule} | {found[Case(rule)]} | {cells} |"


def clean_rows(found: Results, scope: Scope) -> Iterator[str]:
    """A line per rule without an attack: its cost against the mean, for IID clients and for disjoint classes."""
    yield "| rule | clients alike | points against the mean | clients of disjoint classes | points against the mean |"
    yield "|---|---|---|---|---|"
    for rule in scope.rules:
        pairs = [(found[Case(rule, partition=one)], found[Case(partition=one)]) for one in scope.partitions]
        cells = (f"{own} | {100 * (own.accuracy - mean.accuracy):+.1f}" for own, mean in pairs)
        yield f"| {rule} | {' | '.join(cells)} |"


def section(bench: Bench, found: Results) -> Iterator[str]:
    """The tables of a method."""
    name = bench.title
    if bench.scope.faults:
        yield from (f"## {name}: faulty clients", "", *broken_rows(found), "")
    yield from (f"## {name}: {ADVERSARIES} adversaries of ten", "")
    yield from ("In brackets the share of the plain mean's accuracy without an attack.", "")
    yield from (*attack_rows(found, bench.scope), "")
    if bench.scope.partitions == tuple(PARTITIONS):
        yield from (f"## {name}: what a rule costs without an attack", "", *clean_rows(found, bench.scope), "")


def page(found: Mapping[Bench, Results], seeds: Sequence[int]) -> str:
    """The text of docs/robustness.md."""
    methods = " and ".join(f"{bench.rounds} rounds of {bench.title}" for bench in found)
    head = (
        "# Robustness, measured\n\n"
        f"Made by `python -m benchmarks.robustness`: the embedded images, ten clients, {methods}.\n"
        "Top-1 accuracy on the base classes, mean and standard deviation over the seeds "
        f"{', '.join(map(str, seeds))}.\n"
        "What rules and attacks are for is in [privacy.md](privacy.md), and which criteria they must meet in\n"
        "[acceptance.md](acceptance.md).\n"
    )
    return "\n".join([head, *(line for bench, results in found.items() for line in section(bench, results))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=list(ROUNDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--results", type=Path, default=RESULTS, help="what is there already is not measured again")
    parser.add_argument("--page", type=Path, default=DOCS / "robustness.md")
    given = parser.parse_args()
    found = {}
    for method in given.methods:
        benches = [Bench(method, ROUNDS[method], seed) for seed in given.seeds]
        found[benches[0]] = average([bench.complete(given.results) for bench in benches])
    given.page.write_text(page(found, given.seeds), encoding="utf-8")
    print(f"Written: {given.page}")


if __name__ == "__main__":
    main()
