"""The server's half of a round: screen the updates, aggregate them, apply the server optimiser; values in, values out.

Nothing here knows the transport, so a round gives the same result in the simulator and over a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedprompt.errors import UserError
from fedprompt.federated.aggregation.base import TooFewError, Weighting, weights_for
from fedprompt.federated.history import History
from fedprompt.federated.privacy.clients import ClientPrivacy
from fedprompt.federated.screening import Limits, screen
from fedprompt.federated.server_optimizers import ServerOptimizer
from fedprompt.updates import AggregationRule, State, Update, fedavg

# Name prefixes of the parts of a server's memory, in checkpoints too.
RULE, OPTIMIZER, HISTORY = "rule/", "step/", "history/"


@dataclass(frozen=True)
class Outcome:
    """The result of a round: the new state, the updates used, and client -> reason for those refused.

    `skipped` says why the shared state stayed as it was; it is empty for a round that counted. `lengths` are the L2
    norms of the changes used, if norms are limited.
    """

    shared: State
    memory: State
    used: tuple[Update, ...]
    refused: Mapping[int, str] = field(default_factory=dict)
    skipped: str = ""
    lengths: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    """How updates become the next shared state.

    `rule` replaces the method's own aggregation rule. `optimizer` takes a step towards the rule's result. `privacy`
    clips every client's change and adds noise, in place of a rule.
    """

    weighting: Weighting = "uniform"
    limits: Limits = field(default_factory=Limits)
    rule: AggregationRule | None = None
    optimizer: ServerOptimizer | None = None
    privacy: ClientPrivacy | None = None

    def __post_init__(self) -> None:
        if self.privacy is not None and (self.rule is not None or self.weighting != "uniform"):
            raise UserError(
                "Client-level privacy is accounted for the plain uniform mean; leave out the rule and weighting."
            )
        if self.privacy is not None and self.limits.norm:
            raise UserError(
                "Client-level privacy clips every update; norm_limit would refuse some because of the others' lengths, "
                "which no epsilon accounts for. Leave it out."
            )

    def combine(
        self,
        aggregate: AggregationRule,
        shared: State,
        updates: Sequence[Update],
        memory: State,
        *,
        asked: Sequence[int],
    ) -> Outcome:
        """End a round in which the clients `asked` were to train; `aggregate` is the method's own rule.

        Raises UserError where the rule could not work even if every client answered.
        """
        history = self.history(memory)
        screened = screen(updates, shared, limits=self.limits, asked=asked, history=history)
        used = screened.accepted
        if not used and self.privacy is None:  # with privacy, a round without answers adds noise like any other
            return Outcome(shared, memory, (), screened.refused, "no update could be used" if updates else "")
        try:
            target, rule_memory = self._target(aggregate, shared, used, _part(memory, RULE), asked=asked)
        except TooFewError as error:
            if error.needed > len(asked):
                raise
            return Outcome(shared, memory, (), screened.refused, str(error))
        optimizer = self.optimizer or _no_optimizer
        moved, optimizer_memory = optimizer(shared, target, _part(memory, OPTIMIZER))
        if not all(tensor.isfinite().all() for tensor in moved.values()):
            return Outcome(shared, memory, (), screened.refused, "the sum of the updates is not finite")
        kept = _named(RULE, rule_memory) | _named(OPTIMIZER, optimizer_memory)
        if self.limits.norm:
            kept = self.remember(kept, history.after(screened.lengths, used))
        return Outcome(moved, kept, used, screened.refused, lengths=screened.lengths)

    def history(self, memory: State) -> History:
        """What the memory holds of earlier rounds' updates."""
        return History.of(_part(memory, HISTORY))

    def remember(self, memory: State, history: History) -> State:
        """The memory with this history."""
        return memory | _named(HISTORY, history.memory())

    def _target(
        self, aggregate: AggregationRule, shared: State, used: Sequence[Update], memory: State, *, asked: Sequence[int]
    ) -> tuple[State, State]:
        if self.privacy is not None:
            if aggregate is not fedavg:
                raise UserError("Client-level privacy is accounted for the mean, but this method aggregates otherwise.")
            return self.privacy.noisy_mean(shared, used, asked=len(asked)), {}
        return (self.rule or aggregate)(shared, used, weights_for(used, self.weighting), memory)


def _part(memory: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in memory.items() if name.startswith(prefix)}


def _named(prefix: str, memory: State) -> State:
    return {prefix + name: tensor for name, tensor in memory.items()}


def _no_optimizer(shared: State, target: State, memory: State) -> tuple[State, State]:
    return target, {}
