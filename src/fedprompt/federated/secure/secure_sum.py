"""The parameters of secure aggregation in a run, and what they give each round: codec and session."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedprompt.errors import UserError
from fedprompt.federated.aggregation.base import Weighting
from fedprompt.federated.privacy.distributed import DistributedPrivacy
from fedprompt.federated.screening import RefusedUpdateError
from fedprompt.federated.secure.masks import MaskedVector
from fedprompt.federated.secure.session import Session, threshold_of
from fedprompt.federated.secure.vector import Codec


@dataclass(frozen=True)
class SecureSum:
    """Secure aggregation of a round's updates: the server sees their mean and nothing else.

    `share` of the clients must stay to the end of a round. Over a network a site runs a `SecureClient` and the server
    a `SecureServer`; `simulation.simulate` runs both in one process. `identities` are the clients' public identity
    keys, and `job` is what else all must agree on. A site sets `minimum`, the least number of clients in a round, and
    `colluders`, the number of them that may work with the server; both only raise the threshold or refuse a round.
    With `privacy` every client adds its share of noise before masking. Where not `sends_loss`, losses stay at the
    clients.
    """

    share: float = 2 / 3
    clip: float = 100.0
    weighting: Weighting = "uniform"
    most_examples: int = 10_000
    run: str = field(default_factory=lambda: secrets.token_hex(16))
    identities: Mapping[int, bytes] = field(default_factory=dict)
    job: str = ""
    minimum: int = 2
    colluders: int = 0
    privacy: DistributedPrivacy | None = None
    sends_loss: bool = True

    def __post_init__(self) -> None:
        if not 0.5 < self.share <= 1:
            raise UserError(f"The option share = {self.share} of secure sums must be above 0.5 and at most 1.")
        if self.privacy is not None and self.weighting != "uniform":
            raise UserError("Distributed noise is accounted for the plain uniform mean; leave out the weighting.")

    def codec(self, clients: int) -> Codec:
        """How this many clients encode their changes."""
        return Codec(self.clip, max(clients, 1), self.weighting, self.most_examples, self.privacy, self.sends_loss)

    def session(self, round_number: int, clients: Sequence[int], *, length: int, nonce: str = "") -> Session:
        """What these clients and the server agree on before a round.

        Raises RefusedUpdateError for a round that cannot be protected: with clients of unknown identity, or too few.
        """
        count = len(clients)
        for client in clients:
            if client not in self.identities:
                raise RefusedUpdateError("secure", f"the identity key of client {client} is unknown.")
        threshold = threshold_of(self.share, count, colluders=self.colluders)
        if len(set(clients)) < count:
            raise RefusedUpdateError("secure", "the list of members names a site twice.")
        if count < self.minimum:
            raise RefusedUpdateError(
                "secure", f"{count} clients are fewer than the minimum of {self.minimum} in a secure sum."
            )
        if threshold > count:
            raise RefusedUpdateError(
                "secure", f"{count} clients cannot be protected if {self.colluders} of them work with the server."
            )
        members = {client: self.identities[client] for client in clients}
        return Session(self.run, round_number, members, threshold, length, nonce, self.job)

    def add_noise(self, vector: MaskedVector, session: Session) -> MaskedVector:
        """The vector with a client's share of the noise, which suffices if only the threshold of clients survives."""
        if self.privacy is None:
            return vector
        return self.codec(len(session.members)).add_noise(vector, honest=session.threshold - self.colluders)
