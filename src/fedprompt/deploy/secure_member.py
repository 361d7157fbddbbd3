"""A site's part in secure sums: its secrets stay in the worker's memory for one round; no round is summed twice."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace

from fedprompt.deploy.site_policy import RefusedError
from fedprompt.deploy.site_state import SiteState
from fedprompt.federated.secure.masks import MaskedVector
from fedprompt.federated.secure.secure_client import SecureClient
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.federated.secure.vector import Codec
from fedprompt.runtimes.payload import ADVERTISE_KEYS, MASKED_INPUT, MESSAGE, SHARE_KEYS, Payload

RULE = "secure sums"


class Membership:
    """A site's `SecureClient` in the round under way."""

    def __init__(self) -> None:
        self._client: SecureClient | None = None

    def answer(
        self, request: Payload, secure: SecureSum, state: SiteState, vector: Callable[[Codec], MaskedVector]
    ) -> Payload:
        """Take the step that is asked for; `vector` trains and encodes the change.

        Raises RefusedError for a round that was unmasked before: two sums of the same training could reveal one site's.
        """
        fields = request.fields
        number, clients = int(fields["round"]), int(fields["clients"])
        session = replace(secure, run=f"{fields['run']}/{fields['trial']}").session(number, clients)
        if request.kind == ADVERTISE_KEYS:
            if number <= state.unmasked():
                raise RefusedError("this round was summed before; begin a new run.", rule=RULE)
            self._client = SecureClient(int(fields["client"]), session)
            return Payload.of_message(self._client.advertise_keys())
        client = self._client
        if client is None or client.session != session:
            raise RefusedError("the site's worker was started again in this round.", rule=RULE)
        message = b64decode(fields[MESSAGE], validate=True)
        if request.kind == SHARE_KEYS:
            return Payload.of_message(client.share_keys(message))
        if request.kind == MASKED_INPUT:
            return Payload.of_message(client.masked_input(message, vector(secure.codec(clients))))
        state.mark_unmasked(number)  # before the answer: a site that dies now must not be asked again
        return Payload.of_message(client.unmask(message))
