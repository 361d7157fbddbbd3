"""Client-level differential privacy by distributed noise (Kairouz, Liu and Steinke, 2021): no server is trusted.

Each client clips its change and adds a share of the noise before masking, so that the sum, all that the server ever
sees, is private already. Neighbouring data sets differ in whether one client's change is replaced by zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedprompt.federated.privacy.accounting import GaussianPrivacy, Mechanism, gaussian_epsilon
from fedprompt.federated.privacy.discrete_gaussian import LARGEST_SCALE, WIDEST, Integers, discrete_gaussian


@dataclass(frozen=True, kw_only=True)
class DistributedPrivacy(GaussianPrivacy):
    """Clients clip their changes to the L2 norm `clip` and add noise before the secure sum.

    The noise of the honest clients among the fewest that may survive a round has a standard deviation of `noise` *
    `clip` or more; with more survivors there is more. `epsilon` is the budget at `delta`: the run ends before any
    client would exceed it.
    """

    @property
    def step(self) -> float:
        """The quantisation step: changes and noise are whole multiples of it."""
        return self.noise * self.clip / LARGEST_SCALE

    @property
    def largest(self) -> int:
        """No client's noise is this many steps or more."""
        return (WIDEST + 1) * LARGEST_SCALE

    def noise_share(self, count: int, *, honest: int) -> Integers:
        """A client's noise in steps, [count]: discrete Gaussian, of which `honest` shares have the variance needed.

        A sum of discrete Gaussians is not quite one. The paper bounds what that costs by sums of exp(-pi^2 s^2), with s
        the scale of a share in steps: below any number that a float can hold at these scales.
        """
        return discrete_gaussian(math.ceil(LARGEST_SCALE / math.sqrt(honest)), count)

    def at_client(self, *, images: int, batch_size: int, epochs: int) -> Mechanism:
        """One Gaussian mechanism on all of a client's images at once; the honest survivors add its noise together."""
        return Mechanism(self.noise)

    def spent(self, client: int, charges: int) -> float:
        """Epsilon after a client was asked `charges` times; who is asked is public, so sampling amplifies nothing."""
        return gaussian_epsilon(self.noise, rounds=charges, delta=self.delta)
