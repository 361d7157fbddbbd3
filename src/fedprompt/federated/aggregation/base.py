"""How a server makes one state of many: the types of its rules, client weights, and rules that look at coordinates.

Legend: n updates, N numbers of a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from fedprompt.errors import UserError
from fedprompt.updates import Aggregate, State, Update, weighted_mean

Weighting = Literal["uniform", "examples"]

# (shared, updates by client id, weights that sum to one, memory) -> (new shared, new memory); the memory is kept in
# checkpoints, starts empty and is whatever a rule has to know of earlier rounds.
Rule = Callable[[State, Sequence[Update], Sequence[float], State], tuple[State, State]]


class TooFewError(UserError):
    """A rule cannot withstand the attackers it was told of with so few updates."""

    def __init__(self, rule: str, needed: int, got: int) -> None:
        super().__init__(
            f"{rule} needs {needed} updates a round and has {got}; ask more clients or expect fewer adversaries."
        )
        self.needed = needed


def weights_for(updates: Sequence[Update], weighting: Weighting) -> list[float]:
    """One weight an update, summing to one: all equal, or in proportion to the number of training examples."""
    counts = [update.num_examples if weighting == "examples" else 1 for update in updates]
    return [count / sum(counts) for count in counts]


def without_memory(aggregate: Aggregate) -> Rule:
    """A rule that knows nothing of earlier rounds."""
    return lambda shared, updates, weights, memory: (aggregate(shared, updates, weights), {})


def mean() -> Rule:
    """FedAvg (McMahan et al., 2017): the weighted mean; one adversary moves it anywhere."""
    return without_memory(weighted_mean)


def median() -> Rule:
    """Coordinate-wise median (Yin et al., 2018) of the changes; weights do not count. Withstands less than half."""
    return without_memory(lambda shared, updates, weights: _middle(shared, updates, cut=(len(updates) - 1) // 2))


def trimmed_mean(*, share: float = 0.2) -> Rule:
    """Coordinate-wise mean (Yin et al., 2018) without the `share` largest and smallest values; weights do not count."""
    if not 0 <= share < 0.5:
        raise UserError(f"The option share = {share} of trimmed_mean must be at least 0 and below 0.5.")

    def trimmed(shared: State, updates: Sequence[Update], weights: Sequence[float]) -> State:
        return _middle(shared, updates, cut=int(share * len(updates) + 1e-9))  # 0.3 * 10 is 2.9999999999999996

    return without_memory(trimmed)


def _middle(shared: State, updates: Sequence[Update], *, cut: int) -> State:
    """Mean of each coordinate's changes without the `cut` largest and smallest; what was not sent is a zero change."""
    moved = {}
    for name, before in shared.items():
        changes = torch.stack([change(update, name, before) for update in updates])  # [n, *N]
        kept = changes.sort(dim=0).values[cut : len(updates) - cut]  # [n - 2 cut, *N]
        moved[name] = (before.double() + kept.mean(dim=0)).to(before.dtype)
    return moved


def change(update: Update, name: str, before: Tensor) -> Tensor:
    """What an update changes of one tensor, float64."""
    sent = update.shared.get(name)
    return torch.zeros_like(before, dtype=torch.float64) if sent is None else sent.double() - before
