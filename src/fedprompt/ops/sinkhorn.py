"""Entropic optimal transport (Cuturi, 2013), many problems at once and in logarithms: balanced, partial, unbalanced.

Legend: M rows, C columns, ... or N independent problems, n of them not yet solved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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
    that is done stays as it is, so its plan does not depend on the others. Everything is computed, and
    returned, in float32 at least. The plan is a constant to gradients and takes the memory of a few plans; `unroll`
    differentiates through the iterations and keeps them all.
    """
    problem = (cost, rows, columns) if unroll else (cost.detach(), rows.detach(), columns.detach())
    cost, rows, columns = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in problem)
    kernel = (cost / -entropy).reshape(-1, *cost.shape[-2:])  # [N, M, C]
    masses = (mass.expand(*cost.shape[:-2], -1).reshape(len(kernel), -1) for mass in (rows, columns))  # [N, M], [N, C]
    # Scalings are logarithms too.
    log_rows, log_columns = (mass.clamp(min=torch.finfo(mass.dtype).tiny).log() for mass in masses)

    def answer(part: Part, row_scale: Tensor) -> Tensor:
        reached = (part.kernel + row_scale[:, :, None]).logsumexp(dim=1)  # [n, C]
        return column_rule(part.columns - reached, entropy)

    part, left = Part(kernel, log_rows, log_columns), torch.arange(len(kernel), device=kernel.device)
    row_scale = torch.zeros_like(log_rows)
    column_scale = answer(part, row_scale)
    scales = row_scale, column_scale  # of all problems, as they were when some of them last left
    for _ in range(iterations):
        reached = (part.kernel + column_scale[:, None, :]).logsumexp(dim=2)  # [n, M]
        better = row_rule(part.rows - reached, entropy)
        moved = (better + reached).exp() - (row_scale + reached).exp()  # for `exactly`, what the row sums lack
        done = moved.abs().sum(dim=1) <= tolerance  # [n]
        if done.all():
            break
        row_scale = torch.where(done[:, None], row_scale, better)
        column_scale = answer(part, row_scale)
        if 2 * int(done.sum()) > len(done):  # a few problems take many more iterations than the rest
            scales = _put(scales, left, (row_scale, column_scale))
            part, left = part.take(~done), left[~done]
            row_scale, column_scale = row_scale[~done], column_scale[~done]
    row_scale, column_scale = _put(scales, left, (row_scale, column_scale))
    return (kernel + row_scale[:, :, None] + column_scale[:, None, :]).exp().reshape(cost.shape)  # [..., M, C]


class Part(NamedTuple):
    """Some of the problems: kernels [n, M, C] and logarithms of the marginals [n, M], [n, C]."""

    kernel: Tensor
    rows: Tensor
    columns: Tensor

    def take(self, which: Tensor) -> Part:
        """Those that the mask [n] names; rows lie next to each other in memory, which sums over few columns need."""
        return Part(self.kernel.mT[which].mT, self.rows[which], self.columns[which])


def _put(scales: tuple[Tensor, Tensor], places: Tensor, newer: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return scales[0].index_copy(0, places, newer[0]), scales[1].index_copy(0, places, newer[1])
