"""The server's side of secure aggregation: relays messages between clients, and unmasks the sum at the end.

Each method takes the clients' answers (client -> bytes) and returns what to send next. A broken or missing answer
counts as a dropout; with fewer than `threshold` clients left the round is abandoned. Clients do not rely on anything
that is checked here: the checks name the client that breaks the protocol, and let the round go on without it.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedprompt.errors import refusing
from fedprompt.federated.screening import RefusedUpdateError
from fedprompt.federated.secure.envelope import SERVER, Envelope, Step
from fedprompt.federated.secure.masks import KEY_BYTES, MaskedVector, agree, derive, mask, public_key
from fedprompt.federated.secure.secure_client import (
    ADVERTISED_BYTES,
    CHANNEL,
    MASKING,
    SEED,
    SIGNED_BYTES,
    commitment,
    pair_mask,
)
from fedprompt.federated.secure.session import Session, verified
from fedprompt.federated.secure.shamir import SHARE_BYTES, join

THRESHOLD = slice(3 * KEY_BYTES, ADVERTISED_BYTES)


class SecureServer:
    """One round at the server. `refused` gives the reason per client that broke off.

    The threshold of `session` is the least that the server accepts. The clients compute it themselves; the server
    adopts the one that most of them signed.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.refused: dict[int, str] = {}
        self._keys: dict[int, bytes] = {}
        self._sharing: tuple[int, ...] = ()  # clients whose shares everybody has, so that they are in the masks
        self._inputs: dict[int, MaskedVector] = {}
        self._agreed: tuple[int, ...] = ()  # survivors that signed the list of survivors

    def relay_shares(self, answers: Mapping[int, bytes]) -> dict[int, bytes]:
        """After step 1: for each client the keys of the others, and the shares that they encrypted for it."""
        read = self._read("share_keys", answers)
        keys = {client: parts[client] for client, parts in read.items() if self._are_keys(client, parts)}
        self._adopt_threshold(keys)
        for client, part in keys.items():
            advertised, signature = part[:ADVERTISED_BYTES], part[ADVERTISED_BYTES:]
            message = self.session.keys_message(client, advertised)
            if not verified(self.session.members[client], message, signature):
                self.refused[client] = (
                    "signature: its keys are not signed by the identity key that the server knows; its roster, its "
                    f"recipe or its threshold ({_threshold(part)}, here {self.session.threshold}) differs."
                )
        self._keys = {client: part for client, part in keys.items() if client not in self.refused}
        self._check_threshold(len(self._keys))
        self._sharing = tuple(sorted(self._keys))
        return {
            client: self._message(
                "share_keys",
                {peer: self._keys[peer] + read[peer][client] for peer in self._sharing if peer != client},
            )
            for client in self._sharing
        }

    def collect_masked_inputs(self, answers: Mapping[int, bytes]) -> bytes:
        """After step 2: the list of survivors, for those clients."""
        read = self._read("masked_input", {client: answers[client] for client in answers if client in self._sharing})
        for client, parts in read.items():
            data = parts.get(client, b"")
            if len(parts) != 1 or len(data) != 8 * self.session.length:
                self.refused[client] = "size: its masked input has the wrong size."
            else:
                self._inputs[client] = np.frombuffer(data, dtype="<u8").astype(np.uint64, copy=False)
        self._check_threshold(len(self._inputs))
        return self._message("consistency_check", dict.fromkeys(sorted(self._inputs), b""))

    def collect_signatures(self, answers: Mapping[int, bytes], *, received: bytes = b"") -> bytes:
        """After step 3: the survivors' signatures, for everybody who signed.

        `received` is the hash of the shared state that the server sent.
        """
        read = self._read(
            "consistency_check", {client: answers[client] for client in answers if client in self._inputs}
        )
        message = self.session.survivors_message(self._inputs, received)
        signatures = {client: parts.get(client, b"") for client, parts in read.items()}
        for client, signature in signatures.items():
            if not verified(self.session.members[client], message, signature):
                self.refused[client] = "signature: it did not sign this list of survivors and the shared state sent."
        kept = {client: one for client, one in signatures.items() if client not in self.refused}
        self._check_threshold(len(kept))
        self._agreed = tuple(sorted(kept))
        return self._message("unmask", kept)

    def unmask(self, answers: Mapping[int, bytes]) -> tuple[MaskedVector, tuple[int, ...]]:
        """After step 4: the sum of the vectors that arrived, and their clients."""
        read = self._read("unmask", {client: answers[client] for client in answers if client in self._agreed})
        helpers = {
            client: parts
            for client, parts in read.items()
            if parts.keys() == set(self._sharing) and all(len(share) == SHARE_BYTES for share in parts.values())
        }
        self._check_threshold(len(helpers))
        total = np.zeros(self.session.length, dtype=np.uint64)
        for vector in self._inputs.values():
            total += vector
        for client in self._sharing:
            secret = join({helper: parts[client] for helper, parts in list(helpers.items())[: self.session.threshold]})
            if secret is None:
                raise self._abandoned(f"the shares of client {client} do not fit together")
            if client in self._inputs:
                # A forged share reconstructs a wrong secret, whose mask would turn the whole sum into noise.
                if commitment(secret) != self._keys[client][SEED]:
                    raise self._abandoned(f"the shares of client {client} do not fit its seed")
                total -= mask(derive(secret, "own mask"), self.session.length)
            else:
                self._remove_pair_masks(total, client, secret)
        return total, tuple(sorted(self._inputs))

    def _remove_pair_masks(self, total: MaskedVector, dropped: int, private: bytes) -> None:
        """Remove the masks between the arrived clients and one that dropped out after sharing its secrets."""
        if public_key(private) != self._keys[dropped][MASKING]:
            raise self._abandoned(f"the shares of client {dropped} do not fit its key")
        for client in self._inputs:
            pair = pair_mask(private, self._keys[client][MASKING], self.session)
            if client < dropped:
                total -= pair
            else:
                total += pair

    def _read(self, step: Step, answers: Mapping[int, bytes]) -> dict[int, Mapping[int, bytes]]:
        read = {}
        for client in sorted(answers):
            with refusing(self.refused, client):
                envelope = Envelope.from_bytes(answers[client])
                read[client] = envelope.expect(step, self.session.round_number, sender=client).parts
        return read

    def _are_keys(self, client: int, parts: Mapping[int, bytes]) -> bool:
        keys = parts.get(client, b"")
        if len(keys) != SIGNED_BYTES or parts.keys() != self.session.members.keys():
            self.refused[client] = "message: its keys and shares are not those of the clients of this round."
            return False
        with refusing(self.refused, client):
            for part in (CHANNEL, MASKING):
                agree(secrets.token_bytes(KEY_BYTES), keys[part])
        return client not in self.refused

    def _adopt_threshold(self, keys: Mapping[int, bytes]) -> None:
        """Take the threshold that most clients advertise, the higher one of two that are as frequent."""
        stated = Counter(_threshold(part) for part in keys.values())
        threshold = max(stated, key=lambda one: (stated[one], one), default=0)
        self.session = replace(self.session, threshold=max(threshold, self.session.threshold))

    def _message(self, step: Step, parts: Mapping[int, bytes]) -> bytes:
        return Envelope(step, SERVER, self.session.round_number, parts).to_bytes()

    def _check_threshold(self, count: int) -> None:
        if count < self.session.threshold:
            raise self._abandoned(f"{count} clients are left of the {self.session.threshold} that it needs")

    def _abandoned(self, reason: str) -> RefusedUpdateError:
        number = self.session.round_number
        return RefusedUpdateError("secure", f"the secure sum of round {number} is abandoned: {reason}.")


def _threshold(part: bytes) -> int:
    """The threshold that a client advertises with its keys."""
    return int.from_bytes(part[THRESHOLD], "little")
