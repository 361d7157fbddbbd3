"""A client's side of secure aggregation: four steps, each once, and what an honest client refuses to do.

The caller carries bytes: `keys()` goes to the server; its answer into `shares(...)`; the server's answer to that into
`masked(...)` with the client's vector; the server's request into `unmask(...)`. One object lives one round.
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
CARD_BYTES = 3 * KEY_BYTES  # two public keys and what the own seed is known again by


@dataclass(frozen=True)
class Session:
    """What both sides know before a round's first message.

    `sign` makes a site's signature of its public keys and `verify(member, keys, signature)` checks a peer's. Without
    them the server is trusted not to hand out keys of its own in place of the peers'.
    """

    run: str
    round_number: int
    threshold: int
    sign: Callable[[bytes], bytes] | None = None
    verify: Callable[[int, bytes, bytes], bool] | None = None


class Member:
    """One client in one round."""

    def __init__(self, client: int, session: Session) -> None:
        self.client = client
        self.session = session
        self._next: Step | None = "keys"
        self._channel, self._masking, self._seed = (secrets.token_bytes(SECRET_BYTES) for _ in range(3))
        self._peers: dict[int, bytes] = {}  # both public keys of every member, one's own among them
        self._shares: dict[int, bytes] = {}  # of every member's two secrets, one's own among them

    def keys(self) -> bytes:
        """Step 1: the two public keys of this round, and a commitment to one's own seed."""
        self._turn("keys", "shares")
        card = public_key(self._channel) + public_key(self._masking) + commitment(self._seed)
        signature = self.session.sign(self._signed(self.client, card)) if self.session.sign else b""
        return self._say("keys", {self.client: card + signature})

    def shares(self, message: bytes) -> bytes:
        """Step 2: everybody's keys come in, shares of one's own two secrets go out, each sealed for one peer."""
        self._turn("shares", "masked")
        parts = self._hear("keys", message)
        for member, part in parts.items():
            card, signature = part[:CARD_BYTES], part[CARD_BYTES:]
            if len(card) != CARD_BYTES or member < 0:
                self._refuse("a peer's keys are not keys")
            if self.session.verify and not self.session.verify(member, self._signed(member, card), signature):
                self._refuse("a peer's keys are not signed by that peer")
            self._peers[member] = card[: 2 * KEY_BYTES]
        if self._peers.get(self.client) != public_key(self._channel) + public_key(self._masking):
            self._refuse("the list of keys has others in place of this client's own")
        self._enough(len(self._peers))
        if len(set(self._peers.values())) < len(self._peers):
            self._refuse("two members have the same keys")
        own = (split(secret, sorted(self._peers), threshold=self.session.threshold) for secret in self._secrets())
        pairs = [dict(shares) for shares in own]
        both = {member: pairs[0][member] + pairs[1][member] for member in self._peers}
        self._shares[self.client] = both.pop(self.client)
        return self._say("shares", {member: self._seal(member, share) for member, share in both.items()})

    def masked(self, message: bytes, words: MaskedVector) -> bytes:
        """Step 3: shares of the peers that are still there come in, the masked vector goes out."""
        self._turn("masked", "unmask")
        for member, sealed in self._hear("shares", message).items():
            if member == self.client or member not in self._peers:
                self._refuse("shares came from somebody who has no keys")
            self._shares[member] = self._open(member, sealed)
        self._enough(len(self._shares))
        total = words + mask(derive(self._seed, "own mask"), len(words))
        for member in self._shares.keys() - {self.client}:
            pair = pair_mask(self._masking, self._peers[member][KEY_BYTES:], self.session, len(words))
            total = total + pair if self.client < member else total - pair
        return self._say("masked", {self.client: np.ascontiguousarray(total, dtype="<u8").tobytes()})

    def unmask(self, message: bytes) -> bytes:
        """Step 4: for members that arrived a share of their own seed goes out, for the others one of their key.

        Never both for one member, never a second time, never for fewer arrived members than the threshold.
        """
        self._turn("unmask", None)
        arrived = set(self._hear("unmask", message))
        if not arrived <= self._shares.keys() or self.client not in arrived:
            self._refuse("the list of arrived members has strangers in it or lacks this client")
        self._enough(len(arrived))
        return self._say(
            "unmask",
            {
                member: share[SHARE_BYTES:] if member in arrived else share[:SHARE_BYTES]
                for member, share in self._shares.items()
            },
        )

    def _secrets(self) -> tuple[bytes, bytes]:
        """In the order in which shares are joined: the masking key, the own seed."""
        return self._masking, self._seed

    def _signed(self, member: int, card: bytes) -> bytes:
        return f"{self.session.run}/{self.session.round_number}/{member}/".encode() + card

    def _sealing(self, member: int, *, sender: int, receiver: int) -> tuple[AESGCM, bytes]:
        key = derive(agree(self._channel, self._peers[member][:KEY_BYTES]), "shares", *_place(self.session))
        return AESGCM(key), f"{sender}/{receiver}".encode()

    def _seal(self, member: int, share: bytes) -> bytes:
        cipher, about = self._sealing(member, sender=self.client, receiver=member)
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + cipher.encrypt(nonce, share, about)

    def _open(self, member: int, sealed: bytes) -> bytes:
        cipher, about = self._sealing(member, sender=member, receiver=self.client)
        try:
            share = cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], about)
        except (InvalidTag, ValueError) as error:
            raise RefusedUpdateError("message", f"the shares of client {member} cannot be opened.") from error
        if len(share) != 2 * SHARE_BYTES:
            self._refuse("a share has the wrong size")
        return share

    def _enough(self, count: int) -> None:
        if count < self.session.threshold:
            self._refuse(f"{count} members are fewer than the {self.session.threshold} that hide one another")

    def _turn(self, step: Step, following: Step | None) -> None:
        """Every step happens once and in order; after a refusal nothing happens any more."""
        now, self._next = self._next, None
        if now != step:
            self._refuse(f"{step} is not what comes now")
        self._next = following

    def _refuse(self, reason: str) -> NoReturn:
        self._next = None
        raise RefusedUpdateError("secure", f"client {self.client} refuses: {reason}.")

    def _hear(self, step: Step, message: bytes) -> Mapping[int, bytes]:
        envelope = Envelope.from_bytes(message)
        return envelope.expect(step, self.session.round_number, sender=SERVER).parts

    def _say(self, step: Step, parts: Mapping[int, bytes]) -> bytes:
        return Envelope(step, self.client, self.session.round_number, parts).to_bytes()


def commitment(seed: bytes) -> bytes:
    """What shows later that shares gave back this very seed, and until then says nothing about it."""
    return derive(seed, "commitment")


def pair_mask(private: bytes, public: bytes, session: Session, count: int) -> MaskedVector:
    """The mask that two members share, from one's private and the other's public key."""
    return mask(derive(agree(private, public), "pair mask", *_place(session)), count)


def _place(session: Session) -> tuple[str, int]:
    return session.run, session.round_number
