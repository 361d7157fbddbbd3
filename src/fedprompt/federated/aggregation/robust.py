"""Byzantine-robust aggregation rules that compare whole updates: Krum, geometric median, clipping, cosine filter.

Every rule here turns the Gram matrix [n, n] of the clients' changes (plus, for some, one more vector) into client
weights; the new state is then one weighted mean. So a rule is a few lines on a small matrix, in float64.
Legend: n updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprompt.errors import UserError
from fedprompt.federated.aggregation.base import TooFewError, change
from fedprompt.updates import AGGREGATE_CLIENT, AggregationRule, State, Update, weighted_mean

STEPS = 32  # of Weiszfeld's iteration: Pillutla et al. saw it converge in fewer than ten
TIE = 1e-12  # Krum scores that differ by less are equal up to rounding; in units of the sum of squared lengths
NEAR = 1e-6  # distance below which two updates count as the same, in units of the median length of a change

Reweigh = Callable[[Tensor, Tensor], Tensor]  # (Gram matrix [n, n], weights [n]) -> weights [n], float64


def gram(shared: State, updates: Sequence[Update]) -> Tensor:
    """Gram matrix of the changes: inner products [n, n], float64; a tensor that was not sent is a zero change."""
    products = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    for name, before in shared.items():
        rows = torch.stack([change(update, name, before).flatten() for update in updates])  # [n, N]
        products += rows @ rows.T
    return products


def squared_distances(products: Tensor) -> Tensor:
    """Squared distances [n, n] of vectors with these inner products."""
    squares = products.diagonal()
    return (squares[:, None] + squares[None, :] - 2 * products).clamp(min=0)


@dataclass(frozen=True)
class Reweighted:
    """An aggregation rule without memory: the weighted mean, with weights that `reweigh` computes."""

    reweigh: Reweigh

    def __call__(
        self, shared: State, updates: Sequence[Update], weights: Sequence[float], memory: State
    ) -> tuple[State, State]:
        """Return the new shared state, and no memory."""
        chosen = self.reweigh(gram(shared, updates), torch.tensor(weights, dtype=torch.float64))
        return weighted_mean(shared, updates, chosen.tolist()), {}


def geometric_median() -> AggregationRule:
    """The point with the smallest weighted sum of distances (RFA; Pillutla et al., 2019).

    Withstands fewer than half adversaries. Computed by Weiszfeld's algorithm.
    """

    def reweigh(products: Tensor, weights: Tensor) -> Tensor:
        near = (NEAR * products.diagonal().median().sqrt()).clamp(min=torch.finfo(torch.float64).tiny)
        # Start from the closer half: from the mean, so few steps could not get away from one adversary far enough off.
        apart = squared_distances(products).sqrt() @ weights
        found = (apart <= apart.median()) * weights
        found = found / found.sum()
        for _ in range(STEPS):
            squares = products.diagonal() - 2 * products @ found + found @ products @ found  # [n], to the centre
            found = weights / squares.clamp(min=0).sqrt().clamp(min=near)
            found = found / found.sum()
        return found

    return Reweighted(reweigh)


def krum(*, adversaries: int = 1) -> AggregationRule:
    """The one update with the closest neighbours, unweighted (Blanchard et al., 2017). Needs 2 `adversaries` + 3."""
    return _krum("krum", adversaries, chosen=lambda count: 1)


def multi_krum(*, adversaries: int = 1) -> AggregationRule:
    """The mean of all but the `adversaries` updates with the farthest neighbours (Blanchard et al., 2017)."""
    return _krum("multi_krum", adversaries, chosen=lambda count: count - adversaries)


def _krum(name: str, adversaries: int, *, chosen: Callable[[int], int]) -> AggregationRule:
    _not_negative(adversaries)

    def reweigh(products: Tensor, weights: Tensor) -> Tensor:
        count = len(weights)
        if count < 2 * adversaries + 3:
            raise TooFewError(name, 2 * adversaries + 3, count)
        nearest = squared_distances(products).sort(dim=1).values[:, 1 : count - adversaries - 1]  # the first is itself
        scores = nearest.sum(dim=1)
        last = scores.sort().values[chosen(count) - 1]
        # differs: updates with equal scores share the last place, where the paper takes any: order must not count
        tied = (scores - last).abs() <= TIE * products.diagonal().sum()
        sure = (scores < last) & ~tied
        kept = weights * (sure + tied * (chosen(count) - sure.sum()) / tied.sum())
        return kept / kept.sum()

    return Reweighted(reweigh)


def norm_bounded_mean(*, bound: float = 1.0) -> AggregationRule:
    """The weighted mean of changes shortened to `bound` times their median length (Sun et al., 2019)."""
    _positive(bound=bound)

    def reweigh(products: Tensor, weights: Tensor) -> Tensor:
        norms = products.diagonal().sqrt()
        return weights * _shorten(norms, bound * norms.median())

    return Reweighted(reweigh)


def centred_clipping(*, radius: float = 1.0, steps: int = 3) -> AggregationRule:
    """Centred clipping (Karimireddy et al., 2021): v <- v + mean_i (x_i - v) clipped to a radius, `steps` times.

    v starts from the last round's result, so this rule has a memory. `radius` is in units of the median distance to v.
    """
    # differs: the paper's radius is a length; in medians it needs no tuning when steps shrink over the rounds
    _positive(radius=radius, steps=steps)

    def combine(
        shared: State, updates: Sequence[Update], weights: Sequence[float], memory: State
    ) -> tuple[State, State]:
        centre = {name: (before.double() + memory[name]).to(before.dtype) for name, before in shared.items() if memory}
        rows = [*updates, _pseudo(centre)]
        products = gram(shared, rows)
        at = torch.zeros(len(rows), dtype=torch.float64)  # v as a combination of the updates and the old centre
        at[-1] = 1.0
        given = torch.tensor([*weights, 0.0], dtype=torch.float64)
        for _ in range(steps):
            squares = products.diagonal() - 2 * products @ at + at @ products @ at
            distances = squares.clamp(min=0).sqrt()
            moves = given * _shorten(distances, radius * distances[:-1].median())
            at = (1 - moves.sum()) * at + moves
        moved = weighted_mean(shared, rows, at.tolist())
        return moved, {name: moved[name].double() - before for name, before in shared.items()}

    return combine


def cosine_filter(*, share: float = 0.3) -> AggregationRule:
    """The weighted mean without the `share` of updates with the lowest cosine similarity to the mean change."""
    # differs: the baseline that FedMPT's comparison calls FedAWA drops the 30% that agree best with the mean
    if not 0 <= share < 1:
        raise UserError(f"The option share = {share} of cosine_filter must be at least 0 and below 1.")

    def reweigh(products: Tensor, weights: Tensor) -> Tensor:
        lengths = products.diagonal().sqrt() * (weights @ products @ weights).clamp(min=0).sqrt()
        cosines = (products @ weights) / lengths.clamp(min=torch.finfo(torch.float64).tiny)
        kept = weights.clone()
        kept[cosines.argsort(stable=True)[: int(share * len(weights) + 1e-9)]] = 0
        return kept / kept.sum()

    return Reweighted(reweigh)


def _pseudo(state: State) -> Update:
    return Update(client=AGGREGATE_CLIENT, num_examples=1, shared=state, personal={}, loss=0.0, seconds=0.0)


def _shorten(lengths: Tensor, longest: Tensor) -> Tensor:
    """The factors that bring lengths down to `longest`; 1 for those that are no longer."""
    return torch.where(lengths > longest, longest / lengths, 1.0)


def _not_negative(adversaries: int) -> None:
    if adversaries < 0:
        raise UserError(f"The option adversaries = {adversaries} cannot be negative.")


def _positive(**options: float) -> None:
    for name, value in options.items():
        if not 0 < value < math.inf:
            raise UserError(f"The option {name} = {value} must be above 0 and finite.")
