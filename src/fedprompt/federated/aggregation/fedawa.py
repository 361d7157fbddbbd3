"""FedAWA (Shi et al., 2025): the server learns the clients' aggregation weights from the geometry of their updates.

Legend: n updates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fedprompt.errors import UserError
from fedprompt.federated.aggregation.robust import gram
from fedprompt.updates import AggregationRule, State, Update, weighted_mean

BETAS = (0.5, 0.999)
EPSILON = 1e-8


def fedawa(*, lr: float = 1e-3, distance: Literal["cosine", "euclidean"] = "cosine") -> AggregationRule:
    """w = sum_k pi_k w_k with pi = softmax of one logit per client, moved by one Adam step per round down J.

    J = sum_k pi_k |d_k - sum_j pi_j d_j| + sum_k pi_k D(w, w_k), where d_k = w_k - w are the changes and D is one minus
    the cosine, or the Euclidean distance; with the cosine it is not translation equivariant. A client's logit starts at
    log n_k, and the round's mean uses the updated logits. The memory holds each client's logit and Adam state.
    """
    if not 0 < lr < math.inf:
        raise UserError(f"The option lr = {lr} of fedawa must be above 0 and finite.")
    # differs: the release starts at raw shares, averages with the weights from before the step, and assigns the logits
    # of one round to the clients of the next; here they are log n_k, recomputed, and kept per client

    def combine(
        shared: State, updates: Sequence[Update], weights: Sequence[float], memory: State
    ) -> tuple[State, State]:
        before = torch.stack([_remembered(update, memory) for update in updates])  # [n, 4]
        logits = before[:, 0].clone().requires_grad_()
        objective = _objective(_products(shared, updates), logits.softmax(dim=0), distance)
        (slope,) = torch.autograd.grad(objective, logits)
        after = _adam(before, slope, lr)
        kept = memory | {str(update.client): row for update, row in zip(updates, after, strict=True)}
        return weighted_mean(shared, updates, after[:, 0].softmax(dim=0).tolist()), kept

    return combine


def _remembered(update: Update, memory: State) -> Tensor:
    """A client's logit, Adam's two moments and the number of rounds it took part in, [4] float64."""
    start = torch.tensor([math.log(update.num_examples), 0.0, 0.0, 0.0], dtype=torch.float64)
    return memory.get(str(update.client), start)


def _products(shared: State, updates: Sequence[Update]) -> Tensor:
    """Inner products [1 + n, 1 + n] of the shared state (as a vector, first) and the changes."""
    zeros = {name: torch.zeros_like(tensor) for name, tensor in shared.items()}
    changed = [
        {name: tensor - shared[name] for name, tensor in update.shared.items()} for update in updates
    ]  # changes are small differences of equal types, so they are exact or as good as the updates
    rows = [shared, *changed]
    return gram(zeros, [Update(0, 1, row, {}, 0.0, 0.0) for row in rows])


def _objective(products: Tensor, shares: Tensor, distance: str) -> Tensor:
    size, along, among = products[0, 0], products[0, 1:], products[1:, 1:]
    apart = among.diagonal() - 2 * among @ shares + shares @ among @ shares  # [n], squared, to the merged change
    if distance == "euclidean":
        away = among.diagonal().sqrt()
    else:
        lengths = (size * (size + 2 * along + among.diagonal())).clamp(min=0).sqrt()
        away = 1 - (size + along) / lengths.clamp(min=torch.finfo(torch.float64).tiny)
    # The square root has no gradient at zero; distances below rounding count as zero.
    floor = torch.finfo(torch.float64).eps * among.diagonal().max().clamp(min=1e-300)
    return shares @ (apart.clamp(min=floor).sqrt() + away)


def _adam(rows: Tensor, slope: Tensor, lr: float) -> Tensor:
    """One Adam step, separately for each row of logit, moments and count, [n, 4]."""
    logits, first, second, count = rows.T
    count = count + 1
    first = BETAS[0] * first + (1 - BETAS[0]) * slope
    second = BETAS[1] * second + (1 - BETAS[1]) * slope.square()
    move = (first / (1 - BETAS[0] ** count)) / ((second / (1 - BETAS[1] ** count)).sqrt() + EPSILON)
    return torch.stack([logits - lr * move, first, second, count], dim=1)
