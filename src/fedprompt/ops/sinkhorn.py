"""Entropic optimal transport (Cuturi, 2013), many problems at once and in logarithms: balanced, partial, unbalanced.

Legend: M rows, C columns, ... independent problems.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# (the log scaling that would meet a marginal exactly, entropy) -> the one to use; the forms of Chizat et al. (2018)
Rule = Callable[[Tensor, float], Tensor]


def exactly(meeting: Tensor, entropy: float) -> Tensor:
    """The marginal is as given."""
    return meeting


def at_most(meeting: Tensor, entropy: float) -> Tensor:
    """The marginal is as given or less, which makes the transport partial."""
    return meeting.clamp(max=0)


def near(pull: float) -> Rule:
    """A marginal that differs costs pull * KL(it | as given), pull > 0, which makes the transport unbalanced."""
    return lambda meeting, entropy: meeting / (1 + entropy / pull)


def sinkhorn(  # noqa: PLR0913  (a problem is three tensors; the rest has one obvious value each)
    cost: Tensor,
    rows: Tensor,
    columns: Tensor,
    *,
    entropy: float,
    row_rule: Rule = exactly,
    column_rule: Rule = exactly,
    tolerance: float = 1e-3,
    iterations: int = 100,
    unroll: bool = False,
) -> Tensor:
    """The plan P [..., M, C] that minimises <P, cost> + entropy * sum P (log P - 1) for marginals [..., M], [..., C].

    It moves the masses `rows` to `columns`, which have the same total unless a rule lets them differ. Column sums obey
    their rule exactly; row sums are off by at most `tolerance` in total, or less well after `iterations`. A problem
    that is done waits for the others unchanged, so its plan does not depend on them. Everything is computed, and
    returned, in float32 at least. The plan is a constant to gradients and takes the memory of a few plans; `unroll`
    differentiates through the iterations and keeps them all.
    """
    problem = (cost, rows, columns) if unroll else (cost.detach(), rows.detach(), columns.detach())
    cost, rows, columns = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in problem)
    kernel = cost / -entropy  # [..., M, C]
    log_rows, log_columns = (mass.clamp(min=torch.finfo(mass.dtype).tiny).log() for mass in (rows, columns))

    def answer(row_scale: Tensor) -> Tensor:
        reached = (kernel + row_scale[..., None]).logsumexp(dim=-2)  # [..., C]
        return column_rule(log_columns - reached, entropy)

    row_scale = torch.zeros_like(log_rows)  # [..., M], scalings are logarithms too
    column_scale = answer(row_scale)  # [..., C]
    for _ in range(iterations):
        reached = (kernel + column_scale[..., None, :]).logsumexp(dim=-1)  # [..., M]
        better = row_rule(log_rows - reached, entropy)
        moved = (better + reached).exp() - (row_scale + reached).exp()  # for `exactly`, what the row sums lack
        done = moved.abs().sum(dim=-1, keepdim=True) <= tolerance  # [..., 1]
        if done.all():
            break
        row_scale = torch.where(done, row_scale, better)
        column_scale = answer(row_scale)
    return (kernel + row_scale[..., None] + column_scale[..., None, :]).exp()  # [..., M, C]
