"""A client's side of secure aggregation: four steps, each taken once, and what an honest client refuses to do.

The caller carries bytes: `share_keys()` goes to the server; its answer into `masked_input(...)` with the client's
vector; the list of survivors into `consistency_check(...)`; the signatures of all survivors into `unmask(...)`. The
steps are rounds 0 to 4 of Bonawitz et al. (2017) for a server that may send anything. Rounds 0 and 1 are one step:
shares are encrypted with a key of this round for the peers' identity keys, which are known beforehand.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import NoReturn

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedprompt.federated.screening import RefusedUpdateError
from fedprompt.federated.secure.envelope import SERVER, Envelope, Step
from fedprompt.federated.secure.masks import (
    KEY_BYTES,
    MaskedVector,
    agree,
    derive,
    exchange_private,
    exchange_public,
    mask,
    public_key,
)
from fedprompt.federated.secure.session import SIGNATURE_BYTES, Identity, Session, verified
from fedprompt.federated.secure.shamir import SECRET_BYTES, SHARE_BYTES, split

NONCE_BYTES = 12
THRESHOLD_BYTES = 4
# Public keys of the channel and of the masks, the commitment to the own seed, the threshold; then the signature.
ADVERTISED_BYTES = 3 * KEY_BYTES + THRESHOLD_BYTES
SIGNED_BYTES = ADVERTISED_BYTES + SIGNATURE_BYTES
CHANNEL, MASKING, SEED = (slice(place * KEY_BYTES, (place + 1) * KEY_BYTES) for place in range(3))


class SecureClient:
    """One client in one round; `number` is its client id and `identity` its key in `session.members`.

    It helps to unmask no sum of fewer than `minimum` clients. Raises RefusedUpdateError if the session does not have it
    as a member, or could not protect it.
    """

    def __init__(self, number: int, session: Session, identity: Identity, *, minimum: int = 2) -> None:
        self.number = number
        self.session = session
        self.minimum = minimum
        self._identity = identity
        self._exchange = exchange_private(identity.private)
        self._next: Step | None = "share_keys"
        self._channel, self._masking, self._seed = (secrets.token_bytes(SECRET_BYTES) for _ in range(3))
        self._peers: dict[int, bytes] = {}  # the public masking key of every other client
        self._shares: dict[int, bytes] = {}  # shares of every client's two secrets, this one's included
        self._awaits_vector = False  # after the first half of step 2
        self._received = b""  # hash of the shared state from which the vector was trained
        self._survivors: tuple[int, ...] = ()
        if session.members.get(number) != identity.public:
            self._refuse("the list of members has another key in place of this client's own")
        if len(set(session.members.values())) < len(session.members):
            self._refuse("two members have the same identity key")
        if 2 * session.threshold <= len(session.members):
            self._refuse("the threshold is not above half of the members")
        self._check_threshold(len(session.members))

    def share_keys(self) -> bytes:
        """Step 1: send the public keys of this round, signed, and shares of both secrets, encrypted for each peer."""
        self._take_step("share_keys", following="masked_input")
        keys = public_key(self._channel) + public_key(self._masking) + commitment(self._seed)
        advertised = keys + self.session.threshold.to_bytes(THRESHOLD_BYTES, "little")
        signature = self._identity.sign(self.session.keys_message(self.number, advertised))
        clients = sorted(self.session.members)
        of_key, of_seed = (
            split(secret, clients, threshold=self.session.threshold) for secret in (self._masking, self._seed)
        )
        both = {client: of_key[client] + of_seed[client] for client in clients}
        self._shares[self.number] = both.pop(self.number)
        encrypted = {peer: self._encrypt(peer, share) for peer, share in both.items()}
        return self._message("share_keys", {self.number: advertised + signature, **encrypted})

    def masked_input(self, message: bytes, vector: MaskedVector, *, received: bytes = b"") -> bytes:
        """Step 2: given the keys and shares of the peers that are still there, send the masked vector.

        `received` is the hash of the shared state from which the vector was trained.
        """
        self.receive_keys(message)
        return self.mask_vector(vector, received=received)

    def receive_keys(self, message: bytes) -> None:
        """The first half of step 2, before the vector is computed: check the keys and shares of the peers."""
        self._take_step("masked_input", following=None)
        for peer, part in self._read("share_keys", message).items():
            advertised, signature = part[:ADVERTISED_BYTES], part[ADVERTISED_BYTES:SIGNED_BYTES]
            if peer == self.number or peer not in self.session.members:
                self._refuse("the list of keys has somebody who is not another member of this round")
            if not verified(self.session.members[peer], self.session.keys_message(peer, advertised), signature):
                self._refuse(f"the keys of client {peer} are not signed by it for this round, members and threshold")
            self._peers[peer] = advertised[MASKING]
            self._shares[peer] = self._decrypt(peer, advertised[CHANNEL], part[SIGNED_BYTES:])
        self._check_threshold(len(self._shares))
        self._awaits_vector = True

    def mask_vector(self, vector: MaskedVector, *, received: bytes = b"") -> bytes:
        """The second half of step 2: send the masked vector."""
        if not self._awaits_vector:
            self._refuse("masked_input is out of order")
        self._awaits_vector, self._next = False, "consistency_check"
        if len(vector) != self.session.length:
            self._refuse("the vector has another length than the members signed")
        self._received = received
        total = vector + mask(derive(self._seed, "own mask"), len(vector))
        for peer, masking in self._peers.items():
            pair = pair_mask(self._masking, masking, self.session)
            total = total + pair if self.number < peer else total - pair
        return self._message("masked_input", {self.number: np.ascontiguousarray(total, dtype="<u8").tobytes()})

    def consistency_check(self, message: bytes) -> bytes:
        """Step 3: sign the list of survivors, whose vectors arrived; never a second list in the same session."""
        self._take_step("consistency_check", following="unmask")
        survivors = self._read("consistency_check", message).keys()
        if not survivors <= self._shares.keys() or self.number not in survivors:
            self._refuse("the list of survivors has strangers in it or lacks this client")
        self._check_threshold(len(survivors))
        self._survivors = tuple(sorted(survivors))
        return self._message("consistency_check", {self.number: self._identity.sign(self._survivors_message())})

    def unmask(self, message: bytes) -> bytes:
        """Step 4: send a share of the seed of each survivor, and of the key of each client that dropped out.

        Never both for one client, and only if a threshold of survivors signed the same list, of clients that trained
        from the same shared state. A signature of anything else does not count.
        """
        self._take_step("unmask", following=None)
        agreed = [
            client
            for client, signature in self._read("unmask", message).items()
            if client in self._survivors
            and verified(self.session.members[client], self._survivors_message(), signature)
        ]
        if len(agreed) < self.session.threshold:
            self._refuse(
                f"{len(agreed)} clients, fewer than the threshold of {self.session.threshold}, signed the same list of "
                "survivors and the same shared state"
            )
        return self._message(
            "unmask",
            {
                client: share[SHARE_BYTES:] if client in self._survivors else share[:SHARE_BYTES]
                for client, share in self._shares.items()
            },
        )

    def _survivors_message(self) -> bytes:
        return self.session.survivors_message(self._survivors, self._received)

    def _encrypt(self, peer: int, share: bytes) -> bytes:
        secret = agree(self._channel, exchange_public(self.session.members[peer]))
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher(secret, sender=self.number, receiver=peer).encrypt(nonce, share, None)

    def _decrypt(self, peer: int, channel: bytes, encrypted: bytes) -> bytes:
        cipher = self._cipher(agree(self._exchange, channel), sender=peer, receiver=self.number)
        try:
            share = cipher.decrypt(encrypted[:NONCE_BYTES], encrypted[NONCE_BYTES:], None)
        except (InvalidTag, ValueError) as error:
            raise RefusedUpdateError("message", f"the shares of client {peer} cannot be decrypted.") from error
        if len(share) != 2 * SHARE_BYTES:
            self._refuse("a share has the wrong size")
        return share

    def _cipher(self, secret: bytes, *, sender: int, receiver: int) -> AESGCM:
        """The cipher of a peer's shares, with a key bound to the session, the sender and the receiver."""
        return AESGCM(derive(secret, "shares", self.session.digest.hex(), sender, receiver))

    def _check_threshold(self, count: int) -> None:
        if count < self.session.threshold:
            self._refuse(f"{count} clients are fewer than the threshold of {self.session.threshold}")
        if count < self.minimum:
            self._refuse(f"a sum over {count} clients would be below its minimum of {self.minimum}")

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


def pair_mask(private: bytes, public: bytes, session: Session) -> MaskedVector:
    """The mask that two clients share, from one's private and the other's public key."""
    return mask(derive(agree(private, public), "pair mask", session.digest.hex()), session.length)
