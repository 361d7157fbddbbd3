"""A site as a member of secure sums: a round's secrets stay in the worker's memory, and no round is summed twice."""

from __future__ import annotations

import hashlib
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedprompt.deploy.identity import load_identity, public_key
from fedprompt.deploy.settings import SiteFile
from fedprompt.deploy.site_policy import RefusedError
from fedprompt.deploy.site_state import SiteState
from fedprompt.federated.secure.masks import MaskedVector
from fedprompt.federated.secure.secure_client import SecureClient
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.federated.secure.session import Session
from fedprompt.federated.secure.vector import Codec
from fedprompt.runtimes.payload import (
    CONSISTENCY_CHECK,
    MASKED_INPUT,
    MESSAGE,
    SHARE_KEYS,
    Fields,
    Payload,
)

RULE = "secure sums"
# codec -> the site's encoded update, and the hash of the shared state from which it was trained
Train = Callable[[Codec], tuple[MaskedVector, bytes]]


def secure_sum_of_job(secure: SecureSum, job: Fields, identities: Mapping[int, bytes]) -> SecureSum:
    """A trial's secure sum, bound to the run, the trial, the whole recipe and the clients' identity keys."""
    recipe = hashlib.sha256(str(job["recipe"]).encode()).hexdigest()
    return replace(secure, run=f"{job['run']}/{job['trial']}", job=recipe, identities=identities)


def secure_sum_of_site(
    secure: SecureSum, job: Fields, names: Sequence[str], *, settings: SiteFile, folder: Path
) -> SecureSum:
    """The same with the identity keys, the minimum and the number of colluders in the site's own files.

    `names` are those of the clients, in order. Raises RefusedError for a client that is not in the site's roster.
    """
    identities = {}
    for client, name in enumerate(names):
        if name == settings.name:
            identities[client] = load_identity(folder).public
        elif name in settings.roster.sites:
            identities[client] = public_key(settings.roster.sites[name])
        else:
            raise RefusedError(
                f"the site {name} is not in the roster of {settings.name}; add it with: fedprompt site roster add",
                rule="roster",
            )
    own = secure_sum_of_job(secure, job, identities)
    return replace(own, minimum=settings.policy.minimum, colluders=settings.policy.colluders)


class SecureMember:
    """The site's `SecureClient` of the current round."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._client: SecureClient | None = None

    def answer(
        self, request: Payload, secure: SecureSum, state: SiteState, train: Train, length: Callable[[], int]
    ) -> Payload:
        """Answer one step of the protocol; `train` gives the vector, and `length` its length beforehand.

        Raises RefusedError for a round that was unmasked before: two sums of the same updates could expose one.
        """
        fields = request.fields
        number, members, nonce = int(fields["round"]), _members(fields["members"]), str(fields["nonce"])
        if request.kind == SHARE_KEYS:
            if number <= state.unmasked():
                raise RefusedError("this round was summed before, so it does not count again.", rule=RULE)
            session = secure.session(number, members, length=length(), nonce=nonce)
            identity = load_identity(self.folder)
            self._client = SecureClient(int(fields["client"]), session, identity, minimum=secure.minimum)
            return Payload.of_message(self._client.share_keys())
        client = self._client
        if client is None or not _same(client.session, secure, number, members, nonce):
            raise RefusedError("the site's worker was restarted in this round.", rule=RULE)
        message = _message(fields[MESSAGE])
        if request.kind == MASKED_INPUT:
            client.receive_keys(message)  # before a training is charged
            vector, received = train(secure.codec(len(members)))
            vector = secure.add_noise(vector, client.session)
            return Payload.of_message(client.mask_vector(vector, received=received))
        if request.kind == CONSISTENCY_CHECK:
            return Payload.of_message(client.consistency_check(message))
        answer = client.unmask(message)
        state.mark_unmasked(number)  # before the answer leaves, so that a crash now cannot lead to a second sum
        return Payload.of_message(answer)


def _message(value: str) -> bytes:
    try:
        return b64decode(value, validate=True)
    except ValueError as error:
        raise RefusedError("the request's message is not base64.", rule="request") from error


def _members(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(client) is int for client in value):
        raise RefusedError("the request's list of members is malformed.", rule="request")
    return tuple(value)


def _same(session: Session, secure: SecureSum, number: int, members: tuple[int, ...], nonce: str) -> bool:
    """Whether a later step belongs to the session of the first."""
    asked = (secure.run, secure.job, number, nonce, members)
    return asked == (session.run, session.job, session.round_number, session.nonce, tuple(session.members))
