from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprompt.ops.losses import asymmetric_loss, objective

entries = st.lists(st.tuples(st.floats(-30, 30), st.sampled_from([1, 0, -1])), min_size=1, max_size=12)


def by_hand(logit: float, label: int) -> float:
    p = 1 / (1 + math.exp(-logit))
    q = min(1 - p + 0.05, 1)
    if label == 1:
        return -0.02 * (1 - p) * math.log(max(p, 1e-6))
    return -0.02 * (1 - q) ** 2 * math.log(max(q, 1e-6)) if label == 0 else 0.0


@given(entries)
def test_asymmetric_loss_equals_its_formula(rows: list[tuple[float, int]]) -> None:
    logits = torch.tensor([[logit for logit, _ in rows]], dtype=torch.float64)
    targets = torch.tensor([[label for _, label in rows]], dtype=torch.int8)
    expected = sum(by_hand(logit, label) for logit, label in rows)
    assert asymmetric_loss(logits, targets).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(entries)
def test_unknown_labels_cost_nothing_and_move_nothing(rows: list[tuple[float, int]]) -> None:
    logits = torch.tensor([[logit for logit, _ in rows]], requires_grad=True)
    targets = torch.tensor([[label for _, label in rows]])
    asymmetric_loss(logits, targets).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert not logits.grad[targets == -1].any()


def test_focusing_weights_carry_no_gradient() -> None:
    logits = torch.tensor([[0.3, 0.7]], dtype=torch.float64, requires_grad=True)
    asymmetric_loss(logits, torch.tensor([[1, 0]]), weight=1.0).backward()
    p = logits.detach().sigmoid()[0]
    q = 1 - p[1] + 0.05
    expected = torch.stack([-(1 - p[0]) / p[0], (1 - q) ** 2 / q]) * p * (1 - p)
    assert logits.grad is not None and torch.allclose(logits.grad[0], expected)


def test_easy_negatives_are_free() -> None:
    below, above = (math.log(p / (1 - p)) for p in (0.049, 0.2))
    assert asymmetric_loss(torch.tensor([[below]]), torch.tensor([[0]])) == 0
    assert asymmetric_loss(torch.tensor([[above]]), torch.tensor([[0]])) > 0


def test_sums_over_the_batch() -> None:
    logits, targets = torch.tensor([[0.5, -1.0]]), torch.tensor([[1, 0]])
    twice = asymmetric_loss(logits.repeat(2, 1), targets.repeat(2, 1))
    assert torch.isclose(twice, 2 * asymmetric_loss(logits, targets))


def test_objective_of_each_kind() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    assert objective("single")(logits, torch.tensor([0, 1])).item() == pytest.approx(math.log(1 + math.exp(-2)))
    many = torch.tensor([[1, 0], [-1, 1]])
    assert torch.equal(objective("multi")(logits, many), asymmetric_loss(logits, many))
