"""Epsilon without dp-accounting, by numerical integration: an independent accountant to check what runs account."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from fedprompt.federated.privacy.accounting import Mechanism

WHOLE = (*range(2, 64), 128, 256, 512, 1024)
TENTHS = tuple(tenths / 10 for tenths in range(11, 110))


def independent_epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """The least epsilon of all Renyi orders that docs/privacy.md names.

    Divergences are converted as by Canonne, Kamath and Steinke (2020), proposition 12; by Bretagnolle and Huber (1979)
    there is nothing to spend where the total variation is at most delta.
    """
    sampled = any(one.rate < 1 for one in mechanisms)
    found = []
    for order in WHOLE if sampled else (*TENTHS, *WHOLE):
        total = sum(one.times * renyi(order, one.noise, one.rate) for one in mechanisms)
        converted = total + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        found.append(0.0 if -math.expm1(-total) < delta**2 else converted)
    return max(min(found), 0.0)


@functools.cache
def renyi(order: float, noise: float, rate: float) -> float:
    """Renyi divergence of a Poisson-sampled Gaussian from the plain one (Mironov et al., 2019, eq. 3).

    The integrand is smooth on the scale of the noise and negligible outside the grid, so the sum over the grid has the
    integral's digits.
    """
    if rate == 1:
        return order / (2 * noise**2)
    z = np.arange(-40 * noise, 40 * noise + order, noise / 20)
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * z - 1) / (2 * noise**2))
    log = order * ratio - z**2 / (2 * noise**2) - math.log(noise * math.sqrt(2 * math.pi))
    peak = log.max()
    return float((peak + np.log(np.exp(log - peak).sum() * noise / 20)) / (order - 1))
