"""The server's half of a round: screen what came, make one state of it, take the server's own step; all pure values.

Nothing here knows how messages travel, so a round ends alike in the simulator and over a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedprompt.errors import UserError
from fedprompt.federated.aggregation.base import Rule, TooFewError, Weighting, weights_for, without_memory
from fedprompt.federated.privacy.clients import ClientPrivacy
from fedprompt.federated.screening import Limits, screen
from fedprompt.federated.server_optimizers import Step
from fedprompt.updates import Aggregate, State, Update, weighted_mean

RULE, STEP = "rule/", "step/"  # prefixes of a server's memory


@dataclass(frozen=True)
class Outcome:
    """What became of a round's updates; `skipped` says why the shared state stayed as it was."""

    shared: State
    memory: State
    used: tuple[Update, ...]
    refused: Mapping[int, str] = field(default_factory=dict)
    skipped: str = ""


@dataclass(frozen=True)
class Server:
    """How updates become the next shared state.

    `rule` replaces the method's own aggregate; `step` is a server optimiser, which goes towards what the rule found;
    `privacy` clips every client's change and adds noise, and is a rule of its own.
    """

    weighting: Weighting = "uniform"
    limits: Limits = field(default_factory=Limits)
    rule: Rule | None = None
    step: Step | None = None
    privacy: ClientPrivacy | None = None

    def __post_init__(self) -> None:
        if self.privacy is not None and (self.rule is not None or self.weighting != "uniform"):
            raise UserError(
                "Client-level privacy is accounted for the plain uniform mean; leave out the rule and weighting."
            )

    def combine(
        self, aggregate: Aggregate, shared: State, updates: Sequence[Update], memory: State, *, asked: Sequence[int]
    ) -> Outcome:
        """End a round in which the clients `asked` were to train, for a method that aggregates by `aggregate`.

        Raises UserError where the rule could not work even if every client answered.
        """
        screened = screen(updates, shared, limits=self.limits, asked=asked)
        used = screened.accepted
        if not used and self.privacy is None:  # an accounted round without answers is noise, as any other
            return Outcome(shared, memory, (), screened.refused, "no update could be used" if updates else "")
        try:
            target, rule_memory = self._target(aggregate, shared, used, _part(memory, RULE), asked=asked)
        except TooFewError as error:
            if error.needed > len(asked):
                raise
            return Outcome(shared, memory, (), screened.refused, str(error))
        moved, step_memory = self.step(shared, target, _part(memory, STEP)) if self.step else (target, {})
        if not all(tensor.isfinite().all() for tensor in moved.values()):
            return Outcome(shared, memory, (), screened.refused, "the sum of the updates is not finite")
        kept = {RULE + name: tensor for name, tensor in rule_memory.items()}
        kept |= {STEP + name: tensor for name, tensor in step_memory.items()}
        return Outcome(moved, kept, used, screened.refused)

    def _target(
        self, aggregate: Aggregate, shared: State, used: Sequence[Update], memory: State, *, asked: Sequence[int]
    ) -> tuple[State, State]:
        if self.privacy is not None:
            if aggregate is not weighted_mean:
                raise UserError("Client-level privacy is accounted for the mean, but this method aggregates otherwise.")
            return self.privacy.noisy_mean(shared, used, asked=len(asked)), {}
        rule = self.rule or without_memory(aggregate)
        return rule(shared, used, weights_for(used, self.weighting), memory)


def _part(memory: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in memory.items() if name.startswith(prefix)}
