"""A client's side of secure aggregation: four steps, each taken once, and what an honest client refuses to do.

The caller carries bytes: `advertise_keys()` goes to the server; its answer into `share_keys(...)`; the server's answer
to that into `masked_input(...)` with the client's vector; the server's request into `unmask(...)`. The steps are rounds
0, 1, 2 and 4 of Bonawitz et al. (2017); their round 3, the consistency check, is replaced by a threshold above half.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedprompt.federated.screening import RefusedUpdateError
from fedprompt.federated.secure.envelope import SERVER, Envelope, Step
from fedprompt.federated.secure.masks import KEY_BYTES, MaskedVector, agree, derive, mask, public_key
from fedprompt.federated.secure.shamir import SECRET_BYTES, SHARE_BYTES, split

NONCE_BYTES = 12
ADVERTISED_BYTES = 3 * KEY_BYTES  # two public keys and the commitment to the client's own seed


@dataclass(frozen=True)
class Session:
    """What clients and server know before a round's first message.

    `sign` makes a site's signature of its public keys and `verify(client, keys, signature)` checks a peer's. Without
    them the server is trusted not to replace the peers' keys by its own.
    """

    run: str
    round_number: int
    threshold: int
    sign: Callable[[bytes], bytes] | None = None
    verify: Callable[[int, bytes, bytes], bool] | None = None


class SecureClient:
    """One client in one round; `number` is its client id."""

    def __init__(self, number: int, session: Session) -> None:
        self.number = number
        self.session = session
        self._next: Step | None = "advertise_keys"
        self._channel, self._masking, self._seed = (secrets.token_bytes(SECRET_BYTES) for _ in range(3))
        self._peers: dict[int, bytes] = {}  # both public keys of every client, this one included
        self._shares: dict[int, bytes] = {}  # shares of every client's two secrets, this one's included

    def advertise_keys(self) -> bytes:
        """Step 1: send the two public keys of this round, and a commitment to the own seed."""
        self._take_step("advertise_keys", following="share_keys")
        advertised = public_key(self._channel) + public_key(self._masking) + commitment(self._seed)
        signature = self.session.sign(self._signed(self.number, advertised)) if self.session.sign else b""
        return self._message("advertise_keys", {self.number: advertised + signature})

    def share_keys(self, message: bytes) -> bytes:
        """Step 2: given everybody's keys, send shares of the own two secrets, each encrypted for one peer."""
        self._take_step("share_keys", following="masked_input")
        parts = self._read("advertise_keys", message)
        for peer, part in parts.items():
            advertised, signature = part[:ADVERTISED_BYTES], part[ADVERTISED_BYTES:]
            if len(advertised) != ADVERTISED_BYTES or peer < 0:
                self._refuse("a peer's keys are not keys")
            if self.session.verify and not self.session.verify(peer, self._signed(peer, advertised), signature):
                self._refuse("a peer's keys are not signed by that peer")
            self._peers[peer] = advertised[: 2 * KEY_BYTES]
        if self._peers.get(self.number) != public_key(self._channel) + public_key(self._masking):
            self._refuse("the list of keys has others in place of this client's own")
        self._check_threshold(len(self._peers))
        if len(set(self._peers.values())) < len(self._peers):
            self._refuse("two clients have the same keys")
        own = (split(secret, sorted(self._peers), threshold=self.session.threshold) for secret in self._secrets())
        pairs = [dict(shares) for shares in own]
        both = {peer: pairs[0][peer] + pairs[1][peer] for peer in self._peers}
        self._shares[self.number] = both.pop(self.number)
        return self._message("share_keys", {peer: self._encrypt(peer, share) for peer, share in both.items()})

    def masked_input(self, message: bytes, vector: MaskedVector) -> bytes:
        """Step 3: given the shares of the peers that are still there, send the masked vector."""
        self._take_step("masked_input", following="unmask")
        for peer, encrypted in self._read("share_keys", message).items():
            if peer == self.number or peer not in self._peers:
                self._refuse("shares came from somebody who has no keys")
            self._shares[peer] = self._decrypt(peer, encrypted)
        self._check_threshold(len(self._shares))
        total = vector + mask(derive(self._seed, "own mask"), len(vector))
        for peer in self._shares.keys() - {self.number}:
            pair = pair_mask(self._masking, self._peers[peer][KEY_BYTES:], self.session, len(vector))
            total = total + pair if self.number < peer else total - pair
        return self._message("masked_input", {self.number: np.ascontiguousarray(total, dtype="<u8").tobytes()})

    def unmask(self, message: bytes) -> bytes:
        """Step 4: send a share of the seed of each client that arrived, and of the key of each that dropped out.

        Never both for one client, never a second time, never for fewer arrived clients than the threshold.
        """
        self._take_step("unmask", following=None)
        arrived = set(self._read("unmask", message))
        if not arrived <= self._shares.keys() or self.number not in arrived:
            self._refuse("the list of arrived clients has strangers in it or lacks this client")
        self._check_threshold(len(arrived))
        return self._message(
            "unmask",
            {
                client: share[SHARE_BYTES:] if client in arrived else share[:SHARE_BYTES]
                for client, share in self._shares.items()
            },
        )

    def _secrets(self) -> tuple[bytes, bytes]:
        """In the order of their shares in a pair: the masking key, the own seed."""
        return self._masking, self._seed

    def _signed(self, client: int, advertised: bytes) -> bytes:
        """What a client signs: its advertised keys, bound to run, round and client."""
        return f"{self.session.run}/{self.session.round_number}/{client}/".encode() + advertised

    def _cipher(self, peer: int, *, sender: int, receiver: int) -> tuple[AESGCM, bytes]:
        """The cipher for a peer's shares, and the associated data that binds them to sender and receiver."""
        key = derive(agree(self._channel, self._peers[peer][:KEY_BYTES]), "shares", *_round_of(self.session))
        return AESGCM(key), f"{sender}/{receiver}".encode()

    def _encrypt(self, peer: int, share: bytes) -> bytes:
        cipher, associated = self._cipher(peer, sender=self.number, receiver=peer)
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + cipher.encrypt(nonce, share, associated)

    def _decrypt(self, peer: int, encrypted: bytes) -> bytes:
        cipher, associated = self._cipher(peer, sender=peer, receiver=self.number)
        try:
            share = cipher.decrypt(encrypted[:NONCE_BYTES], encrypted[NONCE_BYTES:], associated)
        except (InvalidTag, ValueError) as error:
            raise RefusedUpdateError("message", f"the shares of client {peer} cannot be decrypted.") from error
        if len(share) != 2 * SHARE_BYTES:
            self._refuse("a share has the wrong size")
        return share

    def _check_threshold(self, count: int) -> None:
        if count < self.session.threshold:
            self._refuse(f"{count} clients are fewer than the threshold of {self.session.threshold}")

    def _take_step(self, step: Step, *, following: Step | None) -> None:
        """Every step happens once and in order; after a refusal this client takes no further step."""
        expected, self._next = self._next, None
        if expected != step:
            self._refuse(f"{step} is out of order")
        self._next = following

    def _refuse(self, reason: str) -> NoReturn:
        self._next = None
        raise RefusedUpdateError("secure", f"client {self.number} refuses: {reason}.")

    def _read(self, step: Step, message: bytes) -> Mapping[int, bytes]:
        envelope = Envelope.from_bytes(message)
        return envelope.expect(step, self.session.round_number, sender=SERVER).parts

    def _message(self, step: Step, parts: Mapping[int, bytes]) -> bytes:
        return Envelope(step, self.number, self.session.round_number, parts).to_bytes()


def commitment(seed: bytes) -> bytes:
    """A commitment to a seed: it hides the seed, and later shows whether shares reconstruct this very one."""
    return derive(seed, "commitment")


def pair_mask(private: bytes, public: bytes, session: Session, length: int) -> MaskedVector:
    """The mask that two clients share, from one's private and the other's public key."""
    return mask(derive(agree(private, public), "pair mask", *_round_of(session)), length)


def _round_of(session: Session) -> tuple[str, int]:
    return session.run, session.round_number
