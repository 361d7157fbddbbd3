"""Clients elsewhere: a transport that asks sites by name through a mailbox, with a deadline and a quorum."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fedprompt.errors import UserError
from fedprompt.federated.evaluate import Score
from fedprompt.ops.averaging import State, Update
from fedprompt.runtimes.tensors import Upload, check_raws, decode_change, encode
from fedprompt.runtimes.wire import DONE, EVALUATE, TRAIN, Parcel, Raw, Words

_log = logging.getLogger(__name__)
MOST_EXAMPLES = 10_000_000  # a site that claims more pictures is not believed
MISSED_ROUNDS = 3  # in a row without a quorum, after which a run stops and says so

# Refuses what a site sent, before any of it is decoded: (client, tensors as they came, what the server shares).
Inspect = Callable[[int, Mapping[str, Raw], State], None]


class Mailbox(Protocol):
    """Carries one exchange: a parcel to each of some sites, and what each of them says to it."""

    def ask(self, parcels: Mapping[str, Parcel], *, deadline: float) -> dict[str, Parcel | str]:
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

    `job` is what a site must know to rebuild the trial. `accepted` gives, for each client, the last round whose update
    counted: its personal state after that round is where the client goes on, so a round that was lost leaves no trace.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        terms: Terms,
        job: Words,
        *,
        accepted: Mapping[int, int] | None = None,
        on_client: Callable[[int, int], None] | None = None,
        inspect: Inspect | None = None,
    ) -> None:
        self.mailbox = mailbox
        self.terms = terms
        self.job = job
        self.accepted: dict[int, int] = dict(accepted or {})
        self.on_client = on_client
        self.inspect: Inspect = inspect or self._fits
        self.personal: dict[int, State] = {}  # it never leaves a site
        self.notes: Mapping[str, Any] = {}  # what the record of the last round says besides the usual
        self._missed = 0

    def train(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Update]:
        """One exchange. Below the quorum no update counts; the third such round in a row raises UserError."""
        answers = self._ask(TRAIN, round_number, shared, clients)
        updates: list[Update] = []
        failed: dict[int, str] = {}
        sent: dict[int, Parcel] = {}
        for client, answer in answers.items():
            try:
                parcel = _done(answer)
                updates.append(self._update(client, parcel, shared))
                sent[client] = parcel
            except UserError as refusal:
                failed[client] = str(refusal)
        notes: dict[str, Any] = {
            "failed": {str(client): reason for client, reason in failed.items()},
            "bytes_up": {str(client): parcel.size for client, parcel in sent.items()},
            "site_seconds": {str(update.client): update.seconds for update in updates},
            "validation": {str(client): parcel.words.get("validation") for client, parcel in sent.items()},
        }
        if len(updates) < self.terms.quorum:
            self.notes = notes | {"skipped": f"{len(updates)} of {self.terms.quorum} sites that a round needs"}
            self._miss(round_number, failed)
            return []
        self._missed = 0
        self.notes = notes | {"kept": [update.client for update in updates]}
        self.accepted.update((update.client, round_number) for update in updates)
        return updates

    def _miss(self, round_number: int, failed: Mapping[int, str]) -> None:
        self._missed += 1
        if self._missed >= MISSED_ROUNDS:
            reasons = "; ".join(f"{self.terms.sites[client]}: {reason}" for client, reason in sorted(failed.items()))
            raise UserError(
                f"Paused in round {round_number}: {self._missed} rounds in a row had fewer than {self.terms.quorum} "
                f"answers ({reasons}). Bring the sites back, then go on with: fedprompt resume RUN."
            )

    def evaluate(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Score]:
        """Scores of the sites that have test pictures and answered."""
        answers = self._ask(EVALUATE, round_number, shared, clients)
        scores = []
        for client, answer in answers.items():
            try:
                words = _done(answer).words.get("score")
                if words is not None:
                    scores.append(_score(self.terms.sites[client], words))
            except UserError as refusal:
                _log.warning("The site %s gave no score: it %s", self.terms.sites[client], refusal)
        return scores

    def _ask(self, kind: str, round_number: int, shared: State, clients: Sequence[int]) -> dict[int, Parcel | str]:
        tensors = encode(shared)
        names = {client: self.terms.sites[client] for client in sorted(clients)}
        parcels = {
            name: Parcel(kind, {**self.job, "round": round_number, "client": client, **self._since(client)}, tensors)
            for client, name in names.items()
        }
        answers = self.mailbox.ask(parcels, deadline=self.terms.deadline)
        if self.on_client is not None:
            self.on_client(len(answers), len(names))
        return {client: answers.get(name, "did not answer.") for client, name in names.items()}

    def _since(self, client: int) -> Words:
        return {"since": self.accepted.get(client, 0), "upload": self.terms.upload}

    def _update(self, client: int, answer: Parcel, shared: State) -> Update:
        words = answer.words
        self.inspect(client, answer.tensors, shared)
        count, loss = words.get("num_examples"), _number(words.get("loss"))
        if type(count) is not int or not 1 <= count <= MOST_EXAMPLES:
            raise UserError(f"claims {count!r} training pictures; 1 to {MOST_EXAMPLES} are believed.")
        return Update(
            client=client,
            num_examples=count,
            shared=decode_change(answer.tensors, shared, self.terms.upload),
            personal={},
            loss=loss,
            seconds=_number(words.get("seconds")),
        )

    def _fits(self, client: int, raws: Mapping[str, Raw], shared: State) -> None:
        check_raws(raws, shared, self.terms.upload)
        for name, tensor in decode_change(raws, shared, self.terms.upload).items():
            if not tensor.isfinite().all():
                raise UserError(f"sent NaN or infinity in {name}.")


def _done(answer: Parcel | str) -> Parcel:
    """An answer that is one; UserError with the reason otherwise."""
    if isinstance(answer, str):
        raise UserError(answer)
    if answer.kind != DONE:
        raise UserError(f"{answer.kind}: {str(answer.words.get('reason', ''))[:200]}")
    return answer


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError("sent a loss or a time that is not a finite number.")
    return float(value)


def _score(name: str, words: Words) -> Score:
    try:
        figures = {_figure(key): _heard(value) for key, value in words["figures"].items()}
        per_class = tuple(_heard(value) for value in words["per_class"])
        return Score(name, int(words["num_examples"]), figures, per_class)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError("sent a score that is not one.") from error


def _figure(name: object) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9_]{1,40}", name):
        raise ValueError("a figure's name")
    return name


def _heard(value: object) -> float:
    return math.nan if value is None else _number(value)
