"""Robust rules that look at whole updates: all they need is the inner products of the changes, [n, n].

Every rule here turns the Gram matrix of the clients' changes (plus, for some, one more vector) into client weights;
the new state is then one weighted mean. So a rule is a few lines on a small matrix, in float64.
Legend: n updates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedprompt.errors import UserError
from fedprompt.federated.aggregation.base import Rule, TooFewError, change, without_memory
from fedprompt.updates import COHORT, State, Update, weighted_mean

STEPS = 32  # of Weiszfeld's iteration: Pillutla et al. saw it converge in fewer than ten
TIE = 1e-12  # difference of sums of squared distances that rounding may make, in the sum of squared lengths
NEAR = 1e-6  # a distance below which two updates count as the same, in median lengths of a change

Reweigh = Callable[[Tensor, Tensor], Tensor]  # (Gram matrix [n, n], weights [n]) -> weights [n], float64


def gram(shared: State, updates: Sequence[Update]) -> Tensor:
    """Inner products of the changes, [n, n] float64, tensor by tensor; a tensor that was not sent is a zero change."""
    products = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    for name, before in shared.items():
        rows = torch.stack([change(update, name, before).flatten() for update in updates])  # [n, N]
        products += rows @ rows.T
    return products


def squared_distances(products: Tensor) -> Tensor:
    """Squared distances [n, n] of vectors with these inner products."""
    squares = products.diagonal()
    return (squares[:, None] + squares[None, :] - 2 * products).clamp(min=0)


def by_weights(reweigh: Reweigh) -> Rule:
    """The rule that takes the weighted mean with other weights."""

    def combine(shared: State, updates: Sequence[Update], weights: Sequence[float]) -> State:
        chosen = reweigh(gram(shared, updates), torch.tensor(weights, dtype=torch.float64))
        return weighted_mean(shared, updates, chosen.tolist())

    return without_memory(combine)


def geometric_median() -> Rule:
    """The point with the smallest weighted sum of distances (RFA; Pillutla et al., 2019). Withstands less than half."""

    def reweigh(products: Tensor, weights: Tensor) -> Tensor:
        near = (NEAR * products.diagonal().median().sqrt()).clamp(min=torch.finfo(torch.float64).tiny)
        # From the mean, one adversary far enough away could not be left behind in so few steps.
        apart = squared_distances(products).sqrt() @ weights
        found = (apart <= apart.median()) * weights
        found = found / found.sum()
        for _ in range(STEPS):
            squares = products.diagonal() - 2 * products @ found + found @ products @ found  # [n], to the centre
            found = weights / squares.clamp(min=0).sqrt().clamp(min=near)
            found = found / found.sum()
        return found

    return by_weights(reweigh)


def krum(*, attackers: int = 1) -> Rule:
    """The one update with the closest neighbours (Blanchard et al., 2017); needs 2 `attackers` + 3 updates."""
    return _krum("krum", attackers, chosen=lambda count: 1)


def multi_krum(*, attackers: int = 1) -> Rule:
    """The mean of all but the `attackers` updates with the farthest neighbours (Blanchard et al., 2017)."""
    return _krum("multi_krum", attackers, chosen=lambda count: count - attackers)


def _krum(name: str, attackers: int, *, chosen: Callable[[int], int]) -> Rule:
    _at_least_none(attackers)

    def reweigh(products: Tensor, weights: Tensor) -> Tensor:
        count = len(weights)
        if count < 2 * attackers + 3:
            raise TooFewError(name, 2 * attackers + 3, count)
        nearest = squared_distances(products).sort(dim=1).values[:, 1 : count - attackers - 1]  # the first is itself
        scores = nearest.sum(dim=1)
        last = scores.sort().values[chosen(count) - 1]
        # differs: updates with equal scores share the last place, where the paper takes any: order must not count
        tied = (scores - last).abs() <= TIE * products.diagonal().sum()
        sure = (scores < last) & ~tied
        kept = weights * (sure + tied * (chosen(count) - sure.sum()) / tied.sum())
        return kept / kept.sum()

    return by_weights(reweigh)


def norm_bounded_mean(*, bound: float = 1.0) -> Rule:
    """The weighted mean of changes shortened to `bound` times their median length (Sun et al., 2019)."""
    _positive(bound=bound)

    def reweigh(products: Tensor, weights: Tensor) -> Tensor:
        norms = products.diagonal().sqrt()
        return weights * _shorten(norms, bound * norms.median())

    return by_weights(reweigh)


def centred_clipping(*, radius: float = 1.0, steps: int = 3) -> Rule:
    """Steps of v <- v + mean of (x - v) shortened to a radius (Karimireddy et al., 2021), from the last round's v.

    `radius` counts in medians of the distances to v.
    """
    # differs: the paper's radius is a length; in medians it needs no tuning when steps shrink over the rounds
    _positive(radius=radius, steps=steps)

    def combine(
        shared: State, updates: Sequence[Update], weights: Sequence[float], memory: State
    ) -> tuple[State, State]:
        centre = {name: (before.double() + memory[name]).to(before.dtype) for name, before in shared.items() if memory}
        rows = [*updates, _pseudo(centre)]
        products = gram(shared, rows)
        at = torch.zeros(len(rows), dtype=torch.float64)  # v as a combination of updates and old centre
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


def cosine_filter(*, share: float = 0.3) -> Rule:
    """The weighted mean without the `share` of updates that point farthest away from the mean change."""
    # differs: the baseline that FedMPT's comparison calls FedAWA drops the 30% that agree best with the mean
    if not 0 <= share < 1:
        raise UserError(f"The option share = {share} of cosine_filter must be at least 0 and below 1.")

    def reweigh(products: Tensor, weights: Tensor) -> Tensor:
        lengths = products.diagonal().sqrt() * (weights @ products @ weights).clamp(min=0).sqrt()
        cosines = (products @ weights) / lengths.clamp(min=torch.finfo(torch.float64).tiny)
        kept = weights.clone()
        kept[cosines.argsort(stable=True)[: int(share * len(weights) + 1e-9)]] = 0
        return kept / kept.sum()

    return by_weights(reweigh)


def _pseudo(state: State) -> Update:
    return Update(client=COHORT, num_examples=1, shared=state, personal={}, loss=0.0, seconds=0.0)


def _shorten(lengths: Tensor, longest: Tensor) -> Tensor:
    """The factors that bring lengths down to `longest`; 1 for those that are no longer."""
    return torch.where(lengths > longest, longest / lengths, 1.0)


def _at_least_none(attackers: int) -> None:
    if attackers < 0:
        raise UserError(f"The option attackers = {attackers} cannot be negative.")


def _positive(**options: float) -> None:
    for name, value in options.items():
        if not value > 0:
            raise UserError(f"The option {name} = {value} must be above 0.")
