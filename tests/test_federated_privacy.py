from __future__ import annotations

import itertools
import math
from fractions import Fraction

import dp_accounting
import numpy as np
import pytest
import torch
from benchmarks.accountant import independent_epsilon
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.config.recipe_tables import ServerTable
from fedprompt.errors import UserError
from fedprompt.experiments.server import describe_server, set_up
from fedprompt.federated.client import TrainSettings, train_client
from fedprompt.federated.privacy import clients as client_level
from fedprompt.federated.privacy import samples as sample_level
from fedprompt.federated.privacy.accounting import (
    Ledger,
    Mechanism,
    composed_epsilon,
    gaussian_epsilon,
    sampled_epsilon,
)
from fedprompt.federated.privacy.clients import ClientPrivacy, clip_factor
from fedprompt.federated.privacy.discrete_gaussian import LARGEST_SCALE, discrete_gaussian
from fedprompt.federated.privacy.distributed import DistributedPrivacy
from fedprompt.federated.privacy.noise import secret_normal, secret_uniform
from fedprompt.federated.privacy.samples import SamplePrivacy, poisson_batches, private_gradient
from fedprompt.federated.rounds import federate, initial_state
from fedprompt.federated.secure.vector import Codec
from fedprompt.federated.server import Server
from fedprompt.runtimes.simulator import Simulator
from fedprompt.seeding import stream
from fedprompt.updates import AGGREGATE_CLIENT, Update
from toys import Toy, fake_clip, toy_client

BUDGET = {"epsilon": 5.0, "delta": 1e-3}


@pytest.mark.parametrize("noise", [0.3, 0.8, 1.3, 4.0, 20.0])
def test_epsilon_is_that_of_an_independent_accountant(noise: float) -> None:
    for rate, times, delta in itertools.product((1e-4, 0.032, 0.2, 0.9, 1.0), (1, 50, 5000), (1e-3, 1e-5)):
        used = [Mechanism(noise, rate, times)]
        expected = independent_epsilon(used, delta)
        assert composed_epsilon(used, delta=delta) == pytest.approx(expected, abs=1e-6), (rate, times, delta)


def test_epsilon_is_that_of_dp_accounting_and_no_less_than_the_tightest_bound() -> None:
    for noise, rounds in ((1.0, 50), (5.0, 10)):
        oracle = RdpAccountant().compose(dp_accounting.GaussianDpEvent(noise), rounds).get_epsilon(1e-3)
        assert gaussian_epsilon(noise, rounds=rounds, delta=1e-3) == pytest.approx(oracle, abs=1e-6)
    event = dp_accounting.PoissonSampledDpEvent(0.032, dp_accounting.GaussianDpEvent(1.0))
    tight = PLDAccountant().compose(event, 312).get_epsilon(1e-5)
    assert tight <= sampled_epsilon(1.0, rate=0.032, steps=312, delta=1e-5)
    tight = PLDAccountant().compose(dp_accounting.GaussianDpEvent(10.0), 5).get_epsilon(1e-3)
    assert tight <= gaussian_epsilon(10.0, rounds=5, delta=1e-3), "the figure is an upper bound"
    assert gaussian_epsilon(1.0, rounds=0, delta=1e-3) == 0.0


@pytest.mark.parametrize(("images", "epochs"), itertools.product((1000, 160), (10, 50)))
def test_whole_orders_cost_as_little_as_the_page_of_epsilons_says(images: int, epochs: int) -> None:
    steps = epochs * sample_level.steps_of(images, 32)
    for noise in (0.8, 1.0, 1.5, 2.0, 4.0):
        event = dp_accounting.PoissonSampledDpEvent(32 / images, dp_accounting.GaussianDpEvent(noise))
        least = RdpAccountant().compose(event, steps).get_epsilon(1e-5)
        found = sampled_epsilon(noise, rate=32 / images, steps=steps, delta=1e-5)
        cost = 0.006 if found < 6 else 0.024 if found < 10 else 0.076
        assert least <= found * (1 + 1e-12) and found <= least * (1 + cost)


@pytest.mark.parametrize("option", [{"clip": 1.24e-316}, {"clip": 1e10}, {"noise": 1e-10}, {"noise": 1e300}])
def test_clip_and_noise_have_all_their_digits(option: dict[str, float]) -> None:
    """A denormal clip would make the real noise smaller than the accounted one."""
    with pytest.raises(UserError, match="must lie between 1e-09 and 1e\\+09"):
        DistributedPrivacy(**{"clip": 1.0, "noise": 1.0, "epsilon": 8.0, "delta": 1e-5, **option})


def test_warnings_of_dp_accounting_reach_nobody(caplog: pytest.LogCaptureFixture) -> None:
    assert sampled_epsilon(0.8, rate=0.31, steps=3, delta=1e-3) > 1  # seven orders do not converge
    assert not caplog.records


def test_noise_has_its_deviation_and_cannot_be_drawn_again() -> None:
    numbers = secret_normal((1000, 1001), std=3.0)
    assert numbers.shape == (1000, 1001) and numbers.dtype == torch.float64
    assert numbers.std() == pytest.approx(3.0, rel=0.02) and abs(numbers.mean()) < 0.02
    assert (numbers.abs() < 3.0).double().mean() == pytest.approx(0.6827, abs=0.005)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = secret_normal((5,), std=1.0)
        torch.manual_seed(0)
        assert not torch.equal(first, secret_normal((5,), std=1.0))
    assert secret_normal((), std=1.0).shape == () and secret_normal((0, 3), std=1.0).shape == (0, 3)
    uniform = secret_uniform(100_000)
    assert uniform.min() > 0 and uniform.max() <= 1 and uniform.mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("scale", [1, 3, 10])
def test_discrete_noise_has_the_probabilities_of_a_discrete_gaussian(scale: int) -> None:
    count, edge = 200_000, 4 * scale
    found = discrete_gaussian(scale, count)
    numbers = np.arange(-20 * scale, 20 * scale + 1)
    weights = np.exp(-(numbers**2) / (2 * scale**2))
    expected = (count * weights / weights.sum())[np.abs(numbers) <= edge]
    counted = np.array([(found == number).sum() for number in range(-edge, edge + 1)])
    squares = float(((counted - expected) ** 2 / expected).sum())
    degrees = 2 * edge
    assert squares < degrees + 5 * math.sqrt(2 * degrees) + 5, "exceeded less than once in a million draws"


def test_discrete_noise_of_the_largest_scale_is_gaussian() -> None:
    found = discrete_gaussian(LARGEST_SCALE, 400_000) / LARGEST_SCALE
    assert found.std() == pytest.approx(1, rel=0.01) and abs(found.mean()) < 0.01
    for bound, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        assert (np.abs(found) < bound).mean() == pytest.approx(share, abs=0.005)
    assert len(np.unique(found)) > 390_000, "the last bits are as random as the first"
    assert discrete_gaussian(5, 0).shape == (0,)


@settings(max_examples=30)
@given(st.floats(1e-6, 1e6), st.floats(1e-3, 1e3), st.floats(0, 1e6), st.integers(1, 2000), st.integers(0, 99))
def test_what_clients_mask_with_distributed_noise_is_no_longer_than_the_clip(
    clip: float, noise: float, length: float, count: int, seed: int
) -> None:
    privacy = DistributedPrivacy(clip=clip, noise=noise, **BUDGET)
    codec = Codec(clip, 5, privacy=privacy)
    shared = {"w": torch.zeros(count, dtype=torch.float64)}
    change = length * torch.randn(count, generator=stream(seed, "w"), dtype=torch.float64)
    vector = codec.encode(Update(0, 1, {"w": change}, {}, 0.5, 0.0), shared).view(np.int64)
    assert vector[:2].tolist() == [1, 0], "one client, and no loss"
    assert Fraction(codec.step) ** 2 * sum(number * number for number in vector[2:].tolist()) <= Fraction(clip) ** 2


def test_distributed_noise_needs_secure_sums_and_the_uniform_mean() -> None:
    options = {"name": "distributed", "clip": 1.0, "noise": 1.0, **BUDGET}
    for table, weighting, reason in (
        ({"privacy": options}, "uniform", r"add the table \[train.server.secure\]"),
        ({"privacy": options, "secure": {}}, "examples", "plain uniform mean"),
        ({"privacy": options, "secure": {}, "aggregate": {"name": "median"}}, "uniform", "no single update"),
    ):
        with pytest.raises(UserError, match=reason):
            set_up(ServerTable.model_validate(table), Toy, weighting=weighting, place="[train.server]")
    setup = set_up(ServerTable.model_validate({"privacy": options, "secure": {}}), Toy, place="[train.server]")
    assert setup.server.privacy is None and setup.secure is not None and setup.secure.clip == 1.0
    assert "client-level" in describe_server(setup.table, weighting="uniform")
    with pytest.raises(UserError, match="no room for noise"):
        Codec(1.0, 2**40, privacy=DistributedPrivacy(clip=1.0, noise=1.0, **BUDGET))


@given(st.floats(0, 1e30), st.floats(1e-6, 1e6))
def test_what_is_clipped_is_no_longer_than_the_clip(norm: float, clip: float) -> None:
    assert norm * clip_factor(norm, clip) <= clip * (1 + 1e-6)
    assert clip_factor(clip / 2, clip) == 1.0


def test_client_noise_is_added_once_to_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def ones(shape: tuple[int, ...], *, std: float) -> torch.Tensor:
        drawn.append(std)
        return torch.full(shape, std, dtype=torch.float64)

    monkeypatch.setattr(client_level, "secret_normal", ones)
    shared = {"w": torch.zeros(4), "unsent": torch.zeros(2)}
    sent = [Update(c, 1, {"w": torch.full((4,), 10.0**c)}, {}, 0.0, 0.0) for c in range(3)]
    moved = ClientPrivacy(clip=2.0, noise=0.5, **BUDGET).noisy_mean(shared, sent, asked=4)
    assert drawn == [0.25, 0.25]
    assert moved["w"] == pytest.approx(torch.full((4,), 3 * 1.0 / 4 + 0.25)) and moved["unsent"][0] == 0.25
    cohort = [Update(AGGREGATE_CLIENT, 3, {"w": torch.full((4,), 1.0)}, {}, 0.0, 0.0)]
    assert ClientPrivacy(clip=2.0, noise=0.5, **BUDGET).noisy_mean(shared, cohort, asked=4)["w"][0] == 1.0


def test_a_huge_or_broken_client_moves_the_result_no_farther_than_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_level, "secret_normal", lambda shape, *, std: torch.zeros(shape))
    server, shared = Server(privacy=ClientPrivacy(clip=1.0, noise=1.0, **BUDGET)), {"w": torch.zeros(8)}

    def moved(value: float) -> torch.Tensor:
        sent = [Update(c, 1, {"w": torch.full((8,), 0.1)}, {}, 0.0, 0.0) for c in range(4)]
        sent.append(Update(4, 1, {"w": torch.full((8,), value)}, {}, 0.0, 0.0))
        return server.combine(Toy.aggregate, shared, sent, {}, asked=range(5)).shared["w"]

    without = moved(0.0)
    for value in (1e30, -1e30, 1e-3, float("nan"), float("inf")):
        assert float((moved(value) - without).norm()) <= 1.0 / 5 * (1 + 1e-6)


def trained(privacy: SamplePrivacy | None, batch_size: int, method: Toy | None = None, **options) -> Update:
    shared, personal = initial_state(Toy())
    settings = TrainSettings(rounds=1, batch_size=batch_size, lr=1.0, momentum=0.0, privacy=privacy, weight_decay=0.0)
    return train_client(
        method or Toy(switch=False),
        fake_clip(),
        toy_client(0, examples=8),
        shared=shared,
        personal=personal,
        round_number=1,
        settings=settings,
        **options,
    )


def test_a_private_step_without_clipping_and_noise_is_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_level, "secret_normal", lambda shape, *, std: torch.zeros(shape))
    monkeypatch.setattr(
        Toy,
        "loss",
        lambda self, clip, images, targets, space, *, stream: torch.nn.functional.cross_entropy(
            self.classifier(clip, space)(images), targets
        ),
    )
    plain = trained(None, batch_size=8)
    private = trained(SamplePrivacy(clip=1e9, noise=1.0, **BUDGET), batch_size=8)
    assert all(torch.allclose(plain.shared[name], private.shared[name], atol=1e-6) for name in plain.shared)
    assert plain.loss == pytest.approx(private.loss)


def test_every_images_gradient_is_clipped_and_the_sum_is_noisy() -> None:
    weight = torch.nn.Parameter(torch.zeros(1000))
    ways = [torch.eye(1000)[k] * 10.0 ** (k - 2) for k in range(5)] + [torch.full((1000,), float("nan"))]
    losses = [lambda way=way: (weight * way).sum() + 4 for way in ways[:5]]
    found = private_gradient(losses, [weight], SamplePrivacy(clip=1.0, noise=1e-9, **BUDGET), batch_size=2)
    assert weight.grad is not None and weight.grad[:5] == pytest.approx(
        torch.tensor([0.005, 0.05, 0.5, 0.5, 0.5]), abs=1e-6
    )
    assert found == pytest.approx(4.0)
    private_gradient([], [weight], SamplePrivacy(clip=2.0, noise=3.0, **BUDGET), batch_size=4)
    assert weight.grad.std() == pytest.approx(2.0 * 3.0 / 4, rel=0.1)
    bad = private_gradient(
        [lambda: (weight * ways[5]).sum()], [weight], SamplePrivacy(clip=1.0, noise=1e-9, **BUDGET), batch_size=2
    )
    assert bad is not None and math.isnan(bad) and weight.grad.isfinite().all(), "its presence does not show"


def test_poisson_batches_take_every_image_with_the_same_probability() -> None:
    batches = [batch for _ in range(200) for batch in poisson_batches(20, 5)]
    assert len(batches) == 800 and len({len(batch) for batch in batches}) > 3
    taken = torch.bincount(torch.cat(batches), minlength=20) / 800
    assert taken == pytest.approx(torch.full((20,), 0.25), abs=0.08)
    assert [len(batch) for batch in poisson_batches(3, 10)] == [3]


def test_a_method_that_chooses_by_what_it_saw_is_refused() -> None:
    privacy = SamplePrivacy(clip=1.0, noise=1.0, **BUDGET)
    with pytest.raises(UserError, match="Toy chooses what to train by the data it has seen; switch that off"):
        trained(privacy, batch_size=4, method=Toy(switch=True))


def test_the_run_ends_before_the_budget_is_passed_and_what_was_paid_stays_paid() -> None:
    privacy = ClientPrivacy(clip=1.0, noise=4.0, epsilon=3.0, delta=1e-3)
    entries: list[tuple[int, tuple[int, ...], float]] = []

    def ledger(charges=None) -> Ledger:
        return Ledger(privacy.spent, budget=3.0, charges=charges, record=lambda *entry: entries.append(entry))

    clients = {number: toy_client(number) for number in range(4)}
    settings = TrainSettings(rounds=99, batch_size=4, lr=0.1)
    simulator = Simulator(Toy(switch=False), fake_clip(), clients, settings)
    book = ledger()
    done = list(
        federate(
            Toy(), simulator, clients=range(4), rounds=99, seed=0, server=Server(privacy=privacy), admit=book.admit
        )
    )
    spent = [privacy.spent(0, count) for count in range(1, len(done) + 2)]
    assert spent[-2] <= 3.0 < spent[-1] and book.epsilon == spent[-2] and len(entries) == len(done)
    assert [entry[2] for entry in entries] == spent[:-1]
    half = ledger({client: len(done) - 1 for client in range(4)})
    assert half.admit(7, [0, 1]) and not half.admit(8, [1, 2]) and half.admit(9, [2, 3]), "each client for itself"
    assert half.charges == dict.fromkeys(range(4), len(done))
    assert not ledger({0: 10**6}).admit(1, [1]), "a budget that is gone stays gone"


def test_a_charge_comes_before_the_round_and_a_failed_record_admits_nothing() -> None:
    def record(*entry: object) -> None:
        raise OSError("disk full")

    ledger = Ledger(lambda client, charges: 0.1 * charges, budget=1.0, record=record)
    with pytest.raises(OSError, match="disk full"):
        ledger.admit(1, [0])
    assert ledger.charges == {}


@pytest.mark.parametrize("option", ["clip", "noise", "epsilon", "delta"])
@pytest.mark.parametrize("kind", [ClientPrivacy, DistributedPrivacy, SamplePrivacy])
def test_an_option_that_makes_no_sense_is_named(kind: type, option: str) -> None:
    options = {"clip": 1.0, "noise": 1.0, **BUDGET}
    for value in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match=option):
            kind(**{**options, option: value})


def test_a_sites_epsilon_grows_with_epochs_and_shrinks_with_images() -> None:
    privacy = SamplePrivacy(clip=1.0, noise=1.0, **BUDGET)
    few, many = (privacy.spent(images=count, batch_size=32, epochs=10) for count in (100, 1000))
    assert few > many > privacy.spent(images=1000, batch_size=32, epochs=5)


def test_a_method_that_says_so_is_refused_before_it_trains() -> None:
    method = Toy(switch=False)
    method.unaccounted = "orders its steps by the images; set method.order = false"
    with pytest.raises(UserError, match=r"Toy orders its steps .* or leave out \[train.server.privacy\]: no privacy"):
        trained(SamplePrivacy(clip=1.0, noise=1.0, **BUDGET), batch_size=4, method=method)
