"""The choice of a trial's best round: scores held-out images during training, saves the best state, ends it early."""

from __future__ import annotations

from dataclasses import dataclass

from fedprompt.errors import UserError, plural
from fedprompt.experiments.context import RunContext, RunTransport
from fedprompt.experiments.evaluate import score_held_out
from fedprompt.experiments.keep import ClientScores
from fedprompt.experiments.plan import Trial
from fedprompt.federated.evaluate import Score
from fedprompt.federated.rounds import Start
from fedprompt.records.checkpoints import Checkpoint
from fedprompt.records.events import KeptEvent, RoundEvent, ValidationEvent
from fedprompt.updates import State

OLDER = 2  # best states kept before the newest: a run goes back by one checkpoint, and may have stopped within a round


@dataclass(frozen=True)
class ScoredRound:
    """A round with the scores of clients on their held-out images after it."""

    number: int
    scores: ClientScores


class BestRound:
    """The best round of a trial so far.

    The first of equal rounds counts, but any that was trained comes before the state before training. All that is
    known comes from `run.jsonl`, so a resumed run chooses as one that never stopped.
    """

    def __init__(self, context: RunContext, trial: Trial, rounds: int) -> None:
        self.context = context
        self.trial = trial
        self.rounds = rounds
        self.keep = context.experiment.plan.keep
        self.best: ScoredRound | None = None
        self._scored: list[ScoredRound] = []
        self._in_vain = 0  # scorings since the best one
        self._forgotten = 0  # scorings taken back, whose states may lie between the best one's and the next
        for event in context.run.events() if self.keep.metric else ():
            if isinstance(event, ValidationEvent) and event.trial == trial.name:
                self._judge(ScoredRound(event.round, _scores_of(event)))
            if isinstance(event, RoundEvent) and event.trial == trial.name and event.rolled_back:
                self.forget(event.rolled_back)

    @property
    def is_exhausted(self) -> bool:
        """Whether training ends early, for want of a better round."""
        return bool(self.keep.patience) and self._in_vain >= self.keep.patience

    def forget(self, number: int) -> None:
        """Take back the scorings after a round that was rolled back, and after those that followed it."""
        valid = [one for one in self._scored if one.number < number]
        self._forgotten += len(self._scored) - len(valid)
        self.best, self._scored, self._in_vain = None, [], 0
        for one in valid:
            self._judge(one)

    def score(self, number: int, transport: RunTransport, shared: State) -> None:
        """Score the state after a round, if it is due, record that, and save the state if it is the best."""
        known = bool(self._scored) and self._scored[-1].number >= number
        if known or not self.keep.is_due(number, self.rounds):
            return
        found = ScoredRound(number, score_held_out(self.context, self.trial, transport, shared, round_number=number))
        better, run = self._judge(found), self.context.run
        if better:  # before the line that says so: a line of round 0 outlives a stop before the first checkpoint
            before = OLDER + self._forgotten
            run.save_checkpoint(self._name, Checkpoint(number, shared, transport.personal), before=before)
        run.append(
            ValidationEvent(
                trial=self.trial.name,
                round=number,
                metric=self.keep.metric,
                value=self.keep.value(found.scores),
                better=better,
                scores={
                    client: {column: score.figures.get(column) for column in self.keep.columns}
                    for client, score in found.scores.items()
                },
                images={client: score.num_examples for client, score in found.scores.items()},
            )
        )

    def kept(self, last: Start) -> Checkpoint | None:
        """The state of the best round, which is recorded; None if that is the last one. UserError if it is lost."""
        if not self.keep.metric or not self.rounds:
            return None
        if self.best is None:
            self.context.callbacks.on_warning(
                f"{self.trial.label} keeps its last round: no client has scored held-out images."
            )
            return None
        final = self._scored[-1].scores if self._scored[-1].number == last.round_number else {}
        self.context.run.append(
            KeptEvent(
                trial=self.trial.name,
                round=self.best.number,
                metric=self.keep.metric,
                value=self.keep.value(self.best.scores),
                images=sum(score.num_examples for score in self.best.scores.values()),
                last=last.round_number,
                last_value=self.keep.value(final),
                patience=self.keep.patience if self.is_exhausted and last.round_number < self.rounds else 0,
            )
        )
        if self.best.number == last.round_number:
            return None
        found = self.context.run.load_checkpoint(self._name, round_number=self.best.number)
        if found is None:
            raise UserError(
                f"The best state of {self.trial.label}, that of round {self.best.number}, is lost or damaged in "
                f"{self.context.run.path / 'checkpoints'}; restore it from a copy, or start the run again."
            )
        return found

    def say_if_exhausted(self, number: int) -> None:
        """Tell the user that training ended early after a round, if it did."""
        if self.is_exhausted and number < self.rounds:
            self.context.callbacks.on_message(
                f"{self.trial.label} stopped after round {number}: {plural(self.keep.patience, 'scoring')} of "
                "held-out images in a row had no better one."
            )

    @property
    def _name(self) -> str:
        return f"{self.trial.name}@best"  # no trial has a name with @

    def _judge(self, found: ScoredRound) -> bool:
        """Take the scores into account; whether they are the best so far."""
        self._scored.append(found)
        if self.best is None:
            better = self.keep.value(found.scores) is not None
        else:
            gain = self.keep.compare(found.scores, self.best.scores)
            better = gain is not None and (gain > 0 or (gain == 0 and not self.best.number))
            self._in_vain += gain is not None  # a scoring that no client answered says nothing
        if better:
            self.best, self._in_vain = found, 0
        return better


def _scores_of(event: ValidationEvent) -> ClientScores:
    return {
        client: Score("", event.images[client], {name: value for name, value in own.items() if value is not None}, ())
        for client, own in event.scores.items()
    }
