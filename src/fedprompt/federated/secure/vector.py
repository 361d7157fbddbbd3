"""Encoding of an update for secure aggregation: a vector of fixed-point integers modulo 2**64, whose sums are exact.

Legend: N numbers of all shared tensors together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedprompt.errors import UserError
from fedprompt.federated.aggregation.base import Weighting
from fedprompt.federated.privacy.clients import clip_factor
from fedprompt.federated.screening import change_norm
from fedprompt.federated.secure.masks import MaskedVector
from fedprompt.updates import AGGREGATE_CLIENT, State, Update

HEAD = 2  # integers before the N numbers: the weight, and the weight times the loss


@dataclass(frozen=True)
class Codec:
    """How clients and server encode a change; public, and the same for all.

    Every client first clips its change to the L2 norm `clip`, since nobody can do that later. No sum of `clients`
    vectors of weight `heaviest` wraps around, and the quantisation `step` is as small as that allows.
    """

    clip: float
    clients: int
    weighting: Weighting = "uniform"
    most_examples: int = 10_000

    def __post_init__(self) -> None:
        if not self.clip > 0 or self.digits < 20:
            raise UserError(
                f"Secure sums need a clip above 0 (here {self.clip}) and room for {self.clients} clients of weight up "
                f"to {self.heaviest}; ask fewer clients or lower the largest accepted number of examples."
            )

    @property
    def heaviest(self) -> int:
        """The largest weight a client may have."""
        return 1 if self.weighting == "uniform" else self.most_examples

    @property
    def digits(self) -> int:
        """Binary digits of the largest number; 20 or more keep the relative error of a sum near `clip` below 1e-4."""
        return min(62 - math.ceil(math.log2(max(self.clients * self.heaviest, 2))), 52)

    @property
    def step(self) -> float:
        """The quantisation step."""
        return math.ldexp(self.clip, -self.digits)

    def encode(self, update: Update, shared: State) -> MaskedVector:
        """Weight, weighted loss and weighted changes, [2 + N]; the update must have passed `screen`."""
        weight = 1 if self.weighting == "uniform" else update.num_examples
        factor = clip_factor(change_norm(update, shared), self.clip)
        numbers = [torch.tensor([min(max(update.loss, -self.clip), self.clip)], dtype=torch.float64)]
        for name in sorted(shared):
            before = shared[name]
            after = update.shared.get(name, before)
            numbers.append((after.double() - before).flatten() * factor)
        # Round first, then weight the integers: so the sum of vectors is exactly the sum of the weighted integers.
        whole = (torch.cat(numbers) / self.step).round().to(torch.int64) * weight  # [1 + N]
        return np.concatenate([np.array([weight], dtype=np.int64), whole.numpy()]).view(np.uint64)

    def decode(self, total: MaskedVector, shared: State, *, seconds: float) -> Update:
        """The mean update of the clients in a sum; its `num_examples` is their total weight."""
        signed = torch.from_numpy(total.view(np.int64).copy())
        weight = int(signed[0])
        if not 1 <= weight <= self.clients * self.heaviest:
            raise UserError("The weights in a secure sum make no sense; a client did not follow the protocol.")
        mean = signed[1:].double() * self.step / weight
        state: State = {}
        place = 1
        for name in sorted(shared):
            before = shared[name]
            state[name] = _moved(before, mean[place : place + before.numel()])
            place += before.numel()
        return Update(AGGREGATE_CLIENT, weight, state, {}, float(mean[0]), seconds)


def vector_length(shared: State) -> int:
    """The length of a vector."""
    return HEAD + sum(tensor.numel() for tensor in shared.values())


def _moved(before: Tensor, change: Tensor) -> Tensor:
    return (before.double() + change.reshape(before.shape)).to(before.dtype)  # [*before.shape]
