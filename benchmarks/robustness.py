"""Broken clients, liars, secure sums, mutated messages: `python -m benchmarks.robustness` writes a page."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from benchmarks.mutations import fuzz
from fedprompt.build.catalog import AGGREGATES
from fedprompt.build.evaluation import questions
from fedprompt.build.experiment import Experiment, assemble, make_method
from fedprompt.build.serving import make_liars, make_server
from fedprompt.config import parse_recipe
from fedprompt.config_tables import ServerTable
from fedprompt.federated.evaluate import evaluate
from fedprompt.federated.rounds import federate, initial_state
from fedprompt.federated.secure.rehearsal import SecureSum, threshold_of
from fedprompt.ops.averaging import Update, weighted_mean
from fedprompt.runtimes.simulator import Simulator
from fedprompt.seeding import stream

PAGE = Path(__file__).parent.parent / "docs" / "robustness.md"
LIARS = 2
OPTIONS: Mapping[str, dict[str, object]] = {"krum": {"attackers": LIARS}, "multi_krum": {"attackers": LIARS}}
ATTACKS: Mapping[str, dict[str, object]] = {
    "sign_flip": {"scale": 10.0},
    "gaussian": {"sigma": 10.0},
    "scaled": {"factor": 100.0},
    "alie": {},
    "inner_product": {},
    "label_flip": {},
}
BROKEN = ("nan", "infinity", "shape", "name", "weight")
MUST_WITHSTAND = ("sign_flip", "gaussian")
PARTITIONS = {
    "iid": 'rule = "iid"\nclients = 10\nshots = 8',
    "one_tenth": 'rule = "class_chunks"\nclasses_per_client = 4\nshots = 8',
}
RECIPE = """
name = "robustness"
seed = 1
[data]
source = "pictograms"
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
    "fedmvp": ('name = "fedmvp"\nconsistency = 1.0\nsigma = 0.1', 'batch_size = 32\noptimizer = "adamw"\nlr = 0.001'),
}


@dataclass(frozen=True)
class Bench:
    """Trains one method on the demo world again and again, each time with another server and other liars."""

    method: str
    rounds: int

    @cache  # noqa: B019  (a bench lives as long as the process)
    def experiment(self, partition: str) -> Experiment:
        """The same pictures and clients for every run; what the backbone computes is remembered."""
        method, train = METHODS[self.method]
        text = RECIPE.format(partition=PARTITIONS[partition], method=method, train=train, rounds=self.rounds)
        return assemble(parse_recipe(text))

    @cache  # noqa: B019
    def accuracy(self, rule: str | None, attack: str = "", *, partition: str = "iid", clients: int = 10) -> float:
        """Accuracy on the base classes after the last round; `attack` may be "broken.KIND"."""
        experiment, started = self.experiment(partition), time.perf_counter()
        trial = experiment.trials[0]
        table = ServerTable.model_validate(
            ({"aggregate": {"name": rule, **OPTIONS.get(rule, {})}} if rule else {})
            | ({"attack": {"liars": LIARS, **_attack(attack)}} if attack else {})
        )
        method = make_method(trial, experiment.clip)
        shared, personal = initial_state(method)
        liars = make_liars(table, clients=10, seed=1)
        simulator = Simulator(method, experiment.clip, experiment.clients, trial.settings, liars=liars)
        server = make_server(table, trial.method, weighting="uniform")
        for record in federate(method, simulator, clients=range(clients), rounds=self.rounds, seed=1, server=server):
            shared = record.shared
        method.load_state_dict({**shared, **personal})
        base = next(question for question in questions(experiment.dataset) if question.split == "base")
        found = evaluate(method, experiment.clip, base.examples, name="base").figures["accuracy"]
        what = f"{rule or 'mean'}, {attack or 'no attack'}, {partition}, {clients} clients"
        print(f"{self.method}: {what}: {found:.4f} ({time.perf_counter() - started:.0f} s)", flush=True)
        return found


def _attack(words: str) -> dict[str, object]:
    name, _, kind = words.partition(".")
    return {"name": name, **({"kind": kind} if kind else ATTACKS[name])}


def broken_rows(bench: Bench) -> Iterator[str]:
    """A line a fault: accuracy with two broken clients of ten, without those two, and the difference in points."""
    yield "| two of ten clients send | accuracy | the two absent | cost in points | bar: at most 1 |"
    yield "|---|---|---|---|---|"
    absent = bench.accuracy(None, clients=10 - LIARS)
    for kind in BROKEN:
        found = bench.accuracy(None, f"broken.{kind}")
        cost = 100 * (absent - found)
        yield f"| {kind} | {found:.3f} | {absent:.3f} | {cost:+.1f} | {_met(cost <= 1)} |"


def attack_rows(bench: Bench) -> Iterator[str]:
    """A line a rule: accuracy without an attack and under each; share of the mean's clean accuracy in brackets."""
    yield "| rule | no attack | " + " | ".join(ATTACKS) + " | bar: 95% under sign_flip and gaussian |"
    yield "|---|---|" + "---|" * (len(ATTACKS) + 1)
    clean = bench.accuracy("mean")
    for rule in AGGREGATES:
        found = {attack: bench.accuracy(rule, attack) for attack in ATTACKS}
        kept = min(found[attack] for attack in MUST_WITHSTAND) / clean
        cells = " | ".join(f"{value:.3f} ({100 * value / clean:.0f}%)" for value in found.values())
        yield f"| {rule} | {bench.accuracy(rule):.3f} | {cells} | {_met(kept >= 0.95)} |"


def clean_rows(bench: Bench) -> Iterator[str]:
    """A line a rule without any attack: its cost against the mean, for clients alike and of disjoint classes."""
    yield "| rule | clients alike | points against the mean | clients of disjoint classes | points against the mean |"
    yield "|---|---|---|---|---|"
    for rule in AGGREGATES:
        cells = []
        for partition in PARTITIONS:
            found, mean = (bench.accuracy(word, partition=partition) for word in (rule, "mean"))
            cells.append(f"{found:.3f} | {100 * (found - mean):+.1f}")
        yield f"| {rule} | {' | '.join(cells)} |"


def secure_rows() -> Iterator[str]:
    """A line a size: error of the secure mean with as many dropouts as allowed, CPU seconds and bytes a client."""
    yield "| clients | numbers | dropped out | relative error | CPU seconds a client | bytes sent over plain |"
    yield "|---|---|---|---|---|---|"
    for clients, numbers in ((3, 10_000), (5, 10_000), (10, 10_000), (10, 1_000_000)):
        shared = {"w": torch.zeros(numbers)}
        spare = clients - threshold_of(2 / 3, clients)
        sent = [
            Update(client, 1, {"w": 1e-3 * torch.randn(numbers, generator=stream(1, client))}, {}, 0.5, 0.0)
            for client in range(clients)
        ]
        secure = SecureSum(
            present=lambda step, client, left=clients - spare: step in ("keys", "shares") or client < left
        )
        started = time.process_time()
        (cohort,), notes = secure(1, shared, sent)
        seconds = (time.process_time() - started) / clients
        wanted = weighted_mean(shared, sent[: clients - spare], [1 / (clients - spare)] * (clients - spare))["w"]
        error = float((cohort.shared["w"] - wanted).norm() / wanted.norm())
        ratio = notes["bytes_up"]["0"] / (4 * numbers)
        yield f"| {clients} | {numbers:,} | {spare} | {error:.1e} | {seconds:.2f} | {ratio:.2f} |"


def fuzz_rows(count: int) -> Iterator[str]:
    """How often mutated messages were refused, by reason."""
    reasons, memory = fuzz(count)
    yield f"{count:,} mutated messages, no uncaught exception, peak memory {memory:.2f} times an honest round's.\n"
    yield "| reason given | messages |\n|---|---|"
    yield from (f"| {reason} | {number:,} |" for reason, number in reasons.most_common())


def _met(bar: bool) -> str:  # noqa: FBT001
    return "met" if bar else "not met"


def page(bench: Bench, *, messages: int) -> str:
    """The text of docs/robustness.md."""
    parts = [
        "# Robustness, measured\n",
        f"Made by `python -m benchmarks.robustness --method {bench.method} --rounds {bench.rounds}`: {bench.method} on "
        f"the embedded world, ten clients, {bench.rounds} rounds, one seed, top-1 accuracy on the base classes. What "
        "the parts are for, and what they do not give, is in [privacy.md](privacy.md).\n",
        "## Broken clients\n",
        *broken_rows(bench),
        f"\n## {LIARS} liars of ten\n",
        "Accuracy and, in brackets, the share of the plain mean's accuracy without an attack. Only the first two "
        "columns of attacks have a bar; the others are reported as they are.\n",
        *attack_rows(bench),
        "\n## What a rule costs without an attack\n",
        "The bar is 1 point where clients are alike and 3 where each has classes of its own.\n",
        *clean_rows(bench),
        "\n## Secure sums\n",
        *secure_rows(),
        "\n## Mutated messages\n",
        *fuzz_rows(messages),
    ]
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=sorted(METHODS), default="promptfl")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    given.page.write_text(page(Bench(given.method, given.rounds), messages=given.messages), encoding="utf-8")
    print(f"Written: {given.page}")


if __name__ == "__main__":
    main()
