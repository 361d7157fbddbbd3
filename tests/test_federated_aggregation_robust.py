from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedprompt.config.registry import AGGREGATION_RULES
from fedprompt.errors import UserError
from fedprompt.federated.aggregation.base import TooFewError, median, trimmed_mean
from fedprompt.federated.aggregation.fedawa import fedawa
from fedprompt.federated.aggregation.robust import (
    centred_clipping,
    cosine_filter,
    geometric_median,
    krum,
    multi_krum,
    norm_bounded_mean,
)
from fedprompt.seeding import numpy_stream
from fedprompt.updates import AggregationRule, State, Update

OPTIONS = {"krum": {"adversaries": 2}, "multi_krum": {"adversaries": 2}}
NOT_ROBUST = {"fedavg", "cosine_filter", "fedawa"}
RULES = {name: build(**OPTIONS.get(name, {})) for name, build in AGGREGATION_RULES.builders.items()}
ROBUST = {name: rule for name, rule in RULES.items() if name not in NOT_ROBUST}
CASES = int(os.environ.get("FEDPROMPT_CASES", "25"))
each_rule = pytest.mark.parametrize(("name", "rule"), RULES.items())
# Numbers that differ by more than rounding, so that no tie is broken by it.
vectors = arrays(np.float64, (9, 4), elements=st.integers(-40, 40).map(lambda number: number / 8), unique=True)


def updates(points: np.ndarray, shared: State) -> list[Update]:
    """Rows [n, 4] as updates of a tensor `a` [3] and a tensor `b` []."""
    tensors = torch.from_numpy(points).float()
    return [
        Update(number, 5, {"a": shared["a"] + row[:3], "b": shared["b"] + row[3]}, {}, 0.0, 0.0)
        for number, row in enumerate(tensors)
    ]


def apply(rule: AggregationRule, points: np.ndarray, weights: np.ndarray | None = None, at: float = 0.0) -> np.ndarray:
    shared = {"a": torch.full((3,), at), "b": torch.tensor(at)}
    weights = np.full(len(points), 1 / len(points)) if weights is None else weights
    new, _ = rule(shared, updates(points, shared), weights.tolist(), {})
    return torch.cat([new["a"], new["b"][None]]).double().numpy() - at


@each_rule
@settings(max_examples=CASES)
@given(vectors, st.randoms(use_true_random=False))
def test_order_does_not_count(name: str, rule: AggregationRule, points: np.ndarray, random) -> None:
    order = list(range(len(points)))
    random.shuffle(order)
    assert apply(rule, points[order]) == pytest.approx(apply(rule, points), abs=1e-5)


@each_rule
@settings(max_examples=CASES)
@given(vectors)
def test_only_changes_count_not_where_they_begin(name: str, rule: AggregationRule, points: np.ndarray) -> None:
    if "not translation equivariant" not in (AGGREGATION_RULES.builders[name].__doc__ or ""):
        assert apply(rule, points, at=2.0) == pytest.approx(apply(rule, points), abs=1e-4)


@settings(max_examples=CASES)
@given(vectors)
def test_coordinate_rules_equal_numpy(points: np.ndarray) -> None:
    assert apply(median(), points) == pytest.approx(np.median(points, axis=0), abs=1e-6)
    assert apply(median(), points[1:]) == pytest.approx(np.median(points[1:], axis=0), abs=1e-6)
    assert apply(trimmed_mean(share=0.25), points) == pytest.approx(
        np.sort(points, axis=0)[2:-2].mean(axis=0), abs=1e-6
    )


@settings(max_examples=CASES)
@given(vectors)
def test_krum_equals_a_brute_force(points: np.ndarray) -> None:
    distances = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    scores = [sorted(np.delete(row, place))[: 9 - 2 - 2] for place, row in enumerate(distances)]
    sums = np.array([sum(score) for score in scores])
    order = np.argsort(sums)
    for rule, chosen in ((krum(adversaries=2), 1), (multi_krum(adversaries=2), 7)):
        assume(sums[order[chosen]] - sums[order[chosen - 1]] > 1e-6)  # who is equal shares the last place
        assert apply(rule, points) == pytest.approx(points[order[:chosen]].mean(axis=0), abs=1e-6)


def test_equal_scores_share_the_last_place_of_krum() -> None:
    corners = np.array([[x, y, z, 0.0] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    assert apply(krum(adversaries=1), corners) == pytest.approx(np.zeros(4), abs=1e-6)
    assert apply(multi_krum(adversaries=1), corners) == pytest.approx(np.zeros(4), abs=1e-6)


@settings(max_examples=CASES)
@given(vectors)
def test_no_step_from_the_geometric_median_is_shorter(points: np.ndarray) -> None:
    def total(at: np.ndarray) -> float:
        return float(np.linalg.norm(points - at, axis=1).sum())

    found = apply(geometric_median(), points)
    steps = [step * np.array(way) for way in itertools.product((-1, 0, 1), repeat=4) for step in (0.01, 0.3)]
    assert all(total(found) <= total(found + step) + 2e-2 for step in steps)


@pytest.mark.parametrize("size", [1e1, 1e4, 1e30])
@pytest.mark.parametrize(("name", "rule"), ROBUST.items())
def test_two_adversaries_of_ten_move_a_robust_rule_little(name: str, rule: AggregationRule, size: float) -> None:
    honest = numpy_stream(0, "honest").normal(1.0, 0.1, (8, 4))
    poisoned = np.stack([-size * honest[0], size * np.array([3.0, -1.0, 2.0, 1.0])])
    moved = apply(rule, np.concatenate([honest, poisoned])) - honest.mean(axis=0)
    bound = 1.0 if name in ("norm_bounded_mean", "centred_clipping") else 0.3
    assert np.linalg.norm(moved) < bound


@settings(max_examples=CASES)
@given(vectors, st.sampled_from((-1e6, 1e6)))
def test_fewer_than_half_adversaries_leave_the_median_among_the_honest(points: np.ndarray, far: float) -> None:
    honest = points[:5]
    found = apply(median(), np.concatenate([honest, np.full((4, 4), far)]))
    assert (honest.min(axis=0) <= found).all() and (found <= honest.max(axis=0)).all()


def test_weights_count_where_they_can() -> None:
    points = np.arange(12.0).reshape(3, 4)
    heavy = np.array([0.8, 0.1, 0.1])
    for rule in (geometric_median(), cosine_filter(share=0.0), norm_bounded_mean(bound=100.0)):
        assert np.linalg.norm(apply(rule, points, heavy) - points[0]) < np.linalg.norm(apply(rule, points) - points[0])


def test_cosine_filter_drops_those_who_point_elsewhere() -> None:
    points = np.array([[1.0, 0.1 * k, 0, 0] for k in range(7)] + [[-1.0, 0, 0, 0]] * 3)
    assert apply(cosine_filter(share=0.3), points) == pytest.approx(points[:7].mean(axis=0), abs=1e-6)


def test_clipping_goes_on_from_its_last_centre() -> None:
    rule, shared = centred_clipping(steps=1), {"a": torch.zeros(3), "b": torch.zeros(())}
    points = np.tile([1.0, 2.0, 3.0, 4.0], (5, 1))
    points[0] += 7
    new, memory = rule(shared, updates(points, shared), [0.2] * 5, {})
    assert memory["a"] == pytest.approx(new["a"].double())
    again, _ = rule(new, updates(points, new), [0.2] * 5, memory)
    fresh, _ = rule(new, updates(points, new), [0.2] * 5, {})
    assert not torch.equal(again["a"], fresh["a"]), "the centre is remembered"


def test_too_few_updates_for_so_many_adversaries() -> None:
    with pytest.raises(TooFewError, match="krum needs 7 updates per round and has 6"):
        apply(krum(adversaries=2), np.zeros((6, 4)))


@pytest.mark.parametrize(
    ("build", "option"),
    [
        (lambda: trimmed_mean(share=0.5), "share = 0.5"),
        (lambda: cosine_filter(share=1.0), "share = 1.0"),
        (lambda: krum(adversaries=-1), "adversaries = -1"),
        (lambda: norm_bounded_mean(bound=0.0), "bound = 0.0"),
        (lambda: centred_clipping(radius=-1.0), "radius = -1.0"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(build, option: str) -> None:
    with pytest.raises(UserError, match=option):
        build()


def awa(points: np.ndarray, counts: list[int], memory: State | None = None, distance="cosine") -> State:
    shared = {"a": torch.tensor([1.0, -2.0, 0.5]), "b": torch.tensor(1.0)}
    sent = [
        Update(one.client, count, one.shared, {}, 0.0, 0.0)
        for one, count in zip(updates(points, shared), counts, strict=True)
    ]
    return fedawa(lr=0.1, distance=distance)(shared, sent, [], memory or {})[1]


def test_fedawa_starts_at_log_counts_and_equal_updates_stay_there() -> None:
    memory = awa(np.tile([1.0, 0.5, 0.0, 2.0], (3, 1)), [10, 20, 70])
    logits = torch.stack([memory[str(client)][0] for client in range(3)])
    assert logits == pytest.approx(torch.tensor([10.0, 20.0, 70.0]).log().double(), abs=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_fedawa_follows_the_slope_of_its_objective(distance: str) -> None:
    points = numpy_stream(0, "awa").normal(size=(4, 4))
    start = np.array([1.0, -2.0, 0.5, 1.0])

    def objective(logits: np.ndarray) -> float:
        shares = np.exp(logits) / np.exp(logits).sum()
        spread = np.linalg.norm(points - shares @ points, axis=1)
        whole = start + points
        cosine = 1 - whole @ start / np.linalg.norm(whole, axis=1) / np.linalg.norm(start)
        return float(shares @ (spread + (cosine if distance == "cosine" else np.linalg.norm(points, axis=1))))

    memory = awa(points, [3, 3, 3, 3], distance=distance)
    logits = np.log(3.0) * np.ones(4)
    slope = np.array([objective(logits + 1e-5 * way) - objective(logits - 1e-5 * way) for way in np.eye(4)]) / 2e-5
    moments = np.array([float(memory[str(client)][1]) for client in range(4)])
    assert moments / 0.5 == pytest.approx(slope, abs=1e-6)
    assert [float(memory[str(client)][0]) for client in range(4)] == pytest.approx(
        logits - 0.1 * np.sign(slope), abs=1e-3
    )


def test_fedawa_remembers_each_client_for_itself() -> None:
    points = numpy_stream(0, "awa").normal(size=(3, 4))
    first = awa(points, [1, 2, 3])
    shared = {"a": torch.zeros(3), "b": torch.zeros(())}
    two = [
        Update(client, 9, one.shared, {}, 0.0, 0.0)
        for client, one in zip((1, 7), updates(points, shared), strict=False)
    ]
    second = fedawa()(shared, two, [], first)[1]
    assert second.keys() == {"0", "1", "2", "7"} and torch.equal(second["0"], first["0"])
    assert [int(second[client][3]) for client in ("0", "1", "7")] == [1, 2, 1]
