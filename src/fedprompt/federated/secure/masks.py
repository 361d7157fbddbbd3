"""Masks for secure aggregation: pseudo-random vectors from keys that two clients, or one client alone, can derive.

Clients add their masks in `SecureClient.masked_input`; the server removes those that do not cancel in
`SecureServer.unmask`.
"""

from __future__ import annotations

import hashlib

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedprompt.federated.screening import RefusedUpdateError

MaskedVector = NDArray[np.uint64]  # integers modulo 2**64; NumPy's sums wrap around

KEY_BYTES = 32
PRIME = 2**255 - 19


def derive(secret: bytes, *purpose: str | int) -> bytes:
    """A 256-bit key from a secret by HKDF-SHA256, a different one for every purpose."""
    info = "/".join(("fedprompt secure aggregation", *map(str, purpose))).encode()
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def agree(private: bytes, public: bytes) -> bytes:
    """The secret that two X25519 key pairs share; RefusedUpdateError for an invalid public key."""
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise RefusedUpdateError("message", "a public key is invalid.") from error


def exchange_private(identity: bytes) -> bytes:
    """The X25519 private key of an Ed25519 private key; one key may serve for both (Thormarker, 2021)."""
    return hashlib.sha512(identity).digest()[:KEY_BYTES]


def exchange_public(identity: bytes) -> bytes:
    """The X25519 public key of an Ed25519 public key: (1 + y) / (1 - y) modulo 2^255 - 19 (RFC 7748, section 4.1)."""
    y = int.from_bytes(identity, "little") & ((1 << 255) - 1)
    return ((1 + y) * pow((1 - y) % PRIME, PRIME - 2, PRIME) % PRIME).to_bytes(KEY_BYTES, "little")


def public_key(private: bytes) -> bytes:
    """The public half of an X25519 private key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def mask(key: bytes, length: int) -> MaskedVector:
    """`length` integers of the AES-256 counter stream of a key that is used for nothing else."""
    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    stream = encryptor.update(bytes(8 * length)) + encryptor.finalize()
    return np.frombuffer(stream, dtype="<u8").astype(np.uint64, copy=False)
