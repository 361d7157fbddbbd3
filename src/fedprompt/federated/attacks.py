"""Attacks on federated learning for simulations: data poisoning, model poisoning and Byzantine faults.

Each builder returns an `Attack`; a recipe's [train.server.attack] names one and says how many clients are malicious.
Use them to see which aggregation rules withstand which adversary; nothing here runs at a real site.
Legend: n updates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from fedprompt.data.dataset import Examples
from fedprompt.seeding import stream
from fedprompt.updates import State, Update


@dataclass(frozen=True)
class AttackContext:
    """What adversaries know: the shared state, all honest updates, and the number of adversaries."""

    shared: State
    honest: Sequence[Update]
    adversaries: int


DataPoisoning = Callable[[Examples], Examples]
# (context, the update that the adversary would honestly send, generator) -> the update that it sends
ModelPoisoning = Callable[[AttackContext, Update, torch.Generator], Update]


@dataclass(frozen=True)
class Attack:
    """What a malicious client does: poison its training data, or its update after training."""

    poison_data: DataPoisoning | None = None
    poison_update: ModelPoisoning | None = None


def sign_flip(*, scale: float = 10.0) -> Attack:
    """Sign flipping: send the honest change reversed, `scale` times as long."""
    return _on_changes(lambda change, draws: -scale * change)


def scaled(*, factor: float = 100.0) -> Attack:
    """Model replacement, which implants backdoors (Bagdasaryan et al., 2020): the honest change times `factor`."""
    return _on_changes(lambda change, draws: factor * change)


def gaussian(*, sigma: float = 10.0) -> Attack:
    """Send the shared state plus Gaussian noise of standard deviation `sigma`."""
    return _on_changes(lambda change, draws: sigma * torch.randn(change.shape, generator=draws, dtype=change.dtype))


def free_rider() -> Attack:
    """Free riding: send back the shared state as received."""
    return _on_changes(lambda change, draws: torch.zeros_like(change))


def label_flip() -> Attack:
    """Label flipping: train on class C - 1 - c in place of c; in multi-label tasks, on absent in place of present."""

    def flip(examples: Examples) -> Examples:
        targets, classes = examples.targets, len(examples.space)
        flipped = classes - 1 - targets if targets.ndim == 1 else torch.where(targets < 0, targets, 1 - targets)
        return replace(examples, targets=flipped)

    return Attack(poison_data=flip)


def alie() -> Attack:
    """A Little Is Enough (Baruch et al., 2019): the honest mean minus z standard deviations, z as large as passes."""

    def poisoned(changes: Tensor, adversaries: int) -> Tensor:
        honest = len(changes)
        supporters = (honest + adversaries) // 2 + 1 - adversaries  # honest clients missing to a majority
        z = NormalDist().inv_cdf(min(max((honest - supporters) / honest, 1e-3), 1 - 1e-3))
        return changes.mean(dim=0) - z * changes.std(dim=0, correction=0)

    return _from_honest_changes(poisoned)


def inner_product(*, epsilon: float = 0.5) -> Attack:
    """Inner-product manipulation (Xie et al., 2019): minus `epsilon` times the honest mean."""
    return _from_honest_changes(lambda changes, adversaries: -epsilon * changes.mean(dim=0))


def broken(*, kind: Literal["nan", "infinity", "shape", "name", "weight"] = "nan") -> Attack:
    """A Byzantine fault: NaN or infinity, a wrong shape, an unknown tensor, or a claim of 10**12 training examples."""

    def poison(context: AttackContext, own: Update, draws: torch.Generator) -> Update:
        first = min(own.shared)
        wrong: dict[str, Tensor] = {
            "nan": torch.full_like(own.shared[first], torch.nan),
            "infinity": torch.full_like(own.shared[first], torch.inf),
            "shape": torch.zeros(3, 1, 4),
        }
        if kind == "weight":
            return replace(own, num_examples=10**12)
        if kind == "name":
            return replace(own, shared={**own.shared, "../stranger": torch.zeros(1)})
        return replace(own, shared={**own.shared, first: wrong[kind]})

    return Attack(poison_update=poison)


@dataclass(frozen=True)
class Adversaries:
    """The malicious clients of a run and their attack; its random draws do not disturb those of the training."""

    attack: Attack
    clients: frozenset[int]
    seed: int

    def poison_data(self, client: int, examples: Examples) -> Examples:
        """The examples that a client trains on: poisoned if it is malicious."""
        if self.attack.poison_data is None or client not in self.clients:
            return examples
        return self.attack.poison_data(examples)

    def poison_updates(self, round_number: int, shared: State, updates: Sequence[Update]) -> list[Update]:
        """The updates as they reach the server: those of malicious clients poisoned."""
        poison = self.attack.poison_update
        if poison is None:
            return list(updates)
        honest = [update for update in updates if update.client not in self.clients]
        context = AttackContext(shared, honest or updates, len(updates) - len(honest))
        return [
            poison(context, update, stream(self.seed, "attack", update.client, round_number))
            if update.client in self.clients
            else update
            for update in updates
        ]


def _on_changes(poisoned: Callable[[Tensor, torch.Generator], Tensor]) -> Attack:
    """The attack that maps the adversary's own change of each tensor to the one it sends."""

    def poison(context: AttackContext, own: Update, draws: torch.Generator) -> Update:
        before = context.shared
        return replace(
            own, shared={name: before[name] + poisoned(t - before[name], draws) for name, t in own.shared.items()}
        )

    return Attack(poison_update=poison)


def _from_honest_changes(poisoned: Callable[[Tensor, int], Tensor]) -> Attack:
    """The attack that maps the honest clients' changes [n, ...] and the number of adversaries to the change sent."""

    def poison(context: AttackContext, own: Update, draws: torch.Generator) -> Update:
        sent = {}
        for name in own.shared:
            before = context.shared[name]
            changes = torch.stack([other.shared.get(name, before) - before for other in context.honest])  # [n, ...]
            sent[name] = before + poisoned(changes, context.adversaries)
        return replace(own, shared=sent)

    return Attack(poison_update=poison)
