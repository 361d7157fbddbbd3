"""Training of a trial: its rounds, each with a record, its scores and a checkpoint to resume from."""

from __future__ import annotations

from functools import partial

from fedprompt.errors import UserError
from fedprompt.experiments.best_round import BestRound
from fedprompt.experiments.context import RunContext, RunTransport
from fedprompt.experiments.evaluate import score_test_sets
from fedprompt.experiments.events import round_event
from fedprompt.experiments.plan import Trial
from fedprompt.experiments.server import open_ledger, spent
from fedprompt.federated.privacy.accounting import Ledger
from fedprompt.federated.rounds import Start, federate
from fedprompt.records.run_folder import Checkpoint
from fedprompt.updates import State


def train(
    context: RunContext, trial: Trial, transport: RunTransport, *, checkpoint: Checkpoint, best: BestRound
) -> Start:
    """Train, with a record and a checkpoint of every round; returns the last one.

    A privacy budget may end it early, and so may `best`, which scores held-out images.
    """
    shared, rounds = checkpoint.shared, best.rounds
    score_now = partial(_score_round, context, trial, transport, best)
    if not checkpoint.round_number:
        score_now(shared, number=0)
    last = Start(checkpoint.round_number, shared, checkpoint.memory)
    if best.is_exhausted:
        return last
    ledger = open_ledger(context.run, trial.name, trial.setup.privacy, trial.settings, transport.num_examples)
    for record in federate(
        transport.method,
        transport,
        clients=range(len(context.experiment.trainers(trial))),
        rounds=rounds,
        fraction=trial.fraction,
        seed=trial.settings.seed,
        server=trial.setup.server,
        start=last,
        admit=ledger.admit if ledger else None,
    ):
        shared, last = record.shared, Start(record.number, record.shared, record.memory)
        event = round_event(trial, record, transport.notes, spent(ledger, trial.setup.table))
        context.run.append(event)
        score_now(shared, number=record.number)
        # The checkpoint comes last: a round that has one has its lines, and lines without one are rewound.
        context.run.save_checkpoint(trial.name, Checkpoint(record.number, shared, transport.personal, record.memory))
        context.callbacks.on_round(record.number, event.loss)
        if best.is_exhausted:
            best.say_if_exhausted(record.number)
            break
    if ledger is not None and last.round_number < rounds and not best.is_exhausted:
        _report_budget(context, trial, ledger, last.round_number)
    return last


def _score_round(
    context: RunContext, trial: Trial, transport: RunTransport, best: BestRound, shared: State, *, number: int
) -> None:
    """Score the state after a round, if it is due: test images for the learning curve, held-out images by `best`."""
    every = context.experiment.recipe.evaluate.every
    # The last round is scored at the end, unless another one may be kept.
    if every and number % every == 0 and (number < best.rounds or best.keep.metric):
        score_test_sets(context, trial, transport, shared, round_number=number)
    best.score(number, transport, shared)


def _report_budget(context: RunContext, trial: Trial, ledger: Ledger, rounds: int) -> None:
    """Warn that the privacy budget ended a trial after so many rounds; UserError if it allowed none."""
    if rounds:
        context.callbacks.on_warning(
            f"{trial.label} stopped after round {rounds}: another round would exceed its privacy budget."
        )
        return
    cost = max(ledger.epsilon_of(client, 1) for client in range(len(context.experiment.trainers(trial))))
    raise UserError(
        f"The privacy budget train.server.privacy.epsilon = {ledger.budget:g} allows {trial.label} no round: the first "
        f"one costs up to {cost:.3g}; raise the budget, or train.server.privacy.noise."
    )
