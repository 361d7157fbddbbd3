"""Client weights and the aggregation rules that work per coordinate: median and trimmed mean.

Legend: n updates, N numbers of a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fedprompt.errors import UserError
from fedprompt.updates import AggregationRule, State, Update

Weighting = Literal["uniform", "examples"]


class TooFewError(UserError):
    """There are too few updates for a rule to withstand the number of adversaries it was configured for."""

    def __init__(self, rule: str, needed: int, got: int) -> None:
        super().__init__(
            f"{rule} needs {needed} updates per round and has {got}; ask more clients or expect fewer adversaries."
        )
        self.needed = needed


def weights_for(updates: Sequence[Update], weighting: Weighting) -> list[float]:
    """One weight per update, summing to one: all equal, or in proportion to the number of training examples."""
    counts = [update.num_examples if weighting == "examples" else 1 for update in updates]
    return [count / sum(counts) for count in counts]


def median() -> AggregationRule:
    """Coordinate-wise median of the changes (Yin et al., 2018), unweighted. Withstands fewer than half adversaries."""

    def combine(
        shared: State, updates: Sequence[Update], weights: Sequence[float], memory: State
    ) -> tuple[State, State]:
        return _middle(shared, updates, cut=(len(updates) - 1) // 2), {}

    return combine


def trimmed_mean(*, share: float = 0.2) -> AggregationRule:
    """Coordinate-wise mean without the `share` largest and smallest values (Yin et al., 2018), unweighted."""
    if not 0 <= share < 0.5:
        raise UserError(f"The option share = {share} of trimmed_mean must be at least 0 and below 0.5.")

    def combine(
        shared: State, updates: Sequence[Update], weights: Sequence[float], memory: State
    ) -> tuple[State, State]:
        cut = int(share * len(updates) + 1e-9)  # 0.3 * 10 is 2.9999999999999996
        return _middle(shared, updates, cut=cut), {}

    return combine


def _middle(shared: State, updates: Sequence[Update], *, cut: int) -> State:
    """Mean of each coordinate's changes without the `cut` largest and smallest; an absent tensor is a zero change."""
    moved = {}
    for name, before in shared.items():
        changes = torch.stack([change(update, name, before) for update in updates])  # [n, *N]
        kept = changes.sort(dim=0).values[cut : len(updates) - cut]  # [n - 2 cut, *N]
        moved[name] = (before.double() + kept.mean(dim=0)).to(before.dtype)
    return moved


def change(update: Update, name: str, before: Tensor) -> Tensor:
    """The change that an update makes to one tensor, float64; zero for a tensor it does not hold."""
    sent = update.shared.get(name)
    return torch.zeros_like(before, dtype=torch.float64) if sent is None else sent.double() - before
