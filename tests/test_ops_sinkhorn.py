"""Optimal transport: POT's plans, exact column sums, problems that do not see each other, and the stated gradients."""

from __future__ import annotations

from typing import Any

import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedprompt.ops import sinkhorn as ops
from fedprompt.ops.sinkhorn import MarginalRule, balanced, partial, sinkhorn, unbalanced
from fedprompt.seeding import stream

PATIENT: dict[str, Any] = {"tolerance": 1e-5, "iterations": 20_000}
COSTS = {
    "random": lambda cost: cost,
    "extreme": torch.round,
    "constant": lambda cost: torch.full_like(cost, 0.7),
    "one cheap entry": lambda cost: (cost < cost.amax()).to(cost),
}


def draw(
    seed: int, *shape: int, sharpness: float = 1.0, kind: str = "random", dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Costs in [0, 1], row masses that differ by about exp(sharpness), equal column masses; both sum to one."""
    generator = stream(seed, "transport")
    cost = COSTS[kind](torch.rand(shape, generator=generator, dtype=dtype))
    rows = (sharpness * torch.randn(shape[:-1], generator=generator, dtype=dtype)).softmax(dim=-1)
    return cost, rows, torch.full((shape[-1],), 1 / shape[-1], dtype=dtype)


def lack(plan: Tensor, rows: Tensor) -> Tensor:
    return (plan.sum(dim=-1) - rows).abs().sum(dim=-1)


def solved(solver: Any, problem: tuple[Tensor, Tensor, Tensor], *parameters: Any, **options: Any) -> Tensor:
    """POT's plan, found in float64."""
    cost, rows, columns = (part.double().numpy() for part in problem)
    return torch.from_numpy(solver(rows, columns, cost, *parameters, numItermax=20_000, **options)).float()


@settings(max_examples=30, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(st.integers(1, 8), st.integers(1, 5)),
    kind=st.sampled_from(sorted(COSTS)),
    entropy=st.sampled_from([0.01, 0.05, 0.2, 3.0]),
)
def test_the_plan_is_pots(seed: int, size: tuple[int, int], kind: str, entropy: float) -> None:
    problem = draw(seed, *size, kind=kind, dtype=torch.float64)
    theirs = solved(ot.sinkhorn, problem, entropy, method="sinkhorn_log", stopThr=1e-8)
    ours = sinkhorn(*(part.float() for part in problem), entropy=entropy, **PATIENT)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("entropy", [0.02, 0.1])
@pytest.mark.parametrize("mass", [0.3, 0.8])
def test_the_partial_plan_is_pots(entropy: float, mass: float) -> None:
    for seed in range(4):
        cost, rows, columns = draw(seed, 6, 3)
        problem = (cost, rows, mass * columns)
        plan = sinkhorn(*problem, entropy=entropy, row_rule=partial, **PATIENT)
        # POT leaves the columns as free as the rows and fixes the total instead: to all that they hold, it binds them.
        total = mass * (1 - 1e-6)
        theirs = solved(ot.partial.entropic_partial_wasserstein, problem, entropy, m=total, stopThr=1e-12)
        torch.testing.assert_close(plan, theirs, rtol=0, atol=1e-4)
        assert (plan.sum(dim=1) <= rows + 1e-5).all()


def test_a_partial_plan_starts_even_where_all_is_dear() -> None:
    """Kernels as small as exp(-90) once looked like nothing left to move."""
    plan = sinkhorn(
        torch.full((4, 2), 0.9), torch.full((4,), 0.25), torch.full((2,), 0.4), entropy=0.01, row_rule=partial
    )
    torch.testing.assert_close(plan, torch.full((4, 2), 0.1))


@pytest.mark.filterwarnings("ignore:If reg_type = entropy")
@pytest.mark.parametrize("pull", [(1.0, 1.0), (0.1, 3.0), (float("inf"), 0.5)])
def test_the_unbalanced_plan_is_pots(pull: tuple[float, float]) -> None:
    for seed in range(4):
        problem = draw(seed, 5, 4)
        plan = sinkhorn(*problem, entropy=0.1, row_rule=unbalanced(pull[0]), column_rule=unbalanced(pull[1]), **PATIENT)
        theirs = solved(ot.unbalanced.sinkhorn_unbalanced, problem, 0.1, pull, reg_type="entropy", stopThr=1e-12)
        torch.testing.assert_close(plan, theirs, rtol=0, atol=1e-4)


def test_an_infinite_pull_binds() -> None:
    problem = draw(0, 5, 4)
    bound = sinkhorn(*problem, entropy=0.1, row_rule=unbalanced(torch.inf), column_rule=unbalanced(torch.inf))
    assert torch.equal(bound, sinkhorn(*problem, entropy=0.1, row_rule=balanced))


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 6)),
    kind=st.sampled_from(sorted(COSTS)),
    entropy=st.sampled_from([0.01, 0.2]),
    sharpness=st.sampled_from([0.0, 1.0, 300.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_whatever_the_problem_the_columns_are_exact(
    seed: int, size: tuple[int, ...], kind: str, entropy: float, sharpness: float, dtype: torch.dtype
) -> None:
    """Also for masses that are zero, for half precision and when the iterations end first."""
    cost, rows, columns = draw(seed, *size, kind=kind, sharpness=sharpness)
    problem = (cost.to(dtype), rows.to(dtype), columns.to(dtype))
    plan = sinkhorn(*problem, entropy=entropy)
    assert plan.dtype == torch.float32 and plan.shape == size and (plan >= 0).all()
    torch.testing.assert_close(plan.sum(dim=-2), problem[2].float().expand(*size[:-2], -1), rtol=1e-4, atol=1e-6)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(sorted(COSTS)), sharpness=st.sampled_from([1.0, 5.0]))
def test_rows_are_met_to_the_tolerance_where_the_paper_works(seed: int, kind: str, sharpness: float) -> None:
    """lambda = 0.2 and costs in [0, 1]: the standard 100 iterations suffice."""
    problem = draw(seed, 3, 12, 5, kind=kind, sharpness=sharpness)
    assert (lack(sinkhorn(*problem, entropy=0.2), problem[1]) <= 1.01e-3).all()


def test_a_plan_does_not_depend_on_its_neighbours() -> None:
    cost, rows, columns = draw(0, 6, 9, 4)
    cost[3:] *= torch.tensor([0.0, 1.0, 10.0])[:, None, None]  # some of them take many more iterations
    together = sinkhorn(cost, rows, columns, entropy=0.05)
    alone = torch.stack([sinkhorn(*one, columns, entropy=0.05) for one in zip(cost, rows, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-8)


def test_the_plan_is_a_constant_unless_unrolled() -> None:
    cost, rows, columns = draw(0, 5, 3)
    assert not sinkhorn(cost.requires_grad_(), rows.requires_grad_(), columns, entropy=0.2).requires_grad
    assert sinkhorn(cost, rows, columns, entropy=0.2, unroll=True).requires_grad


def test_unrolled_gradients_are_those_of_the_plan() -> None:
    cost, rows, columns = draw(0, 2, 4, 3, dtype=torch.float64)

    def plan(cost: Tensor, rows: Tensor) -> Tensor:
        return sinkhorn(cost, rows, columns, entropy=0.2, tolerance=0, iterations=5, unroll=True)

    assert torch.autograd.gradcheck(plan, (cost.requires_grad_(), rows.requires_grad_()))


def test_unrolled_gradients_are_numbers_where_masses_are_zero() -> None:
    cost, rows, columns = draw(0, 6, 4, sharpness=300.0)
    assert (rows == 0).any()
    plan = sinkhorn(cost.requires_grad_(), rows.requires_grad_(), columns, entropy=0.01, unroll=True)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad((plan * cost).sum(), (cost, rows)))


def test_the_value_changes_with_the_cost_as_the_plan_says() -> None:
    """The envelope theorem, which is why the plan may be held fixed."""
    cost, rows, columns = draw(0, 6, 4, dtype=torch.float64)
    plan = sinkhorn(cost.requires_grad_(), rows, columns, entropy=0.1, tolerance=0, iterations=300, unroll=True)
    value = (plan * cost + 0.1 * plan * (plan.log() - 1)).sum()
    torch.testing.assert_close(torch.autograd.grad(value, cost)[0], plan.detach(), rtol=1e-6, atol=1e-9)


RULES = {"row_rule": (balanced, partial, unbalanced(0.3)), "column_rule": (balanced, partial, unbalanced(2.0))}


def on_logarithms(monkeypatch: pytest.MonkeyPatch, *problem: Tensor, **options: Any) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(ops, "MAX_EXPONENT", -1.0)
        return sinkhorn(*problem, **options)


@pytest.mark.parametrize("row_rule", RULES["row_rule"])
@pytest.mark.parametrize("column_rule", RULES["column_rule"])
def test_scalings_and_their_logarithms_give_one_plan_and_one_gradient(
    row_rule: MarginalRule, column_rule: MarginalRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost, rows, columns = draw(0, 4, 9, 3, dtype=torch.float64)
    leaves = cost.requires_grad_(), rows.requires_grad_(), columns.mul(0.8).requires_grad_()
    options: dict[str, Any] = {"entropy": 0.1, "row_rule": row_rule, "column_rule": column_rule, "unroll": True}
    plans = sinkhorn(*leaves, **options), on_logarithms(monkeypatch, *leaves, **options)
    torch.testing.assert_close(*plans, rtol=1e-9, atol=1e-12)
    gradients = [torch.autograd.grad((plan * torch.arange(3.0)).square().sum(), leaves) for plan in plans]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-11)


def test_moderate_costs_are_solved_without_logarithms(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw(0, 5, 64, 2)
    dearer = (problem[0] + 5, *problem[1:])  # a kernel as small as exp(-60), of exp(-50) at most
    plans = sinkhorn(*problem, entropy=0.1), on_logarithms(monkeypatch, *problem, entropy=0.1)
    torch.testing.assert_close(*plans, rtol=1e-5, atol=1e-9)
    monkeypatch.setattr(ops, "LOGARITHMS", None)
    torch.testing.assert_close(sinkhorn(*dearer, entropy=0.1), plans[0], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("entropy", [1e-3, 0.02, 0.05, 1e4])
def test_a_batch_that_needs_both_domains_is_solved_right(entropy: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs from 1e-3 to 10, a zero row and masses of which some vanish."""
    cost, rows, columns = draw(1, 6, 5, 3, sharpness=3.0, dtype=torch.float64)
    cost *= torch.logspace(-3, 1, 6)[:, None, None]
    rows[:, 0] = 0
    rows /= rows.sum(dim=1, keepdim=True)
    problem = (cost, rows, columns)
    options: dict[str, Any] = {"entropy": entropy, "tolerance": 1e-5, "iterations": 3000}
    plan = sinkhorn(*(part.float() for part in problem), **options)
    assert plan.isfinite().all() and (plan[:, 0] < 1e-30).all()
    torch.testing.assert_close(plan.sum(dim=1), columns.float().expand(6, -1), rtol=1e-3, atol=1e-6)
    for number, one in enumerate(zip(cost, rows, strict=True)):
        alone = sinkhorn(*(part.float() for part in (*one, columns)), **options)
        torch.testing.assert_close(plan[number], alone, rtol=1e-5, atol=1e-8)
    precise = on_logarithms(monkeypatch, *problem, **options)  # POT takes no masses of zero
    torch.testing.assert_close(plan, precise.float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("columns", [0.5, 2.0])
@pytest.mark.parametrize("row_rule", [balanced, partial])
def test_scalings_that_drift_out_of_range_are_replaced_by_logarithms(columns: float, row_rule: MarginalRule) -> None:
    """Totals that differ, which no plan meets: every iteration multiplies the scalings by the same factor."""
    cost, rows, alike = draw(0, 3, 6, 4)
    plan = sinkhorn(cost, rows, columns * alike, entropy=0.1, row_rule=row_rule, tolerance=0, iterations=400)
    torch.testing.assert_close(plan.sum(dim=1), columns * alike.expand(3, -1), rtol=1e-4, atol=0)


def test_gradients_are_numbers_in_a_batch_that_needs_both_domains(monkeypatch: pytest.MonkeyPatch) -> None:
    """One problem of three leaves float32's range at its cost, one by scalings that drift."""
    cost, rows, columns = draw(0, 3, 6, 4)
    cost[1] *= 100
    rows[2] *= 2
    leaves = cost.requires_grad_(), rows.requires_grad_(), columns.requires_grad_()
    options: dict[str, Any] = {"entropy": 0.1, "tolerance": 0, "iterations": 150, "unroll": True}
    plans = sinkhorn(*leaves, **options), on_logarithms(monkeypatch, *leaves, **options)
    gradients = [torch.autograd.grad((plan * torch.arange(4.0)).sum(), leaves) for plan in plans]
    torch.testing.assert_close(*plans, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_no_temporary_is_larger_than_the_plan() -> None:
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = operation(*args, **kwargs or {})
            if isinstance(result, Tensor):
                self.elements = max(self.elements, result.numel())
            return result

    cost, rows, columns = draw(0, 3, 20, 7)
    with Largest() as largest:
        sinkhorn(cost, rows, columns, entropy=0.05)
    assert largest.elements == cost.numel()
