"""A round of secure aggregation as its members see it: who takes part, with which keys, and what they sign.

An identity is an Ed25519 key pair; members know each other's public keys beforehand, never from the server.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedprompt.text_files import json_text
from fedprompt.updates import State

SIGNATURE_BYTES = 64
IDENTITY_BYTES = 32


@dataclass(frozen=True)
class Identity:
    """A member's identity key; only `public` leaves the member."""

    private: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> Identity:
        """A new identity."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @cached_property
    def public(self) -> bytes:
        """The public key, 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """The signature of a message, 64 bytes."""
        return self._key.sign(message)

    @cached_property
    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.private)


def verified(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether a signature of the message is by this identity; False for anything malformed."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Session:
    """What is fixed before a round's first message; every signature of the round covers all of it.

    `members` are the identity keys of the clients asked. `length` is that of a vector, `nonce` distinguishes attempts
    at the same round, and `job` is whatever else must be equal for all members, such as the recipe.
    """

    run: str
    round_number: int
    members: Mapping[int, bytes]
    threshold: int
    length: int
    nonce: str = ""
    job: str = ""

    @cached_property
    def digest(self) -> bytes:
        """The SHA-256 hash of all fields."""
        members = [[client, key.hex()] for client, key in sorted(self.members.items())]
        fields = [self.run, self.round_number, members, self.threshold, self.length, self.nonce, self.job]
        return hashlib.sha256(json_text(fields).encode()).digest()

    def keys_message(self, client: int, keys: bytes) -> bytes:
        """What a client signs to make the keys of this round its own."""
        return b"/".join((b"fedprompt secure aggregation", b"keys", self.digest, str(client).encode(), keys))

    def survivors_message(self, survivors: Iterable[int], received: bytes) -> bytes:
        """What every survivor signs: the list of survivors, and the hash of the shared state that it trained from."""
        listed = json_text(sorted(survivors)).encode()
        return b"/".join((b"fedprompt secure aggregation", b"survivors", self.digest, received, listed))


def threshold_of(share: float, clients: int, *, colluders: int = 0) -> int:
    """How many clients must stay to the end of a round, at least `share` of them.

    Above (clients + colluders) / 2 no two lists of survivors can both be signed by a threshold of clients, even if
    `colluders` of them sign both; nor can both secrets of an honest client be reconstructed (Bonawitz et al., 2017,
    section 6.2). At least two of the threshold are honest.
    """
    return max(math.ceil(share * clients - 1e-9), (clients + colluders) // 2 + 1, colluders + 2)


def state_digest(shared: State) -> bytes:
    """The SHA-256 hash of a state: its tensors' names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name in sorted(shared):
        tensor = shared[name].detach().cpu().contiguous()
        found.update(json_text([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return found.digest()
