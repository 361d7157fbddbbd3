"""Secure aggregation with everyone in one process: the real messages, as bytes, between members and collector."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedprompt.errors import UserError
from fedprompt.federated.aggregation.base import Weighting
from fedprompt.federated.screening import Limits, RefusedUpdateError, screen
from fedprompt.federated.secure.collector import Collector
from fedprompt.federated.secure.envelope import Step
from fedprompt.federated.secure.masks import MaskedVector
from fedprompt.federated.secure.member import Member, Session
from fedprompt.federated.secure.vector import Codec, words_of
from fedprompt.updates import State, Update

# (step, client) -> whether the client still answers in this step
Present = Callable[[Step, int], bool]


def everyone(step: Step, client: int) -> bool:
    """Nobody drops out."""
    return True


def threshold_of(share: float, members: int) -> int:
    """How many members must stay to the end; more than half, so that two halves cannot tell the server two stories."""
    return max(math.ceil(share * members - 1e-9), members // 2 + 1, 2)


@dataclass(frozen=True)
class SecureSum:
    """Replaces a round's updates by their mean, which is all that a server would see.

    `share` of the members must stay to the end. Over a network a site runs `Member` and the server `Collector`.
    """

    share: float = 2 / 3
    clip: float = 100.0
    weighting: Weighting = "uniform"
    most_examples: int = 10_000
    run: str = field(default_factory=lambda: secrets.token_hex(16))
    present: Present = everyone

    def __post_init__(self) -> None:
        if not 0.5 < self.share <= 1:
            raise UserError(f"The option share = {self.share} of secure sums must be above 0.5 and at most 1.")

    def codec(self, members: int) -> Codec:
        """How so many members write a change."""
        return Codec(self.clip, max(members, 1), self.weighting, self.most_examples)

    def session(self, round_number: int, members: int) -> Session:
        """What so many members know before a round."""
        return Session(self.run, round_number, threshold_of(self.share, members))

    def __call__(
        self, round_number: int, shared: State, updates: Sequence[Update]
    ) -> tuple[list[Update], Mapping[str, Any]]:
        """The mean update, or none if too few stayed, and what the record of the round should say."""
        # A site looks at its own update as a server would: nobody can do it later.
        limits = Limits(most_examples=self.most_examples)
        asked = [update.client for update in updates]
        screened = screen(updates, shared, limits=limits, asked=asked)
        codec, session = self.codec(len(asked)), self.session(round_number, len(asked))
        vectors = {update.client: codec.encode(update, shared) for update in screened.accepted}
        notes: dict[str, Any] = {"losses": {}, "failed": {str(k): reason for k, reason in screened.refused.items()}}
        exchange = Exchange(session, vectors, self.present, Collector(session, count=words_of(shared)))
        try:
            total, arrived = exchange.run()
            cohort = codec.decode(total, shared, seconds=sum(update.seconds for update in updates))
        except RefusedUpdateError as given_up:
            return [], notes | {"skipped": str(given_up), "bytes_up": exchange.sent()}
        lost = {str(client): "secure: did not stay to the end." for client in vectors.keys() - set(arrived)}
        failed = notes["failed"] | lost | {str(k): reason for k, reason in exchange.collector.refused.items()}
        return [cohort], notes | {"failed": failed, "bytes_up": exchange.sent()}


@dataclass
class Exchange:
    """The four steps over members who may be gone in any of them."""

    session: Session
    vectors: Mapping[int, MaskedVector]
    present: Present
    collector: Collector
    bytes_up: dict[int, int] = field(default_factory=dict)

    def run(self) -> tuple[MaskedVector, tuple[int, ...]]:
        """The sum of the vectors of those who arrived, and who they are; RefusedUpdateError if it is given up."""
        members = {client: Member(client, self.session) for client in sorted(self.vectors)}
        keys = self.collector.keys(self._ask("keys", members, lambda member: member.keys()))
        boxes = self.collector.shares(self._ask("shares", members, lambda member: member.shares(keys)))
        members = {client: members[client] for client in boxes}
        vectors = self.vectors
        masked = self._ask(
            "masked", members, lambda member: member.masked(boxes[member.client], vectors[member.client])
        )
        request = self.collector.masked(masked)
        return self.collector.unmask(self._ask("unmask", members, lambda member: member.unmask(request)))

    def sent(self) -> dict[str, int]:
        """Bytes that each member has sent."""
        return {str(client): count for client, count in self.bytes_up.items()}

    def _ask(self, step: Step, members: Mapping[int, Member], speak: Callable[[Member], bytes]) -> dict[int, bytes]:
        answers = {}
        for client, member in members.items():
            if self.present(step, client):
                try:
                    answers[client] = speak(member)
                except RefusedUpdateError as refusal:
                    self.collector.refused[client] = str(refusal)
        for client, answer in answers.items():
            self.bytes_up[client] = self.bytes_up.get(client, 0) + len(answer)
        return answers
