"""Server optimisers (Reddi et al., 2021): the aggregated change serves as a gradient for a step of the server."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from fedprompt.errors import UserError
from fedprompt.updates import State

# (shared, result of the aggregation rule, memory) -> (new shared, new memory)
ServerOptimizer = Callable[[State, State, State], tuple[State, State]]


def fedavgm(*, lr: float = 1.0, momentum: float = 0.9) -> ServerOptimizer:
    """FedAvgM (Hsu et al., 2019): v <- momentum v + change, w <- w + lr v."""
    _check(lr, momentum=momentum)

    def step(shared: State, target: State, memory: State) -> tuple[State, State]:
        moved, kept = {}, {}
        for name, before in shared.items():
            old = memory.get(name, torch.zeros_like(before, dtype=torch.float64))
            kept[name] = momentum * old + (target[name].double() - before)
            moved[name] = (before.double() + lr * kept[name]).to(before.dtype)
        return moved, kept

    return step


def fedadam(*, lr: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> ServerOptimizer:
    """FedAdam (Reddi et al., 2021): w <- w + lr m / (sqrt(u) + tau), m and u the moments of the change, both from 0."""
    _check(lr, beta1=beta1, beta2=beta2)
    if not 0 < tau < math.inf:
        raise UserError(f"The option tau = {tau} of fedadam must be above 0 and finite.")

    def step(shared: State, target: State, memory: State) -> tuple[State, State]:
        moved: State = {}
        kept: State = {}
        for name, before in shared.items():
            zero = torch.zeros_like(before, dtype=torch.float64)
            change = target[name].double() - before
            mean = beta1 * memory.get(f"mean/{name}", zero) + (1 - beta1) * change
            square = beta2 * memory.get(f"square/{name}", zero) + (1 - beta2) * change.square()
            kept |= {f"mean/{name}": mean, f"square/{name}": square}
            moved[name] = (before.double() + lr * mean / (square.sqrt() + tau)).to(before.dtype)
        return moved, kept

    return step


def _check(lr: float, **shares: float) -> None:
    if not 0 < lr < math.inf:
        raise UserError(f"The server's learning rate lr = {lr} must be above 0 and finite.")
    for name, value in shares.items():
        if not 0 <= value < 1:
            raise UserError(f"The option {name} = {value} must be at least 0 and below 1.")
