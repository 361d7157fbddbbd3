"""The parameters of secure aggregation in a run, and what they give each round: codec, threshold and session."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, field

from fedprompt.errors import UserError
from fedprompt.federated.aggregation.base import Weighting
from fedprompt.federated.secure.secure_client import Session
from fedprompt.federated.secure.vector import Codec


def threshold_of(share: float, clients: int) -> int:
    """How many clients must stay to the end of a round.

    It is always more than half, so the server cannot ask two disjoint groups with inconsistent lists of survivors; the
    paper's separate consistency check is not needed for that.
    """
    return max(math.ceil(share * clients - 1e-9), clients // 2 + 1, 2)


@dataclass(frozen=True)
class SecureSum:
    """Secure aggregation of a round's updates: the server sees their mean and nothing else.

    `share` of the clients must stay to the end of a round. Over a network a site runs a `SecureClient` and the server
    a `SecureServer`; `simulation.simulate` runs both in one process.
    """

    share: float = 2 / 3
    clip: float = 100.0
    weighting: Weighting = "uniform"
    most_examples: int = 10_000
    run: str = field(default_factory=lambda: secrets.token_hex(16))

    def __post_init__(self) -> None:
        if not 0.5 < self.share <= 1:
            raise UserError(f"The option share = {self.share} of secure sums must be above 0.5 and at most 1.")

    def codec(self, clients: int) -> Codec:
        """How this many clients encode their changes."""
        return Codec(self.clip, max(clients, 1), self.weighting, self.most_examples)

    def session(self, round_number: int, clients: int) -> Session:
        """What this many clients and the server agree on before a round."""
        return Session(self.run, round_number, threshold_of(self.share, clients))
