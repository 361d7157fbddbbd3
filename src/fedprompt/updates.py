"""Client updates and the type of aggregation rules: what clients, servers and methods exchange, as plain tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

State = dict[str, Tensor]

AGGREGATE_CLIENT = -1  # client id of an update that is the mean of a whole round's, as secure aggregation gives it


@dataclass(frozen=True)
class Update:
    """One client's result of one round.

    `shared` holds the tensors that the client trained and sends; a tensor that is absent counts as unchanged. `loss` is
    NaN where the client sends none.
    """

    client: int
    num_examples: int
    shared: State
    personal: State  # stays with the client: the transport keeps it, the server never sees it
    loss: float
    seconds: float

    def __repr__(self) -> str:
        tensors = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in self.shared.items())
        return f"Update of client {self.client}: {tensors or 'no tensor'}, loss {self.loss:.4g}"

    @property
    def bytes(self) -> int:
        """Bytes sent to the server."""
        return sum(tensor.nbytes for tensor in self.shared.values())


class AggregationRule(Protocol):
    """How a server makes the next shared state from a round's updates.

    The updates are sorted by client id; the weights, one per update, sum to one. The memory is what a rule keeps from
    round to round (momentum, a logit per client); it starts empty and is saved in checkpoints.
    """

    def __call__(
        self, shared: State, updates: Sequence[Update], weights: Sequence[float], memory: State
    ) -> tuple[State, State]:
        """Return the new shared state and the new memory."""
        ...


def weighted_mean(shared: State, updates: Sequence[Update], weights: Sequence[float]) -> State:
    """Move every tensor by the weighted mean of the clients' changes to it.

    Sums run in float64 in the order given, so the result depends on nothing else; a tensor nobody sent stays as it is.
    """
    # differs: the releases average the whole state dict, frozen buffers included, in half precision
    averaged = {}
    for name, before in shared.items():
        total = before.to(torch.float64, copy=True)
        for update, weight in zip(updates, weights, strict=True):
            if name in update.shared:
                total.add_(update.shared[name].double() - before, alpha=weight)
        averaged[name] = total.to(before.dtype)
    return averaged


def fedavg(shared: State, updates: Sequence[Update], weights: Sequence[float], memory: State) -> tuple[State, State]:
    """FedAvg (McMahan et al., 2017) as an `AggregationRule`: the weighted mean, without memory."""
    return weighted_mean(shared, updates, weights), {}
