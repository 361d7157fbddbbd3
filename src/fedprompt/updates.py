"""What a client sends back and how a server adds it up: plain tensors in, plain tensors out, summed in client order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]

COHORT = -1  # the client id of an update that is the mean of a whole round's, because nobody saw single ones


@dataclass(frozen=True)
class Update:
    """One client's result of one round. `shared` holds what it trained and sends; what is absent is a zero update."""

    client: int
    num_examples: int
    shared: State
    personal: State  # stays with the client: a transport keeps it, the server never sees it
    loss: float
    seconds: float

    @property
    def bytes(self) -> int:
        """Size of what travels to the server."""
        return sum(tensor.nbytes for tensor in self.shared.values())


# (global shared state, updates sorted by client id, one weight an update, summing to one) -> new shared state
Aggregate = Callable[[State, Sequence[Update], Sequence[float]], State]


def weighted_mean(shared: State, updates: Sequence[Update], weights: Sequence[float]) -> State:
    """FedAvg (McMahan et al., 2017): move every tensor by the weighted mean of the clients' changes to it.

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
