"""Shamir's secret sharing (1979): any `threshold` shares of a secret reconstruct it, fewer reveal nothing."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

PRIME = 2**521 - 1  # a field with room for secrets of 64 bytes
SHARE_BYTES = 66
SECRET_BYTES = 32


def split(secret: bytes, clients: Sequence[int], *, threshold: int) -> dict[int, bytes]:
    """One share of `secret` (32 bytes) per client; client ids are distinct and not negative."""
    assert len(secret) == SECRET_BYTES and 1 <= threshold <= len(set(clients)) == len(clients)
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {client: _at(coefficients, client + 1).to_bytes(SHARE_BYTES, "big") for client in clients}


def join(shares: Mapping[int, bytes]) -> bytes | None:
    """The secret that the shares of at least `threshold` clients reconstruct; None if it is not one of 32 bytes."""
    points = {client + 1: int.from_bytes(share, "big") for client, share in shares.items()}
    secret = sum(value * _lagrange(place, points) for place, value in points.items()) % PRIME
    return secret.to_bytes(SECRET_BYTES, "big") if secret < 2 ** (8 * SECRET_BYTES) else None


def _at(coefficients: Sequence[int], place: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * place + coefficient) % PRIME
    return value


def _lagrange(place: int, points: Mapping[int, int]) -> int:
    """The Lagrange coefficient at 0 of the value at one place."""
    top = bottom = 1
    for other in points:
        if other != place:
            top, bottom = top * other % PRIME, bottom * (other - place) % PRIME
    return top * pow(bottom, -1, PRIME) % PRIME
