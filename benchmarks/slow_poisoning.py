"""Slow poisoning: what a site can do in 100 rounds that stays just inside the norm bound in every one of them.

`python -m benchmarks.slow_poisoning` measures what its results lack, and writes the section into docs/robustness.md.
One of ten clients trains on flipped labels and sends the longest change that is accepted.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median

import torch

from benchmarks.robustness import CLIENTS, DIGITS, DOCS, OPTIONS, Bench
from fedprompt.config.recipe_tables import NORM_LIMIT, ServerTable
from fedprompt.config.registry import AGGREGATION_RULES
from fedprompt.experiments.experiment import Experiment
from fedprompt.experiments.server import set_up
from fedprompt.experiments.test_sets import make_test_sets
from fedprompt.federated.attacks import Adversaries, Attack, AttackContext, label_flip
from fedprompt.federated.evaluate import evaluate
from fedprompt.federated.rounds import federate, initial_state
from fedprompt.federated.screening import change_norm
from fedprompt.records.atomic_files import append_line
from fedprompt.runtimes.simulator import Simulator
from fedprompt.updates import State, Update

RESULTS = DOCS / "slow_poisoning.jsonl"  # a line per case, appended when it is measured
ROUNDS = 100
LIMITS = (0.0, 3.0, NORM_LIMIT)  # of norms, in usual lengths; 0 stands for no attack
INSIDE = 0.99  # of the limit
HEADING = "## Slow poisoning"
INTRODUCTION = """\
Made by `python -m benchmarks.slow_poisoning`: fedclip on the embedded images, ten clients, one of which is an
adversary in all {rounds} rounds. It trains on flipped labels, knows all honest updates, and sends its change as long as
{inside:g} of the limit of norms allows; columns give that limit in usual lengths, and {limit:g} is the default.
Top-1 accuracy on the base classes; in brackets updates refused and rounds rolled back, where there were any."""


@dataclass(frozen=True)
class Case:
    """A rule, and the length of the adversary's changes in usual lengths; 0 for an honest client."""

    rule: str
    limit: float


@dataclass(frozen=True)
class Found:
    """Accuracy on the base classes after the last round, updates refused, and rounds rolled back."""

    accuracy: float
    refused: int
    rolled_back: int


def inside(limit: float) -> Attack:
    """Training on flipped labels, whose change is sent as long as `limit` medians of the honest changes allow."""

    def poison(context: AttackContext, own: Update, draws: torch.Generator) -> Update:
        before = context.shared
        usual = median(change_norm(update, before) for update in context.honest)
        scale = INSIDE * limit * usual / max(change_norm(own, before), 1e-30)
        return replace(
            own, shared={name: before[name] + scale * (one - before[name]) for name, one in own.shared.items()}
        )

    return Attack(poison_data=label_flip().poison_data, poison_update=poison)


def measure(experiment: Experiment, case: Case, rounds: int) -> Found:
    """Train and score."""
    trial = experiment.trials[0]
    table = ServerTable.model_validate(
        {
            "aggregate": {"name": case.rule, **OPTIONS.get(case.rule, {})},
            "norm_limit": case.limit or NORM_LIMIT,
        }
    )
    method = trial.make_method(experiment.clip)
    shared, personal = initial_state(method)
    server = set_up(table, type(method), place="[train.server]").server
    adversaries = Adversaries(inside(case.limit), frozenset({CLIENTS - 1}), seed=1) if case.limit else None
    simulator = Simulator(method, experiment.clip, experiment.clients, trial.settings, adversaries=adversaries)
    refused = rolled_back = 0
    for record in federate(method, simulator, clients=range(CLIENTS), rounds=rounds, seed=1, server=server):
        shared = record.shared
        refused += len(record.refused)
        rolled_back += bool(record.rolled_back)
    return Found(round(_accuracy(experiment, {**shared, **personal}), DIGITS), refused, rolled_back)


def _accuracy(experiment: Experiment, state: State) -> float:
    method = experiment.trials[0].make_method(experiment.clip)
    method.load_state_dict(state)
    base = next(test_set for test_set in make_test_sets(experiment.dataset) if test_set.split == "base")
    return evaluate(method, experiment.clip, base.examples, name="base").figures["accuracy"]


def read(path: Path) -> dict[Case, Found]:
    """The results in a file; none if there is no file."""
    found = {}
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines() if path.exists() else []):
        case = Case(line.pop("rule"), line.pop("limit"))
        found[case] = Found(**line)
    return found


def complete(path: Path, rounds: int) -> Mapping[Case, Found]:
    """Measure every case that the file lacks, and append each result at once."""
    found, experiment = read(path), Bench("fedclip", rounds).experiment("iid")
    for case in (Case(rule, limit) for rule, limit in product(AGGREGATION_RULES.names(), LIMITS)):
        if case not in found:
            started = time.perf_counter()
            found[case] = measure(experiment, case, rounds)
            append_line(path, json.dumps({**asdict(case), **asdict(found[case])}).encode() + b"\n")
            print(f"{case}: {found[case]} ({time.perf_counter() - started:.0f} s)", flush=True)
    return found


def section(found: Mapping[Case, Found], rounds: int) -> Iterator[str]:
    """The lines of the section."""
    yield HEADING
    yield ""
    yield INTRODUCTION.format(rounds=rounds, inside=INSIDE, limit=NORM_LIMIT)
    yield ""
    names = [f"limit {limit:g}" for limit in LIMITS if limit]
    yield f"| rule | no attack | {' | '.join(names)} |"
    yield "|---|---|" + "---|" * len(names)
    for rule in AGGREGATION_RULES.names():
        cells = (_cell(found[Case(rule, limit)]) for limit in LIMITS)
        yield f"| {rule} | {' | '.join(cells)} |"


def _cell(found: Found) -> str:
    events = f" ({found.refused}, {found.rolled_back})" if found.refused or found.rolled_back else ""
    return f"{found.accuracy:.3f}{events}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--results", type=Path, default=RESULTS, help="what is there already is not measured again")
    parser.add_argument("--page", type=Path, default=DOCS / "robustness.md")
    given = parser.parse_args()
    text = "\n".join(section(complete(given.results, given.rounds), given.rounds)) + "\n"
    page = given.page.read_text(encoding="utf-8")
    kept = re.sub(rf"{re.escape(HEADING)}\n.*?(?=^## |\Z)", "", page, flags=re.DOTALL | re.MULTILINE)
    given.page.write_text(f"{kept.rstrip()}\n\n{text}", encoding="utf-8")
    print(f"Written: {given.page}")


if __name__ == "__main__":
    main()
