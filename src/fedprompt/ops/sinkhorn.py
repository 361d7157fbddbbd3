"""Entropic optimal transport (Sinkhorn; Cuturi, 2013): balanced, partial or unbalanced, batched, in log space.

Legend: M rows, C columns, ... or N independent problems, n of them not yet solved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# (log scaling that would meet a marginal exactly, entropy) -> log scaling to use; the forms of Chizat et al. (2018)
MarginalRule = Callable[[Tensor, float], Tensor]


def balanced(log_scaling: Tensor, entropy: float) -> Tensor:
    """The marginal is met exactly."""
    return log_scaling


def partial(log_scaling: Tensor, entropy: float) -> Tensor:
    """The marginal is an upper bound, which makes the transport partial."""
    return log_scaling.clamp(max=0)


def unbalanced(marginal_penalty: float) -> MarginalRule:
    """Unbalanced: the marginal m may differ from the given g at a cost of marginal_penalty * KL(m | g); it is > 0."""
    return lambda log_scaling, entropy: log_scaling / (1 + entropy / marginal_penalty)


def sinkhorn(  # noqa: PLR0913  (a problem is three tensors; the rest has one obvious value each)
    cost: Tensor,
    rows: Tensor,
    columns: Tensor,
    *,
    entropy: float,
    row_rule: MarginalRule = balanced,
    column_rule: MarginalRule = balanced,
    tolerance: float = 1e-3,
    iterations: int = 100,
    unroll: bool = False,
) -> Tensor:
    """The plan P [..., M, C] that minimises <P, cost> + entropy * sum P (log P - 1) for marginals [..., M], [..., C].

    It transports the masses `rows` to `columns`, which have the same total unless a rule lets them differ. Column sums
    obey their rule exactly; row sums are off by at most `tolerance` in total, or more if `iterations` run out. A
    converged problem is not updated further, so its plan does not depend on the others. Computed and returned in
    float32 or wider. Without `unroll` the plan is a constant to gradients; `unroll` differentiates through the
    iterations, which takes the memory of all of them.
    """
    problem = (cost, rows, columns) if unroll else (cost.detach(), rows.detach(), columns.detach())
    cost, rows, columns = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in problem)
    kernel = (cost / -entropy).reshape(-1, *cost.shape[-2:])  # [N, M, C]
    masses = (mass.expand(*cost.shape[:-2], -1).reshape(len(kernel), -1) for mass in (rows, columns))  # [N, M], [N, C]
    # Scalings are kept as logarithms too.
    log_rows, log_columns = (mass.clamp(min=torch.finfo(mass.dtype).tiny).log() for mass in masses)

    def answer(part: Part, row_scale: Tensor) -> Tensor:
        reached = (part.kernel + row_scale[:, :, None]).logsumexp(dim=1)  # [n, C]
        return column_rule(part.columns - reached, entropy)

    part, left = Part(kernel, log_rows, log_columns), torch.arange(len(kernel), device=kernel.device)
    row_scale = torch.zeros_like(log_rows)
    column_scale = answer(part, row_scale)
    scales = row_scale, column_scale  # of all problems, as of the last time that converged ones were set aside
    for _ in range(iterations):
        reached = (part.kernel + column_scale[:, None, :]).logsumexp(dim=2)  # [n, M]
        better = row_rule(part.rows - reached, entropy)
        moved = (better + reached).exp() - (row_scale + reached).exp()  # for `balanced`, the error of the row sums
        done = moved.abs().sum(dim=1) <= tolerance  # [n]
        if done.all():
            break
        row_scale = torch.where(done[:, None], row_scale, better)
        column_scale = answer(part, row_scale)
        if 2 * int(done.sum()) > len(done):  # a few problems take many more iterations than the others
            scales = _put(scales, left, (row_scale, column_scale))
            part, left = part.take(~done), left[~done]
            row_scale, column_scale = row_scale[~done], column_scale[~done]
    row_scale, column_scale = _put(scales, left, (row_scale, column_scale))
    return (kernel + row_scale[:, :, None] + column_scale[:, None, :]).exp().reshape(cost.shape)  # [..., M, C]


class Part(NamedTuple):
    """A subset of the problems: kernels [n, M, C] and logarithms of the marginals [n, M], [n, C]."""

    kernel: Tensor
    rows: Tensor
    columns: Tensor

    def take(self, which: Tensor) -> Part:
        """The problems in the mask [n]; rows are kept contiguous in memory, which makes sums over few columns fast."""
        return Part(self.kernel.mT[which].mT, self.rows[which], self.columns[which])


def _put(scales: tuple[Tensor, Tensor], places: Tensor, newer: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return scales[0].index_copy(0, places, newer[0]), scales[1].index_copy(0, places, newer[1])
