"""Clients elsewhere: a transport that asks sites by name through a channel, with a deadline and a quorum."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fedprompt.errors import UserError
from fedprompt.federated.evaluate import Score
from fedprompt.federated.rounds import initial_state
from fedprompt.federated.screening import RefusedUpdateError, check_raw, check_update
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.methods.base import Method
from fedprompt.runtimes.payload import EVALUATE, KEYS, MASKED, SHARES, TRAIN, UNMASK, Fields, Payload, Raw, done
from fedprompt.runtimes.secure_round import MaskedRound
from fedprompt.runtimes.tensor_codec import Upload, decode_change, encode
from fedprompt.updates import State, Update

_log = logging.getLogger(__name__)
# What must be left of a round's deadline after each step of a secure sum, or one silent site would cost all the sum.
RESERVE = {KEYS: 0.8, SHARES: 0.7, MASKED: 0.1, UNMASK: 0.0}
MISSED_ROUNDS = 3  # in a row without a quorum, after which a run stops and says so


class Channel(Protocol):
    """Carries one exchange: a payload to each of some sites, and what each of them says to it."""

    def ask(self, payloads: Mapping[str, Payload], *, deadline: float) -> dict[str, Payload | str]:
        """Within `deadline` seconds, each site's answer, or the reason why there is none."""
        ...


@dataclass(frozen=True)
class Terms:
    """What server and sites agree on: who they are, how many must answer within how many seconds, and in which type."""

    sites: tuple[str, ...]  # client `i` is `sites[i]`; the seeded choice of a round is therefore a choice of names
    quorum: int = 1
    deadline: float = 600.0
    upload: Upload = "float32"


class Remote:
    """A transport to sites that hold their pictures and personal states themselves.

    `method` must be fresh, `job` is what a site must know to rebuild the trial. `accepted` gives, for each client, the
    last round whose update counted: its personal state after that round is where the client goes on, so a round that
    was lost leaves no trace.
    """

    def __init__(  # noqa: PLR0913  (the parts of a federation, the last four optional)
        self,
        method: Method,
        channel: Channel,
        terms: Terms,
        job: Fields,
        *,
        accepted: Mapping[int, int] | None = None,
        pictures: Mapping[int, int] | None = None,
        secure: SecureSum | None = None,
        on_client: Callable[[int, int], None] | None = None,
    ) -> None:
        self.method = method
        self.channel = channel
        self.terms = terms
        self.job = job
        self.accepted: dict[int, int] = dict(accepted or {})
        self.known_pictures: Mapping[int, int] = pictures or {}
        self.secure = secure
        self.on_client = on_client
        self.personal: dict[int, State] = {}  # it never leaves a site
        self.notes: Mapping[str, Any] = {}  # what the record of the last round says besides the usual
        self._missed = 0
        self._personal_start = initial_state(method)[1]

    @property
    def owners(self) -> Sequence[int | None]:
        """None alone, whose model all share: those of the sites can be scored by the sites only."""
        return (None,)

    def restore(self, shared: State, client: int | None = None) -> Method:
        """The method with the shared state and the personal one that a new client starts from."""
        assert client is None
        self.method.load_state_dict({**shared, **self._personal_start})
        return self.method

    def pictures(self, client: int) -> int:
        """How many training pictures a client has, at least; one, if it has not said."""
        return max(1, self.known_pictures.get(client, 1))

    def train(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Update]:
        """One exchange, or the four of a secure sum, within one deadline.

        Below the quorum no update counts; the third such round in a row raises UserError.
        """
        if self.secure is not None:
            return self._train_masked(self.secure, round_number, shared, clients)
        updates: list[Update] = []
        failed: dict[int, str] = {}
        sent: dict[int, Payload] = {}
        fields = {client: self._since(client) for client in clients}
        for client, answer in self._ask(TRAIN, round_number, fields, encode(shared)).items():
            try:
                payload = done(answer)
                updates.append(self._update(client, payload, shared))
                sent[client] = payload
            except UserError as refusal:
                failed[client] = str(refusal)
        notes: dict[str, Any] = {
            "bytes_up": {str(client): payload.size for client, payload in sent.items()},
            "site_seconds": {str(update.client): update.seconds for update in updates},
            "validation": {str(client): payload.fields.get("validation") for client, payload in sent.items()},
        }
        took_part = [update.client for update in updates]
        return updates if self._close(round_number, took_part, failed, notes) else []

    def _train_masked(
        self, secure: SecureSum, round_number: int, shared: State, clients: Sequence[int]
    ) -> list[Update]:
        end = time.monotonic() + self.terms.deadline

        def ask(kind: str, fields: Mapping[int, Fields], tensors: Mapping[str, Raw]) -> dict[int, Payload | str]:
            said = {client: {**self._since(client), **one} for client, one in fields.items()}
            return self._ask(
                kind, round_number, said, tensors, deadline=end - RESERVE[kind] * self.terms.deadline - time.monotonic()
            )

        masked = MaskedRound(secure, ask, round_number)
        updates: list[Update] = []
        arrived: tuple[int, ...] = ()
        given_up = ""
        try:
            update, arrived = masked.run(shared, clients)
            updates.append(update)
        except UserError as refusal:
            given_up = str(refusal)
        notes: dict[str, Any] = {"losses": {}, "bytes_up": {str(one): size for one, size in masked.bytes_up.items()}}
        held = self._close(round_number, arrived, masked.failed, notes, given_up=given_up)
        return updates if held else []

    def _close(
        self,
        round_number: int,
        took_part: Sequence[int],
        failed: Mapping[int, str],
        notes: Mapping[str, Any],
        *,
        given_up: str = "",
    ) -> bool:
        """Note how a round went, and whether enough took part for it to count."""
        notes = {**notes, "failed": {str(client): reason for client, reason in failed.items()}}
        if len(took_part) >= max(1, self.terms.quorum):
            self.notes = {**notes, "kept": list(took_part)}
            self.accepted.update(dict.fromkeys(took_part, round_number))
            self._missed = 0
            return True
        reason = given_up or f"{len(took_part)} of {self.terms.quorum} sites that a round needs"
        self.notes = {**notes, "skipped": reason}
        self._missed += 1
        if self._missed >= MISSED_ROUNDS:
            reasons = "; ".join(f"{self.terms.sites[client]}: {why}" for client, why in sorted(failed.items()))
            raise UserError(
                f"Paused in round {round_number}: {self._missed} rounds in a row had fewer than {self.terms.quorum} "
                f"answers ({reasons}). Bring the sites back, then go on with: fedprompt resume RUN."
            )
        return False

    def evaluate(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Score]:
        """Scores of the sites that have test pictures and answered."""
        answers = self._ask(EVALUATE, round_number, {client: self._since(client) for client in clients}, encode(shared))
        scores = []
        for client, answer in answers.items():
            try:
                fields = done(answer).fields.get("score")
                if fields is not None:
                    scores.append(_score(self.terms.sites[client], fields))
            except UserError as refusal:
                _log.warning("The site %s gave no score: it %s", self.terms.sites[client], refusal)
        return scores

    def _ask(
        self,
        kind: str,
        round_number: int,
        fields: Mapping[int, Fields],
        tensors: Mapping[str, Raw],
        *,
        deadline: float | None = None,
    ) -> dict[int, Payload | str]:
        payloads = {
            self.terms.sites[client]: Payload(
                kind, {**self.job, "round": round_number, "client": client, **fields[client]}, tensors
            )
            for client in sorted(fields)
        }
        answers = self.channel.ask(payloads, deadline=self.terms.deadline if deadline is None else max(deadline, 0.0))
        if self.on_client is not None:
            self.on_client(len(answers), len(payloads))
        return {client: answers.get(self.terms.sites[client], "did not answer.") for client in sorted(fields)}

    def _since(self, client: int) -> Fields:
        return {"since": self.accepted.get(client, 0), "upload": self.terms.upload}

    def _update(self, client: int, answer: Payload, shared: State) -> Update:
        check_raw(answer.tensors, shared, dtype=None if self.terms.upload == "float32" else self.terms.upload)
        update = Update(
            client=client,
            num_examples=answer.fields.get("num_examples", 0),
            shared=decode_change(answer.tensors, shared, self.terms.upload),
            personal={},
            loss=_number(answer.fields.get("loss")),
            seconds=_number(answer.fields.get("seconds")),
        )
        _heard(answer.fields.get("validation"))  # which stands in the record as it was sent
        check_update(update, shared)
        return update


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RefusedUpdateError("number", "a loss, a time or a score is not a finite number.")
    return float(value)


def _score(name: str, fields: Fields) -> Score:
    try:
        figures = {_figure(key): _heard(value) for key, value in fields["figures"].items()}
        per_class = tuple(_heard(value) for value in fields["per_class"])
        return Score(name, int(fields["num_examples"]), figures, per_class)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError("sent a score that is not one.") from error


def _figure(name: object) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9_]{1,40}", name):
        raise ValueError("a figure's name")
    return name


def _heard(value: object) -> float:
    return math.nan if value is None else _number(value)
