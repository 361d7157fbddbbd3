"""A site's privacy ledger: epsilon over all runs on the same images, whatever a server says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dp_accounting")

from benchmarks.accountant import independent_epsilon
from dp_accounting.rdp import rdp_privacy_accountant

from fedprompt.deploy.audit import LEDGER
from fedprompt.deploy.ledger import IMAGES, Budget, ImageSet, SiteLedger, Training
from fedprompt.deploy.settings import Policy
from fedprompt.deploy.site_policy import RefusedError
from fedprompt.federated.privacy.accounting import Mechanism
from fedprompt.federated.privacy.samples import SamplePrivacy
from fedprompt.seeding import numpy_stream

TRIES = int(os.environ.get("FEDPROMPT_ATTACK_TRIES", "20"))
RUN = "0" * 32
DELTA = 1e-3


def images(*numbers: int) -> ImageSet:
    return ImageSet(frozenset(number.to_bytes(16, "big") for number in numbers))


BOTH = images(1, 2)


def training(mechanism: Mechanism | None = None, *, of: ImageSet = BOTH, **changes: object) -> Training:
    plain = Training(RUN, "fedmvp", 1, "recipe", "state", of.fingerprint, 2, 1.0, mechanism)
    return replace(plain, **changes)


@pytest.mark.parametrize(
    "used",
    [
        [Mechanism(4.0, 0.2, 6), Mechanism(9.0, 1.0, 1), Mechanism(4.0, 0.2, 6), Mechanism(3.0, 0.05, 30)],
        [Mechanism(1.3, 0.2, 6), Mechanism(0.9, 0.05, 30)],
        [Mechanism(1.0, 1.0, 2), Mechanism(0.7, 1.0, 1), Mechanism(0.8, 0.25, 40), Mechanism(100.0, 0.001, 1)],
    ],
)
def test_epsilon_over_all_runs_is_that_of_an_independent_accountant(tmp_path: Path, used: list[Mechanism]) -> None:
    ledger = SiteLedger(tmp_path)
    for number, mechanism in enumerate(used):
        line = training(mechanism, run=f"{number:032x}", round=number + 1)
        charged = ledger.charge(line, images(1, 2), Budget(DELTA))
        assert charged.epsilon == pytest.approx(independent_epsilon(used[: number + 1], DELTA), abs=1e-6)
    again = SiteLedger(tmp_path)
    assert [line.mechanism for line in again.lines()] == used
    assert again.epsilon(images(2, 3), delta=DELTA) == pytest.approx(independent_epsilon(used, DELTA), abs=1e-6)


def test_overlapping_images_are_counted_together_and_others_are_not(tmp_path: Path) -> None:
    ledger, noise = SiteLedger(tmp_path), Mechanism(2.0)
    once = ledger.charge(training(noise), images(1, 2), Budget(DELTA)).epsilon
    other = images(3, 4)
    assert ledger.charge(training(noise, of=other), other, Budget(DELTA)).epsilon == once
    both = images(2, 3)
    thrice = ledger.charge(training(noise, of=both), both, Budget(DELTA)).epsilon
    assert thrice == pytest.approx(independent_epsilon([Mechanism(2.0, times=3)], DELTA), abs=1e-6)
    unknown = ImageSet()
    ledger.charge(training(noise, of=unknown), unknown, Budget(DELTA))
    assert SiteLedger(tmp_path).epsilon(images(9), delta=DELTA) == once, "unknown images may be any"


def test_a_lost_list_of_images_counts_for_all_images(tmp_path: Path) -> None:
    SiteLedger(tmp_path).charge(training(Mechanism(2.0)), images(1, 2), Budget(DELTA))
    (file,) = (tmp_path / IMAGES).iterdir()
    for content in (file.read_bytes()[:-1], b""):
        file.write_bytes(content)
        assert SiteLedger(tmp_path).epsilon(images(7), delta=DELTA) > 0
    file.unlink()
    assert SiteLedger(tmp_path).epsilon(images(7), delta=DELTA) > 0


@pytest.fixture
def remembered_divergences(monkeypatch: pytest.MonkeyPatch) -> None:
    """The accountant computes the divergences of each kind of mechanism once; they take nearly all of its time."""
    name, known = "_compute_rdp_poisson_subsampled_gaussian", {}
    compute = getattr(rdp_privacy_accountant, name)

    def remember(q: float, noise_multiplier: float, orders: Sequence[float]) -> np.ndarray:
        key = q, noise_multiplier, tuple(orders)
        if key not in known:
            known[key] = compute(q, noise_multiplier, orders)
        return known[key]

    monkeypatch.setattr(rdp_privacy_accountant, name, remember)


@pytest.mark.usefixtures("remembered_divergences")
def test_whatever_jobs_say_no_more_than_the_budget_is_ever_spent(tmp_path: Path) -> None:
    draws = numpy_stream(0, "ledger attack")
    for attempt in range(TRIES):
        ledger, spent, used = SiteLedger(tmp_path / str(attempt)), 0.0, []
        for _ in range(12):
            mechanism = Mechanism(float(draws.choice([0.8, 2, 1000])), float(draws.choice([0.1, 1])), 1)
            line = training(mechanism, run=f"{draws.integers(3):032x}", trial=str(draws.integers(3)))
            budget = Budget(DELTA, 4.0, float(draws.choice([1.0, 1e9])), float(draws.choice([1e-9, 0.9999])))
            try:
                now = ledger.charge(line, images(1, 2), budget).epsilon
            except RefusedError as refusal:
                assert refusal.rule == "epsilon"
                continue
            used.append(mechanism)
            assert now is not None and spent <= now <= 4.0, "epsilon never shrinks"
            spent = now
            if draws.integers(3) == 0:
                ledger = SiteLedger(tmp_path / str(attempt))  # the worker is restarted
        assert [line.mechanism for line in ledger.lines()] == used


def test_the_jobs_own_budget_ends_its_training_too(tmp_path: Path) -> None:
    ledger, line = SiteLedger(tmp_path), training(Mechanism(2.0))
    first = ledger.charge(line, images(1, 2), Budget(DELTA)).epsilon
    assert first is not None
    with pytest.raises(RefusedError, match="job's own"):
        ledger.charge(line, images(1, 2), Budget(DELTA, None, first * 1.01, DELTA))
    ledger.charge(replace(line, run="1" * 32), images(1, 2), Budget(DELTA, None, first * 1.01, DELTA))


def test_a_damaged_ledger_admits_nothing(tmp_path: Path) -> None:
    SiteLedger(tmp_path).charge(training(Mechanism(2.0)), images(1, 2), Budget(DELTA))
    path = tmp_path / LEDGER
    path.write_bytes(path.read_bytes().replace(b'"noise":2.0', b'"noise":9.0'))
    with pytest.raises(Exception, match="was changed"):
        SiteLedger(tmp_path).charge(training(Mechanism(2.0)), images(1, 2), Budget(DELTA))


def test_plain_updates_of_one_state_are_counted_over_runs(tmp_path: Path) -> None:
    ledger, budget = SiteLedger(tmp_path), Budget(DELTA, repeats=2)
    for run in ("1", "2"):
        assert ledger.charge(training(run=run * 32), images(1, 2), budget).epsilon is None
    with pytest.raises(RefusedError, match="difference of two sums"):
        ledger.charge(training(run="3" * 32, of=images(2, 3)), images(2, 3), budget)
    ledger.charge(training(start="another"), images(1, 2), budget)
    ledger.charge(training(Mechanism(1.0)), images(1, 2), budget)


def test_the_sites_delta_is_at_most_one_in_its_images() -> None:
    assert Policy().delta_for(10) == 1e-3 and Policy().delta_for(10_000) == 1e-4
    assert Policy(delta=1e-6).delta_for(10) == 1e-6
    with pytest.raises(ValueError, match="delta"):
        Policy(delta=0.01)


def test_what_a_client_adds_itself_is_the_mechanism_that_it_is_charged_for() -> None:
    privacy = SamplePrivacy(clip=1.0, noise=1.5, epsilon=9.0, delta=1e-4)
    assert privacy.at_client(images=10, batch_size=4, epochs=2) == Mechanism(1.5, 0.4, 6)
    assert privacy.at_client(images=3, batch_size=4, epochs=1) == Mechanism(1.5, 1.0, 1)
