"""Client-level differential privacy (DP-FedAvg; McMahan et al., 2018): protects each client's whole data.

The server is trusted to clip and to add the noise. Neighbouring data sets differ in whether one client's update is
replaced by a zero change; the mean is over the clients asked, a public number, so that a refused update reveals nothing
else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedprompt.federated.privacy.accounting import GaussianPrivacy, gaussian_epsilon
from fedprompt.federated.privacy.noise import secret_normal
from fedprompt.federated.screening import change_norm
from fedprompt.updates import AGGREGATE_CLIENT, State, Update, weighted_mean


def clip_factor(norm: float, clip: float) -> float:
    """The factor that shortens a vector of this norm to just below `clip`; 1 if it is no longer than that."""
    return min(1.0, clip / norm * (1 - 1e-12)) if norm else 1.0


@dataclass(frozen=True, kw_only=True)
class ClientPrivacy(GaussianPrivacy):
    """Clip every change to the L2 norm `clip`; add noise of standard deviation `noise` * `clip` to their sum.

    `epsilon` is the budget at `delta`: the run ends before any client would exceed it.
    """

    def spent(self, client: int, charges: int) -> float:
        """Epsilon after a client was asked `charges` times; who is asked is public, so sampling amplifies nothing."""
        return gaussian_epsilon(self.noise, rounds=charges, delta=self.delta)

    def noisy_mean(self, shared: State, updates: Sequence[Update], *, asked: int) -> State:
        """The shared state moved by the clipped sum over the number of clients asked, plus noise on every tensor.

        Tensors that nobody sent get noise too, because which ones are sent may depend on the data.
        """
        weights = [
            clip_factor(change_norm(update, shared), self.clip) * _clients_in(update) / asked for update in updates
        ]
        moved = weighted_mean(shared, updates, weights)
        std = self.noise * self.clip / asked
        return {
            name: (tensor.double() + secret_normal(tuple(tensor.shape), std=std)).to(tensor.dtype)
            for name, tensor in moved.items()
        }


def _clients_in(update: Update) -> int:
    """How many clients are in an update: a secure sum is the mean of its clients, who clipped before masking."""
    return update.num_examples if update.client == AGGREGATE_CLIENT else 1
