"""An attack kit for simulations: what broken or lying clients send, to see which rules withstand them.

Each builder gives an `Attack`. A recipe's [train.server.attack] names one; nothing here runs at a real site.
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
class Scene:
    """What adversaries know: the shared state, the honest updates of all others, and how many they are themselves."""

    shared: State
    honest: Sequence[Update]
    adversaries: int


# (scene, the update a adversary would honestly send, generator) -> what it sends
Forge = Callable[[Scene, Update, torch.Generator], Update]


@dataclass(frozen=True)
class Attack:
    """What adversaries do to their labels before training, or to their update afterwards."""

    relabel: Callable[[Examples], Examples] | None = None
    forge: Forge | None = None


def sign_flip(*, scale: float = 10.0) -> Attack:
    """Send the honest change backwards, `scale` times as long."""
    return _on_changes(lambda change, draws: -scale * change)


def scaled(*, factor: float = 100.0) -> Attack:
    """Send the honest change `factor` times as long, to replace the model (Bagdasaryan et al., 2020)."""
    return _on_changes(lambda change, draws: factor * change)


def gaussian(*, sigma: float = 10.0) -> Attack:
    """Send the shared state plus Gaussian noise of standard deviation `sigma`."""
    return _on_changes(lambda change, draws: sigma * torch.randn(change.shape, generator=draws, dtype=change.dtype))


def free_rider() -> Attack:
    """Send back what was received, having learned nothing."""
    return _on_changes(lambda change, draws: torch.zeros_like(change))


def label_flip() -> Attack:
    """Train honestly on wrong labels: class c becomes class C - 1 - c; of many labels, present becomes absent."""

    def relabel(examples: Examples) -> Examples:
        targets, classes = examples.targets, len(examples.space)
        flipped = classes - 1 - targets if targets.ndim == 1 else torch.where(targets < 0, targets, 1 - targets)
        return replace(examples, targets=flipped)

    return Attack(relabel=relabel)


def alie() -> Attack:
    """A Little Is Enough (Baruch et al., 2019): the honest mean minus z deviations, with z just within what passes."""

    def forged(changes: Tensor, adversaries: int) -> Tensor:
        honest = len(changes)
        supporters = (
            (honest + adversaries) // 2 + 1 - adversaries
        )  # honest clients that a majority needs besides the adversaries
        z = NormalDist().inv_cdf(min(max((honest - supporters) / honest, 1e-3), 1 - 1e-3))
        return changes.mean(dim=0) - z * changes.std(dim=0, correction=0)

    return _on_crowd(forged)


def inner_product(*, epsilon: float = 0.5) -> Attack:
    """Inner-product manipulation (Xie et al., 2019): minus `epsilon` times the honest mean."""
    return _on_crowd(lambda changes, adversaries: -epsilon * changes.mean(dim=0))


def broken(*, kind: Literal["nan", "infinity", "shape", "name", "weight"] = "nan") -> Attack:
    """A plain fault: NaN or infinity, another shape, a tensor nobody shares, or a claim of 10**12 examples."""

    def forge(scene: Scene, own: Update, draws: torch.Generator) -> Update:
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

    return Attack(forge=forge)


@dataclass(frozen=True)
class Adversaries:
    """An attack with those who carry it out; their draws have addresses of their own."""

    attack: Attack
    clients: frozenset[int]
    seed: int

    def teach(self, client: int, examples: Examples) -> Examples:
        """The examples that a client trains on."""
        if self.attack.relabel is None or client not in self.clients:
            return examples
        return self.attack.relabel(examples)

    def forge(self, round_number: int, shared: State, updates: Sequence[Update]) -> list[Update]:
        """The updates as they reach the server."""
        if self.attack.forge is None:
            return list(updates)
        honest = [update for update in updates if update.client not in self.clients]
        scene = Scene(shared, honest or updates, len(updates) - len(honest))
        return [
            self.attack.forge(scene, update, stream(self.seed, "attack", update.client, round_number))
            if update.client in self.clients
            else update
            for update in updates
        ]


def _on_changes(forged: Callable[[Tensor, torch.Generator], Tensor]) -> Attack:
    def forge(scene: Scene, own: Update, draws: torch.Generator) -> Update:
        before = scene.shared
        return replace(
            own, shared={name: before[name] + forged(t - before[name], draws) for name, t in own.shared.items()}
        )

    return Attack(forge=forge)


def _on_crowd(forged: Callable[[Tensor, int], Tensor]) -> Attack:
    def forge(scene: Scene, own: Update, draws: torch.Generator) -> Update:
        sent = {}
        for name in own.shared:
            before = scene.shared[name]
            changes = torch.stack([other.shared.get(name, before) - before for other in scene.honest])  # [n, ...]
            sent[name] = before + forged(changes, scene.adversaries)
        return replace(own, shared=sent)

    return Attack(forge=forge)
