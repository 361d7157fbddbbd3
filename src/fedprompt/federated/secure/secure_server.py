"""The server's side of secure aggregation: relays messages between clients, and unmasks the sum at the end.

Each method takes the clients' answers (client -> bytes) and returns what to send next. A broken or missing answer
counts as a dropout; with fewer than `threshold` clients left the round is abandoned.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import numpy as np

from fedprompt.federated.screening import RefusedUpdateError
from fedprompt.federated.secure.envelope import SERVER, Envelope, Step
from fedprompt.federated.secure.masks import KEY_BYTES, MaskedVector, agree, derive, mask, public_key
from fedprompt.federated.secure.secure_client import ADVERTISED_BYTES, Session, commitment, pair_mask
from fedprompt.federated.secure.shamir import SHARE_BYTES, join


class SecureServer:
    """One round at the server; `length` is that of a vector. `refused` gives the reason per client that broke off."""

    def __init__(self, session: Session, *, length: int) -> None:
        self.session = session
        self.length = length
        self.refused: dict[int, str] = {}
        self._keys: dict[int, bytes] = {}
        self._sharing: tuple[int, ...] = ()  # clients whose shares everybody has, so that they are in the masks
        self._inputs: dict[int, MaskedVector] = {}

    def collect_keys(self, answers: Mapping[int, bytes]) -> bytes:
        """After step 1: the list of everybody's public keys, for everybody."""
        read = self._read("advertise_keys", answers)
        self._keys = {client: parts[client] for client, parts in read.items() if self._are_keys(client, parts)}
        self._check_threshold(len(self._keys))
        return self._message("advertise_keys", self._keys)

    def relay_shares(self, answers: Mapping[int, bytes]) -> dict[int, bytes]:
        """After step 2: for each client the shares that the others encrypted for it."""
        read = self._read("share_keys", {client: answers[client] for client in answers if client in self._keys})
        expected = self._keys.keys()
        for client, parts in read.items():
            if parts.keys() != expected - {client}:
                self.refused[client] = "message: its shares are not for the clients of this round."
        kept = {client: parts for client, parts in read.items() if client not in self.refused}
        self._check_threshold(len(kept))
        self._sharing = tuple(sorted(kept))
        return {
            client: self._message(
                "share_keys", {other: kept[other][client] for other in self._sharing if other != client}
            )
            for client in self._sharing
        }

    def collect_masked_inputs(self, answers: Mapping[int, bytes]) -> bytes:
        """After step 3: the list of clients that arrived, for those clients."""
        read = self._read("masked_input", {client: answers[client] for client in answers if client in self._sharing})
        for client, parts in read.items():
            data = parts.get(client, b"")
            if len(parts) != 1 or len(data) != 8 * self.length:
                self.refused[client] = "size: its masked input has the wrong size."
            else:
                self._inputs[client] = np.frombuffer(data, dtype="<u8").astype(np.uint64, copy=False)
        self._check_threshold(len(self._inputs))
        return self._message("unmask", dict.fromkeys(sorted(self._inputs), b""))

    def unmask(self, answers: Mapping[int, bytes]) -> tuple[MaskedVector, tuple[int, ...]]:
        """After step 4: the sum of the vectors that arrived, and their clients."""
        read = self._read("unmask", {client: answers[client] for client in answers if client in self._inputs})
        helpers = {
            client: parts
            for client, parts in read.items()
            if parts.keys() == set(self._sharing) and all(len(share) == SHARE_BYTES for share in parts.values())
        }
        self._check_threshold(len(helpers))
        total = np.zeros(self.length, dtype=np.uint64)
        for vector in self._inputs.values():
            total += vector
        for client in self._sharing:
            secret = join({helper: parts[client] for helper, parts in list(helpers.items())[: self.session.threshold]})
            if secret is None:
                raise self._abandoned(f"the shares of client {client} do not fit together")
            if client in self._inputs:
                # A forged share reconstructs a wrong secret, whose mask would turn the whole sum into noise.
                if commitment(secret) != self._keys[client][2 * KEY_BYTES : ADVERTISED_BYTES]:
                    raise self._abandoned(f"the shares of client {client} do not fit its seed")
                total -= mask(derive(secret, "own mask"), self.length)
            else:
                self._remove_pair_masks(total, client, secret)
        return total, tuple(sorted(self._inputs))

    def _remove_pair_masks(self, total: MaskedVector, dropped: int, private: bytes) -> None:
        """Remove the masks between the arrived clients and one that dropped out after sharing its secrets."""
        if public_key(private) != self._keys[dropped][KEY_BYTES : 2 * KEY_BYTES]:
            raise self._abandoned(f"the shares of client {dropped} do not fit its key")
        for client in self._inputs:
            pair = pair_mask(private, self._keys[client][KEY_BYTES : 2 * KEY_BYTES], self.session, self.length)
            if client < dropped:
                total -= pair
            else:
                total += pair

    def _read(self, step: Step, answers: Mapping[int, bytes]) -> dict[int, Mapping[int, bytes]]:
        read = {}
        for client in sorted(answers):
            try:
                envelope = Envelope.from_bytes(answers[client])
                read[client] = envelope.expect(step, self.session.round_number, sender=client).parts
            except RefusedUpdateError as refusal:
                self.refused[client] = str(refusal)
        return read

    def _are_keys(self, client: int, parts: Mapping[int, bytes]) -> bool:
        keys = parts.get(client, b"")
        if len(keys) < ADVERTISED_BYTES:
            self.refused[client] = "size: its keys have the wrong size."
            return False
        try:
            for start in (0, KEY_BYTES):
                agree(secrets.token_bytes(KEY_BYTES), keys[start : start + KEY_BYTES])
        except RefusedUpdateError as refusal:
            self.refused[client] = str(refusal)
        return client not in self.refused

    def _message(self, step: Step, parts: Mapping[int, bytes]) -> bytes:
        return Envelope(step, SERVER, self.session.round_number, parts).to_bytes()

    def _check_threshold(self, count: int) -> None:
        if count < self.session.threshold:
            raise self._abandoned(f"{count} clients are left of the {self.session.threshold} that it needs")

    def _abandoned(self, reason: str) -> RefusedUpdateError:
        number = self.session.round_number
        return RefusedUpdateError("secure", f"the secure sum of round {number} is abandoned: {reason}.")
