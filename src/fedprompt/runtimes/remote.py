"""The transport to remote sites: sends requests by site name through a channel, with a deadline and a quorum."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Examples
from fedprompt.errors import NotFiniteError, UserError, refusing
from fedprompt.federated.evaluate import Score, predict
from fedprompt.federated.rounds import RoundNotes, initial_state
from fedprompt.federated.screening import check_update, is_poisoned
from fedprompt.federated.secure.secure_sum import SecureSum
from fedprompt.methods.base import Method
from fedprompt.runtimes.answers import TrainAnswer, score_answer, train_answer
from fedprompt.runtimes.payload import (
    CONSISTENCY_CHECK,
    EVALUATE,
    MASKED_INPUT,
    SHARE_KEYS,
    TRAIN,
    UNMASK,
    VALIDATE,
    Fields,
    Payload,
    RawTensor,
    done,
)
from fedprompt.runtimes.secure_round import SecureRound
from fedprompt.runtimes.tensor_codec import Upload, encode
from fedprompt.updates import State, Update

_log = logging.getLogger(__name__)
# Share of a round's deadline that each step of a secure sum leaves for the steps after it; without this reserve, one
# silent site would use up the whole deadline.
RESERVE = {SHARE_KEYS: 0.75, MASKED_INPUT: 0.15, CONSISTENCY_CHECK: 0.1, UNMASK: 0.0}
MISSED_ROUNDS = 3  # consecutive rounds without a quorum, after which a run stops with the reasons


class Channel(Protocol):
    """A connection to sites: sends each a payload and collects the answers."""

    def ask(self, payloads: Mapping[str, Payload], *, deadline: float) -> dict[str, Payload | str]:
        """Within `deadline` seconds, each site's answer, or the reason why there is none."""
        ...


@dataclass(frozen=True)
class RemoteSettings:
    """The sites of a run, the number that must answer, the deadline in seconds, and the type of uploaded tensors."""

    sites: tuple[str, ...]  # client `i` is `sites[i]`, so a seed samples the same sites on every machine
    quorum: int = 1
    deadline: float = 600.0
    upload: Upload = "float32"


class Remote:
    """A transport to sites that hold their images and personal states themselves.

    `method` must be fresh; `job` are the fields from which a site rebuilds the trial. `accepted` gives, per client, the
    last round whose update was used: the client continues from its personal state after that round, so a lost round
    has no effect. `num_examples` gives what is known of the clients' numbers of training images.
    """

    def __init__(  # noqa: PLR0913  (the parts of a federation, the last four optional)
        self,
        method: Method,
        channel: Channel,
        settings: RemoteSettings,
        job: Fields,
        *,
        accepted: Mapping[int, int] | None = None,
        num_examples: Mapping[int, int] | None = None,
        secure: SecureSum | None = None,
        on_client: Callable[[int, int], None] | None = None,
    ) -> None:
        self.method = method
        self.channel = channel
        self.settings = settings
        self.job = job
        self.accepted: dict[int, int] = dict(accepted or {})
        self.known_num_examples: Mapping[int, int] = num_examples or {}
        self.secure = secure
        self.on_client = on_client
        self.personal: dict[int, State] = {}  # empty: personal states never leave the sites
        self.notes = RoundNotes()  # of the last round
        self._missed = 0
        self._before = dict(self.accepted)  # the last `train`
        self._personal_start = initial_state(method)[1]

    @property
    def owners(self) -> Sequence[int | None]:
        """The shared model only (None): personal models can be scored by their sites alone."""
        return (None,)

    def restore(self, shared: State, client: int | None = None) -> Method:
        """The method with the shared state and the initial personal state."""
        assert client is None
        self.method.load_state_dict({**shared, **self._personal_start})
        return self.method

    def predict(self, clip: Clip, shared: State, owner: int | None, examples: Examples, *, batch_size: int) -> Tensor:
        """Logits [N, C] of the shared model for examples, computed here."""
        return predict(self.restore(shared, owner), clip, examples.images, examples.space, batch_size=batch_size)

    def num_examples(self, client: int) -> int:
        """The number of a client's training images; one if unknown."""
        return max(1, self.known_num_examples.get(client, 1))

    def train(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Update]:
        """Train these clients in one exchange, or in the four of a secure sum, within one deadline.

        Below the quorum no update is used; the third such round in a row raises UserError. Raises NotFiniteError if
        the shared state makes the losses of most sites that answered not finite.
        """
        self._before = dict(self.accepted)
        if self.secure is not None:
            return self._train_securely(self.secure, round_number, shared, clients)
        answers: list[TrainAnswer] = []
        failed: dict[int, str] = {}
        diverged: set[int] = set()
        fields = {client: self._client_fields(client) for client in clients}
        received = self._ask(TRAIN, round_number, fields, encode(shared))
        for client, payload in received.items():
            with refusing(failed, client, diverged):
                answer = train_answer(client, done(payload), shared, self.settings.upload)
                check_update(answer.update, shared)
                answers.append(answer)
        notes = RoundNotes(
            failed,
            bytes_up={answer.update.client: answer.size for answer in answers},
            site_seconds={answer.update.client: answer.update.seconds for answer in answers},
            validation={answer.update.client: answer.validation for answer in answers},
        )
        self._check_diverged(round_number, notes, diverged, received)
        took_part = [answer.update.client for answer in answers]
        return [one.update for one in answers] if self._finish_round(round_number, took_part, notes) else []

    def undo(self, clients: Iterable[int]) -> None:
        """Let these sites continue from the personal states that counted before the last `train`."""
        undone = {*clients}
        kept = {client: number for client, number in self.accepted.items() if client not in undone}
        self.accepted = kept | {client: number for client, number in self._before.items() if client in undone}
        took_part = tuple(client for client in self.notes.kept or () if client not in undone)
        self.notes = replace(self.notes, kept=took_part or None)

    def _check_diverged(
        self, round_number: int, notes: RoundNotes, diverged: Set[int], answers: Mapping[int, Payload | str]
    ) -> None:
        """Raise NotFiniteError if this happened to most sites that answered."""
        heard = sum(isinstance(answer, Payload) for answer in answers.values())
        if not is_poisoned(diverged, heard):
            return
        self.notes = notes
        names = ", ".join(self.settings.sites[client] for client in sorted(diverged))
        raise NotFiniteError(
            f"The losses of round {round_number} are not finite at {names}. Lower the learning rate, then go on with: "
            "fedprompt resume RUN."
        )

    def _train_securely(
        self, secure: SecureSum, round_number: int, shared: State, clients: Sequence[int]
    ) -> list[Update]:
        end = time.monotonic() + self.settings.deadline
        received: dict[int, Payload | str] = {}

        def ask(kind: str, fields: Mapping[int, Fields], tensors: Mapping[str, RawTensor]) -> dict[int, Payload | str]:
            own = {client: {**self._client_fields(client), **one} for client, one in fields.items()}
            left = end - RESERVE[kind] * self.settings.deadline - time.monotonic()
            answers = self._ask(kind, round_number, own, tensors, deadline=left)
            received.update(answers)
            return answers

        secure_round = SecureRound(secure, ask, round_number)
        updates: list[Update] = []
        arrived: tuple[int, ...] = ()
        abandoned = ""
        try:
            update, arrived = secure_round.run(shared, clients)
            updates.append(update)
        except UserError as refusal:
            abandoned = str(refusal)
        notes = RoundNotes(secure_round.failed, losses={}, bytes_up=secure_round.bytes_up)
        self._check_diverged(round_number, notes, secure_round.diverged, received)
        counts = self._finish_round(round_number, arrived, notes, abandoned=abandoned)
        return updates if counts else []

    def _finish_round(
        self,
        round_number: int,
        took_part: Sequence[int],
        notes: RoundNotes,
        *,
        abandoned: str = "",
    ) -> bool:
        """Record the outcome of a round; whether enough clients took part for it to count."""
        if len(took_part) >= max(1, self.settings.quorum):
            self.notes = replace(notes, kept=tuple(took_part))
            self.accepted.update(dict.fromkeys(took_part, round_number))
            self._missed = 0
            return True
        reason = abandoned or f"{len(took_part)} of {self.settings.quorum} sites that a round needs"
        self.notes = replace(notes, skipped=reason)
        self._missed += 1
        if self._missed >= MISSED_ROUNDS:
            reasons = "; ".join(f"{self.settings.sites[client]}: {why}" for client, why in sorted(notes.failed.items()))
            raise UserError(
                f"Paused in round {round_number}: {self._missed} rounds in a row had fewer than {self.settings.quorum} "
                f"answers ({reasons}). Bring the sites back, then go on with: fedprompt resume RUN."
            )
        return False

    def evaluate(self, round_number: int, shared: State, clients: Sequence[int]) -> list[Score]:
        """Scores of the sites that have test images and answered."""
        return list(self._scores(EVALUATE, round_number, shared, clients).values())

    def validate(self, round_number: int, shared: State, clients: Sequence[int]) -> dict[int, Score]:
        """Scores, by client, on held-out images of the sites that have any and answered."""
        return self._scores(VALIDATE, round_number, shared, clients)

    def _scores(self, kind: str, round_number: int, shared: State, clients: Sequence[int]) -> dict[int, Score]:
        answers = self._ask(
            kind, round_number, {client: self._client_fields(client) for client in clients}, encode(shared)
        )
        scores: dict[int, Score] = {}
        failed: dict[int, str] = {}
        for client, answer in answers.items():
            with refusing(failed, client):
                score = score_answer(self.settings.sites[client], done(answer))
                if score is not None:
                    scores[client] = score
        for client, why in failed.items():
            _log.warning("The site %s gave no score: it %s", self.settings.sites[client], why)
        return scores

    def _ask(
        self,
        kind: str,
        round_number: int,
        fields: Mapping[int, Fields],
        tensors: Mapping[str, RawTensor],
        *,
        deadline: float | None = None,
    ) -> dict[int, Payload | str]:
        payloads = {
            self.settings.sites[client]: Payload(
                kind, {**self.job, "round": round_number, "client": client, **fields[client]}, tensors
            )
            for client in sorted(fields)
        }
        answers = self.channel.ask(
            payloads, deadline=self.settings.deadline if deadline is None else max(deadline, 0.0)
        )
        if self.on_client is not None:
            self.on_client(len(answers), len(payloads))
        return {client: answers.get(self.settings.sites[client], "did not answer.") for client in sorted(fields)}

    def _client_fields(self, client: int) -> Fields:
        return {"since": self.accepted.get(client, 0), "upload": self.settings.upload}
