"""Noise for differential privacy, from the operating system's cryptographic generator, never from the run's seed.

It is the one random draw that a seed does not reproduce: anyone who knows the noise can subtract it.
"""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor


def secret_uniform(count: int) -> Tensor:
    """Uniform numbers in (0, 1], float64 [count], of 53 bits each."""
    bits = torch.frombuffer(bytearray(os.urandom(8 * count)), dtype=torch.int64) if count else torch.empty(0).long()
    return ((bits >> 11 & (2**53 - 1)) + 1).double() * 2.0**-53


def secret_normal(shape: tuple[int, ...], *, std: float) -> Tensor:
    """Gaussian numbers, float64, by the Box-Muller transform.

    They are not safe against an adversary who sees results to the last bit (Mironov, 2012); adding them to a float32
    state rounds away the last 29 bits, which mitigates the problem but proves nothing.
    """
    count = math.prod(shape)
    radius, angle = secret_uniform(2 * ((count + 1) // 2)).chunk(2)
    radius, angle = (-2 * radius.log()).sqrt(), 2 * math.pi * angle
    pairs = torch.cat([radius * angle.cos(), radius * angle.sin()])  # [count or count + 1]
    return std * pairs[:count].reshape(shape)  # [*shape]
