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
from fedprompt.federated.privacy.distributed import DistributedPrivacy
from fedprompt.federated.screening import change_norm
from fedprompt.federated.secure.masks import MaskedVector
from fedprompt.updates import AGGREGATE_CLIENT, State, Update

ROUNDING = 0.01  # of the norm of a mean, in units of the clip; with 20 digits, of 10**8 numbers, it is half of that
HEAD = 2  # integers before the N numbers: the weight, and the weight times the loss


@dataclass(frozen=True)
class Codec:
    """How clients and server encode a change; public, and the same for all.

    Every client first clips its change to the L2 norm `clip`, since nobody can do that later. No sum of `clients`
    vectors of weight `heaviest` wraps around, and the quantisation `step` is as small as that allows. With `privacy`
    the step is that of its noise, numbers are rounded towards zero, so that no norm grows, and the loss stays at the
    client. So it does where not `sends_loss`.
    """

    clip: float
    clients: int
    weighting: Weighting = "uniform"
    most_examples: int = 10_000
    privacy: DistributedPrivacy | None = None
    sends_loss: bool = True

    def __post_init__(self) -> None:
        if not self.clip > 0 or self.digits < 20:
            raise UserError(
                f"Secure sums need a clip above 0 (here {self.clip}) and room for {self.clients} clients of weight up "
                f"to {self.heaviest}; ask fewer clients or lower the largest accepted number of examples."
            )
        if self.privacy is not None and self.clients * (self.privacy.largest + self.clip / self.step) >= 2.0**62:
            raise UserError(
                f"Secure sums of {self.clients} clients have no room for noise = {self.privacy.noise} times the clip; "
                "ask fewer clients, or raise it."
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
        return math.ldexp(self.clip, -self.digits) if self.privacy is None else self.privacy.step

    def encode(self, update: Update, shared: State) -> MaskedVector:
        """Weight, weighted loss and weighted changes, [2 + N]; the update must have passed `screen`."""
        weight = min(update.num_examples, self.heaviest)  # a refusal would tell the server the number
        factor = clip_factor(change_norm(update, shared), self.clip)
        loss = min(max(update.loss, -self.clip), self.clip) if self.sends_loss else 0.0
        numbers = [torch.tensor([loss], dtype=torch.float64)]
        for name in sorted(shared):
            before = shared[name]
            after = update.shared.get(name, before)
            numbers.append((after.double() - before).flatten() * factor)
        if self.privacy is not None:
            whole = _clipped(torch.cat(numbers[1:]) / self.step, self.clip / self.step)
            return np.concatenate([np.array([weight, 0], dtype=np.int64), whole.numpy()]).view(np.uint64)
        # Round first, then weight the integers: so the sum of vectors is exactly the sum of the weighted integers.
        whole = (torch.cat(numbers) / self.step).round().to(torch.int64) * weight  # [1 + N]
        return np.concatenate([np.array([weight], dtype=np.int64), whole.numpy()]).view(np.uint64)

    def add_noise(self, vector: MaskedVector, *, honest: int) -> MaskedVector:
        """The vector with a client's share of the noise; `honest` clients' shares suffice for `privacy`."""
        if self.privacy is None:
            return vector
        noise = self.privacy.noise_share(len(vector) - HEAD, honest=honest)
        return vector + np.concatenate([np.zeros(HEAD, dtype=np.int64), noise]).view(np.uint64)

    def decode(self, total: MaskedVector, shared: State, *, seconds: float) -> Update:
        """The mean update of the clients in a sum; its `num_examples` is their total weight.

        Its loss is NaN where clients send none.
        """
        signed = torch.from_numpy(total.view(np.int64).copy())
        weight = int(signed[0])
        if not 1 <= weight <= self.clients * self.heaviest:
            raise UserError("The weights in a secure sum make no sense; a client did not follow the protocol.")
        mean = signed[1:].double() * self.step / weight
        # Without noise, a mean of clipped changes is no longer than the clip, but for rounding.
        if self.privacy is None and mean[1:].norm() > (1 + ROUNDING) * self.clip:
            raise UserError(
                f"norm: the mean change of a secure sum is longer than its clip {self.clip:g}; a client did not follow "
                "the protocol."
            )
        state: State = {}
        place = 1
        for name in sorted(shared):
            before = shared[name]
            state[name] = _moved(before, mean[place : place + before.numel()])
            place += before.numel()
        loss = float(mean[0]) if self.sends_loss and self.privacy is None else math.nan
        return Update(AGGREGATE_CLIENT, weight, state, {}, loss, seconds)


def vector_length(shared: State) -> int:
    """The length of a vector."""
    return HEAD + sum(tensor.numel() for tensor in shared.values())


def _clipped(scaled: Tensor, clip: float) -> Tensor:
    """Integers [N] of the L2 norm `clip` at most, exactly: rounded towards zero, and halved should that not suffice."""
    whole = scaled.trunc().to(torch.int64)
    while sum(number * number for number in whole.tolist()) > clip * clip:
        whole = (whole.double() / 2).trunc().to(torch.int64)
    return whole


def _moved(before: Tensor, change: Tensor) -> Tensor:
    return (before.double() + change.reshape(before.shape)).to(before.dtype)  # [*before.shape]
