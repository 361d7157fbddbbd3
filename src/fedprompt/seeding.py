"""Every random draw has an address: one (seed, address) gives the same numbers in any order, process or runtime."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch

Address = str | int


def seed_for(seed: int, *address: Address) -> int:
    """Return a 63-bit seed for an address such as `("client", 3, 17)`; distinct addresses give independent seeds."""
    digest = hashlib.sha256(json.dumps([seed, *address], allow_nan=False).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(seed: int, *address: Address) -> torch.Generator:
    """Return a fresh CPU generator seeded for the address."""
    return torch.Generator().manual_seed(seed_for(seed, *address))


def numpy_stream(seed: int, *address: Address) -> np.random.Generator:
    """Return a fresh NumPy generator for an address, for distributions that torch cannot draw from a generator."""
    return np.random.default_rng(seed_for(seed, *address))
