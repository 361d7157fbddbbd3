"""The server's side of secure aggregation: passes messages on, and takes the masks off the sum at the end.

Each method takes what the members answered (client -> bytes) and gives what to send next. A broken or missing answer
is a member who dropped out; with fewer than `threshold` members left the round is given up.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import numpy as np

from fedprompt.federated.screening import RefusedUpdateError
from fedprompt.federated.secure.envelope import SERVER, Envelope, Step
from fedprompt.federated.secure.masks import KEY_BYTES, MaskedVector, agree, derive, mask, public_key
from fedprompt.federated.secure.member import CARD_BYTES, Session, commitment, pair_mask
from fedprompt.federated.secure.shamir import SHARE_BYTES, join


class Collector:
    """One round at the server. `refused` says why members dropped out who answered something unusable."""

    def __init__(self, session: Session, *, count: int) -> None:
        self.session = session
        self.count = count  # words of a vector
        self.refused: dict[int, str] = {}
        self._keys: dict[int, bytes] = {}
        self._sharing: tuple[int, ...] = ()  # members whose shares everybody has: they are in the masks
        self._sum: dict[int, MaskedVector] = {}

    def keys(self, answers: Mapping[int, bytes]) -> bytes:
        """After step 1: everybody's public keys, for everybody."""
        heard = self._hear("keys", answers)
        self._keys = {member: parts[member] for member, parts in heard.items() if self._are_keys(member, parts)}
        self._enough(len(self._keys))
        return self._say("keys", self._keys)

    def shares(self, answers: Mapping[int, bytes]) -> dict[int, bytes]:
        """After step 2: for each member what the others sealed for it."""
        heard = self._hear("shares", {member: answers[member] for member in answers if member in self._keys})
        expected = self._keys.keys()
        for member, parts in heard.items():
            if parts.keys() != expected - {member}:
                self.refused[member] = "message: its shares are not for the members there are."
        kept = {member: parts for member, parts in heard.items() if member not in self.refused}
        self._enough(len(kept))
        self._sharing = tuple(sorted(kept))
        return {
            member: self._say("shares", {other: kept[other][member] for other in self._sharing if other != member})
            for member in self._sharing
        }

    def masked(self, answers: Mapping[int, bytes]) -> bytes:
        """After step 3: who has arrived, for those who have."""
        heard = self._hear("masked", {member: answers[member] for member in answers if member in self._sharing})
        for member, parts in heard.items():
            data = parts.get(member, b"")
            if len(parts) != 1 or len(data) != 8 * self.count:
                self.refused[member] = "size: its masked vector has the wrong size."
            else:
                self._sum[member] = np.frombuffer(data, dtype="<u8").astype(np.uint64, copy=False)
        self._enough(len(self._sum))
        return self._say("unmask", dict.fromkeys(sorted(self._sum), b""))

    def unmask(self, answers: Mapping[int, bytes]) -> tuple[MaskedVector, tuple[int, ...]]:
        """After step 4: the sum of the vectors, and whose they are."""
        heard = self._hear("unmask", {member: answers[member] for member in answers if member in self._sum})
        helpers = {
            member: parts
            for member, parts in heard.items()
            if parts.keys() == set(self._sharing) and all(len(share) == SHARE_BYTES for share in parts.values())
        }
        self._enough(len(helpers))
        total = np.zeros(self.count, dtype=np.uint64)
        for words in self._sum.values():
            total += words
        for member in self._sharing:
            secret = join({helper: parts[member] for helper, parts in list(helpers.items())[: self.session.threshold]})
            if secret is None:
                raise self._given_up(f"the shares of client {member} do not fit together")
            if member in self._sum:
                # A share that a adversary made up gives back some other secret, whose mask would drown the whole sum.
                if commitment(secret) != self._keys[member][2 * KEY_BYTES : CARD_BYTES]:
                    raise self._given_up(f"the shares of client {member} do not fit its seed")
                total -= mask(derive(secret, "own mask"), self.count)
            else:
                self._take_off(total, member, secret)
        return total, tuple(sorted(self._sum))

    def _take_off(self, total: MaskedVector, dropped: int, private: bytes) -> None:
        """Remove the masks that the arrived members share with one who dropped out after handing out shares."""
        if public_key(private) != self._keys[dropped][KEY_BYTES : 2 * KEY_BYTES]:
            raise self._given_up(f"the shares of client {dropped} do not fit its key")
        for member in self._sum:
            pair = pair_mask(private, self._keys[member][KEY_BYTES : 2 * KEY_BYTES], self.session, self.count)
            if member < dropped:
                total -= pair
            else:
                total += pair

    def _hear(self, step: Step, answers: Mapping[int, bytes]) -> dict[int, Mapping[int, bytes]]:
        heard = {}
        for member in sorted(answers):
            try:
                envelope = Envelope.from_bytes(answers[member])
                heard[member] = envelope.expect(step, self.session.round_number, sender=member).parts
            except RefusedUpdateError as refusal:
                self.refused[member] = str(refusal)
        return heard

    def _are_keys(self, member: int, parts: Mapping[int, bytes]) -> bool:
        keys = parts.get(member, b"")
        if len(keys) < CARD_BYTES:
            self.refused[member] = "size: its keys have the wrong size."
            return False
        try:
            for start in (0, KEY_BYTES):
                agree(secrets.token_bytes(KEY_BYTES), keys[start : start + KEY_BYTES])
        except RefusedUpdateError as refusal:
            self.refused[member] = str(refusal)
        return member not in self.refused

    def _say(self, step: Step, parts: Mapping[int, bytes]) -> bytes:
        return Envelope(step, SERVER, self.session.round_number, parts).to_bytes()

    def _enough(self, count: int) -> None:
        if count < self.session.threshold:
            raise self._given_up(f"{count} of the {self.session.threshold} members it needs are there")

    def _given_up(self, reason: str) -> RefusedUpdateError:
        number = self.session.round_number
        return RefusedUpdateError("secure", f"the secure sum of round {number} is given up: {reason}.")
