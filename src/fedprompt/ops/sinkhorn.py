"""Entropic optimal transport (Sinkhorn; Cuturi, 2013): balanced, partial or unbalanced, batched.

A problem is solved on its scalings or, where those may leave the range of float32, on their logarithms.
Legend: M rows, C columns, ... or N independent problems, n of them not yet solved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# A problem is solved on its scalings if its kernel is between exp(-MAX_EXPONENT) and exp(MAX_EXPONENT), relative to the
# largest entry if the columns are met exactly, and if the largest scalings of rows and of columns end between
# 1 / MAX_SCALING and MAX_SCALING. Then all sums are far from the ends of float32, 1e-38 and 3e38.
MAX_EXPONENT, MAX_SCALING = 30.0, 1e20


class Domain(NamedTuple):
    """Arithmetic of positive numbers, which are kept as they are or as their logarithms."""

    one: float
    keep: Callable[[Tensor], Tensor]  # a number
    keep_exp: Callable[[Tensor], Tensor]  # the exponential of a number
    read: Callable[[Tensor], Tensor]
    multiply: Callable[[Tensor, Tensor], Tensor]
    divide: Callable[[Tensor, Tensor], Tensor]
    power: Callable[[Tensor, float], Tensor]
    total: Callable[[Tensor, int], Tensor]


def _same(numbers: Tensor) -> Tensor:
    return numbers


PLAIN = Domain(1.0, _same, torch.exp, _same, torch.mul, torch.div, torch.pow, torch.sum)
LOGARITHMS = Domain(0.0, torch.log, _same, torch.exp, torch.add, torch.sub, torch.mul, torch.logsumexp)


@dataclass(frozen=True)
class MarginalRule:
    """How a marginal binds; the forms of Chizat et al. (2018).

    at_most: the marginal is an upper bound, which makes the transport partial.
    penalty: the marginal m may differ from the given g at a cost of penalty * KL(m | g); it is > 0.
    """

    at_most: bool = False
    penalty: float = math.inf

    @property
    def exact(self) -> bool:
        """Whether the marginal is met exactly, so that the rule does not depend on the unit of the scaling."""
        return not self.at_most and self.penalty == math.inf

    def __call__(self, scaling: Tensor, entropy: float, domain: Domain) -> Tensor:
        """The scaling to use instead of the one that would meet the marginal exactly."""
        if self.penalty < math.inf:
            scaling = domain.power(scaling, 1 / (1 + entropy / self.penalty))
        return scaling.clamp(max=domain.one) if self.at_most else scaling


balanced, partial = MarginalRule(), MarginalRule(at_most=True)


def unbalanced(marginal_penalty: float) -> MarginalRule:
    """The marginal m may differ from the given g at a cost of marginal_penalty * KL(m | g); it is > 0."""
    return MarginalRule(penalty=marginal_penalty)


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
    iterations, which takes the memory of all of them. Few columns are fastest if rows are contiguous in memory.
    """
    problem = (cost, rows, columns) if unroll else (cost.detach(), rows.detach(), columns.detach())
    cost, rows, columns = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in problem)
    exponent = (cost / -entropy).reshape(-1, *cost.shape[-2:])  # [N, M, C]
    if column_rule.exact:  # then scalings of the columns make up for any factor of the kernel
        exponent = exponent - exponent.detach().amax(dim=(1, 2), keepdim=True)
    masses = (mass.expand(*cost.shape[:-2], -1).reshape(len(exponent), -1) for mass in (rows, columns))  # [N, M and C]
    problems = Problems(exponent, *(mass.clamp(min=torch.finfo(mass.dtype).tiny) for mass in masses))
    iteration = Iteration(entropy, row_rule, column_rule, tolerance, iterations)

    plain = exponent.detach().abs().amax(dim=(1, 2)) <= MAX_EXPONENT  # [N]
    plan, fits = iteration.solve(problems.take(plain), PLAIN)
    if not fits.all():
        plain = plain.masked_scatter(plain, fits)
        plan, _ = iteration.solve(problems.take(plain), PLAIN)
    if not plain.all():
        others, _ = iteration.solve(problems.take(~plain), LOGARITHMS)
        plan = torch.empty_like(exponent).index_put((plain,), plan).index_put((~plain,), others)
    return plan.reshape(cost.shape)  # [..., M, C]


class Problems(NamedTuple):
    """Logarithms of kernels [n, M, C], and marginals [n, M], [n, C]; or all of these as a domain keeps them."""

    kernel: Tensor
    rows: Tensor
    columns: Tensor

    def take(self, which: Tensor) -> Problems:
        """The problems in the mask [n], in the same layout in memory."""
        return self if which.all() else Problems(*(part[which] for part in self))


class Iteration(NamedTuple):
    """Sinkhorn's iteration in either domain."""

    entropy: float
    row_rule: MarginalRule
    column_rule: MarginalRule
    tolerance: float
    iterations: int

    def solve(self, problems: Problems, domain: Domain) -> tuple[Tensor, Tensor]:
        """The plans [n, M, C], and whether their largest scalings are moderate [n]."""
        problems = Problems(domain.keep_exp(problems.kernel), domain.keep(problems.rows), domain.keep(problems.columns))
        scalings = self._scalings(problems, domain)
        largest = torch.stack([domain.read(one.detach().amax(dim=1)) for one in scalings])  # [2, n]
        moderate = (largest > 1 / MAX_SCALING) & (largest < MAX_SCALING)
        row_scale, column_scale = scalings
        plan = domain.multiply(domain.multiply(problems.kernel, row_scale[:, :, None]), column_scale[:, None, :])
        return domain.read(plan), moderate.all(dim=0)

    def _scalings(self, part: Problems, domain: Domain) -> tuple[Tensor, Tensor]:
        """The scalings of rows [n, M] and columns [n, C] that make kernels into plans."""
        left = torch.arange(len(part.kernel), device=part.kernel.device)
        row_scale = torch.full_like(part.rows, domain.one)
        column_scale = self._columns(part, row_scale, domain)
        scales = row_scale, column_scale  # of all problems, as of the last time that converged ones were set aside
        for _ in range(self.iterations):
            reached = domain.total(domain.multiply(part.kernel, column_scale[:, None, :]), 2)  # [n, M]
            better = self.row_rule(domain.divide(part.rows, reached), self.entropy, domain)
            # for `balanced`, the error of the row sums
            moved = domain.read(domain.multiply(better, reached)) - domain.read(domain.multiply(row_scale, reached))
            done = moved.detach().abs_().sum(dim=1) <= self.tolerance  # [n]
            if done.all():
                break
            row_scale = torch.where(done[:, None], row_scale, better)
            column_scale = self._columns(part, row_scale, domain)
            if 2 * int(done.sum()) > len(done):  # a few problems take many more iterations than the others
                scales = _put(scales, left, (row_scale, column_scale))
                part, left = part.take(~done), left[~done]
                row_scale, column_scale = row_scale[~done], column_scale[~done]
        return _put(scales, left, (row_scale, column_scale))

    def _columns(self, part: Problems, row_scale: Tensor, domain: Domain) -> Tensor:
        reached = domain.total(domain.multiply(part.kernel, row_scale[:, :, None]), 1)  # [n, C]
        return self.column_rule(domain.divide(part.columns, reached), self.entropy, domain)


def _put(scales: tuple[Tensor, Tensor], places: Tensor, newer: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return scales[0].index_copy(0, places, newer[0]), scales[1].index_copy(0, places, newer[1])
