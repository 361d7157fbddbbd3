"""Criteria for differential privacy: clipping, noise, epsilon, and a budget that ends a run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.acceptance.criteria import Criterion, proof, row
from benchmarks.accountant import independent_epsilon
from fedprompt.experiments.server import open_ledger
from fedprompt.federated.client import TrainSettings
from fedprompt.federated.privacy.accounting import Ledger, Mechanism, composed_epsilon
from fedprompt.federated.privacy.clients import ClientPrivacy
from fedprompt.federated.privacy.noise import secret_normal
from fedprompt.federated.server import Server
from fedprompt.records.events import HeaderEvent
from fedprompt.records.run_folder import RunFolder
from fedprompt.seeding import stream
from fedprompt.updates import Update, fedavg

DELTA = 1e-3
FILE = "test_federated_privacy.py"


def criteria(folder: Path) -> Iterator[Criterion]:
    """All criteria for differential privacy."""
    yield from clipping()
    std = float(secret_normal((1000, 1000), std=3.0).std()) / 3.0
    yield row(
        "deviation of 1,000,000 numbers of noise", "within 2%", f"{100 * (std - 1):+.2f}%", met=abs(std - 1) <= 0.02
    )
    yield from epsilons()
    yield from budget()
    yield from resumed(folder)
    yield proof(
        "a charge that cannot be recorded",
        "admits no round",
        f"{FILE}::test_a_charge_comes_before_the_round_and_a_failed_record_admits_nothing",
    )
    yield proof(
        "client-level privacy with weights or another rule",
        "refused: it is accounted for the uniform mean",
        "test_federated_server.py::test_privacy_goes_with_the_plain_mean_alone",
    )
    yield proof(
        "noise drawn twice under one seed",
        "differs: it is from the system's generator",
        f"{FILE}::test_noise_has_its_deviation_and_cannot_be_drawn_again",
    )


def clipping() -> Iterator[Criterion]:
    """How far one client moves the result with a zero, tiny, huge or non-finite change."""
    privacy = ClientPrivacy(clip=2.0, noise=1e-9, epsilon=1.0, delta=DELTA)
    server, shared = Server(privacy=privacy), {"w": torch.zeros(1000)}
    sizes = [0.0, *(10.0**power for power in range(-20, 31))]

    def combined(number: int, size: float) -> torch.Tensor:
        change = size * torch.randn(1000, generator=stream(0, "bars", number))
        return server.combine(fedavg, shared, [Update(0, 1, {"w": change}, {}, 0.0, 0.0)], {}, asked=[0]).shared["w"]

    longest = max(float(combined(number, size).double().norm()) / 2.0 for number, size in enumerate(sizes))
    yield row(
        f"clipped length of {len(sizes)} changes from 0 to 1e30 times a normal one",
        "at most (1 + 1e-6) clips",
        f"(1 {longest - 1:+.0e}) clips at most",
        met=longest <= 1 + 1e-6,
    )
    broken = [
        Update(client, 1, {"w": torch.full((1000,), value)}, {}, 0.0, 0.0)
        for client, value in enumerate((torch.nan, torch.inf))
    ]
    refused = server.combine(fedavg, shared, broken, {}, asked=[0, 1]).refused
    said = ", ".join(reason.partition(":")[0] for reason in refused.values())
    yield row(
        "changes of NaN and of infinity",
        "refused before clipping",
        f"{len(refused)} of 2 refused ({said})",
        met=len(refused) == 2,
    )


def epsilons() -> Iterator[Criterion]:
    """Our epsilon, compared with that of an independent accountant."""
    settings = itertools.product((0.5, 0.8, 1.3, 4.0, 20.0), (0.001, 0.032, 0.2, 0.9, 1.0), (1, 50, 5000), (1e-3, 1e-5))
    differences = []
    for noise, rate, times, delta in settings:
        used = [Mechanism(noise, rate, times)]
        differences.append(abs(composed_epsilon(used, delta=delta) - independent_epsilon(used, delta)))
    what = f"epsilon of {len(differences)} settings against an independent accountant"
    yield row(what, "within 1e-6", f"largest difference {max(differences):.0e}", met=max(differences) <= 1e-6)
    yield proof(
        "epsilon of a site's ledger over several runs against an independent accountant",
        "within 1e-6",
        "test_deploy_ledger.py::test_epsilon_over_all_runs_is_that_of_an_independent_accountant",
    )


def budget() -> Iterator[Criterion]:
    """Rounds are admitted until one more would exceed the budget."""
    privacy = ClientPrivacy(clip=1.0, noise=4.0, epsilon=3.0, delta=DELTA)
    ledger = Ledger(privacy.spent, budget=privacy.epsilon, record=lambda *entry: None)
    rounds = sum(1 for _ in itertools.takewhile(lambda number: ledger.admit(number, [0, 1]), itertools.count(1)))
    after = privacy.spent(0, rounds + 1)
    said = f"ends after {rounds} rounds at {ledger.epsilon:.3f}; one more would be {after:.3f}"
    yield row("a run with a budget of epsilon 3", "ends before it, not after", said, met=ledger.epsilon <= 3.0 < after)
    yield proof(
        "the same in a run that trains",
        "ends before its budget; what was paid stays paid",
        f"{FILE}::test_the_run_ends_before_the_budget_is_passed_and_what_was_paid_stays_paid",
    )


def resumed(folder: Path) -> Iterator[Criterion]:
    """Charges of unfinished rounds still count after going back to the start."""
    privacy = ClientPrivacy(clip=1.0, noise=4.0, epsilon=3.0, delta=DELTA)

    def ledger(run: RunFolder) -> Ledger:
        found = open_ledger(run, "trial", privacy, TrainSettings(rounds=9), lambda client: 1)
        assert found is not None
        return found

    with RunFolder.create(folder / "ledger") as run:
        run.append(HeaderEvent())
        first = ledger(run)
        assert all(first.admit(number, [0, 1]) for number in (1, 2, 3))
    with RunFolder.open(folder / "ledger") as run:
        run.rewind("trial", 0)
        again = ledger(run).epsilon
    said = f"epsilon {first.epsilon:.3f} before, {again:.3f} after"
    what = "three charged rounds that failed, after going back to round 0 and a resume"
    yield row(what, "still count; the ledger never shrinks", said, met=again == first.epsilon > 0)
