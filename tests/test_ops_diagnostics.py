"""Diagnostics: entropies and spreads at their limits, and shares of conditions by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprompt.ops.diagnostics import (
    attention_diagnostics,
    condition_diagnostics,
    entropy_share,
    feature_diagnostics,
    prompt_diagnostics,
    relative_spread,
)
from fedprompt.ops.layers import unit
from fedprompt.seeding import stream


def test_entropy_is_one_for_uniform_weights_and_zero_for_a_single_choice() -> None:
    assert entropy_share(torch.full((2, 3, 5), 0.2)) == pytest.approx(1)
    assert entropy_share(torch.eye(4)) == 0
    halves = torch.tensor([0.5, 0.5, 0.0, 0.0])
    assert entropy_share(halves) == pytest.approx(0.5)
    assert math.isnan(entropy_share(torch.ones(3, 1)))


@given(st.integers(2, 6), st.integers(0, 9))
def test_entropy_of_any_distribution_is_a_share(choices: int, seed: int) -> None:
    weights = torch.randn(4, choices, generator=stream(seed, "weights")).softmax(dim=-1)
    assert 0 <= entropy_share(weights) <= 1 + 1e-6


def test_spread_is_zero_for_copies_and_one_around_zero() -> None:
    vectors = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]).expand(3, -1, -1)  # 3 images with the same two vectors
    assert relative_spread(vectors, 0) == 0 and relative_spread(vectors, 1) > 0
    opposite = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]])
    assert relative_spread(opposite, 0) == 1 and relative_spread(opposite, 1) == 0
    assert relative_spread(opposite + torch.tensor([3.0, 0.0]), 0) == pytest.approx((1 / 10) ** 0.5)
    assert math.isnan(relative_spread(torch.zeros(2, 2, 3), 0))


def test_attention_is_measured_per_head() -> None:
    """Two heads that look at one text each, another one each: their mean would look undecided."""
    heads = torch.eye(2)[:, None, None, :].expand(2, 3, 4, 2)  # [H, B, P, N]
    (found,) = attention_diagnostics(heads)
    assert found.value == 0 and entropy_share(heads.mean(dim=0)) == pytest.approx(1)


def test_prompts_and_features() -> None:
    images, positions = prompt_diagnostics(torch.randn(5, 1, 8, generator=stream(0, "prompts")))
    assert images.value > 0.5 and positions.value == 0
    features = unit(torch.randn(6, 8, generator=stream(0, "features")))
    assert feature_diagnostics(features, features)[0].value == pytest.approx(1)
    assert feature_diagnostics(features, -features)[0].value == pytest.approx(-1)


def test_shares_of_conditions_are_those_of_the_most_probable_label() -> None:
    gate = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    evidence = torch.tensor([[[0.9, 0.1], [0.3, 0.2]], [[0.1, 0.6], [0.1, 0.2]]])  # labels 0 and 1 are the strongest
    plans = torch.full((2, 2, 3, 2), 1 / 6)
    plans[:, :, 0, 0], plans[:, :, 1:, 0] = 0.5, 0.0  # label 0 comes from one patch, label 1 from all
    entropy, plan, first, second = condition_diagnostics(("light", "place"), gate, evidence, plans)
    assert (first.name, second.name) == ("evidence under light", "evidence under place")
    assert first.value == pytest.approx((0.45 / 0.6 + 0.15 / 0.3) / 2) and second.value == pytest.approx(
        (0.15 / 0.6 + 0.15 / 0.3) / 2
    )
    assert entropy.value == pytest.approx((1 + entropy_share(gate[1])) / 2)
    assert plan.value == pytest.approx(0.5, abs=1e-6)
    assert "50% each" in first.meaning
    alone = condition_diagnostics(("light",), gate[:, :1], evidence[:, :1], plans[:, :1])
    assert math.isnan(alone[0].value) and alone[2].value == 1
