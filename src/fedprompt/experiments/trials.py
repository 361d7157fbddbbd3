"""A trial of a run: it is trained from its last checkpoint and scored, and its adapter is written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain

import torch

from fedprompt.errors import NotFiniteError, UserError
from fedprompt.experiments.best_round import BestRound
from fedprompt.experiments.budget import within_budget
from fedprompt.experiments.context import RoundKeptInterrupt, RunContext, RunTransport
from fedprompt.experiments.evaluate import (
    fit_decisions,
    record_held_out,
    record_samples,
    score_clients,
    score_test_sets,
)
from fedprompt.experiments.events import (
    rollback_warning,
    round_event,
    trial_event,
)
from fedprompt.experiments.experiment import backbone_elsewhere
from fedprompt.experiments.model_card import LAST, save_trial_adapter
from fedprompt.experiments.plan import Trial
from fedprompt.experiments.server import open_ledger, spent
from fedprompt.federated.privacy.accounting import Ledger
from fedprompt.federated.rollback import Finished
from fedprompt.federated.rounds import Start, federate, initial_state
from fedprompt.records.checkpoints import Checkpoint
from fedprompt.records.client_scores import unpacked
from fedprompt.records.events import EndEvent, ResumeEvent, ScoreEvent, Status, TrialEvent
from fedprompt.records.run_folder import RunFolder
from fedprompt.updates import State


@contextmanager
def end_recorded(run: RunFolder, trial: str | None = None) -> Iterator[None]:
    """Record how a run, or one trial of it, ended, also when it fails."""
    started = time.perf_counter()

    def end(status: Status, **message: str) -> EndEvent | TrialEvent:
        seconds = time.perf_counter() - started
        if trial is None:
            return EndEvent(status=status, seconds=seconds, **message)
        return TrialEvent(trial=trial, status=status, seconds=seconds, **message)

    try:
        yield
    except BaseException as error:
        status: Status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with suppress(UserError):  # on a full disk the first error is the one to raise
            run.append(end(status, message=str(error)))
        raise
    run.append(end("done"))


def run_trial(context: RunContext, trial: Trial) -> None:
    """Train from the trial's last checkpoint, score, record sample images, and write the adapter."""
    experiment, run = context.experiment, context.run
    trial = within_budget(context, trial)
    method = trial.make_method(experiment.clip)
    trains = any(True for _ in method.parameters())
    rounds = trial.settings.rounds if trains else 0  # a method without parameters is only scored
    start = initial_state(method)
    checkpoint = run.load_checkpoint(trial.name) or Checkpoint(0, start[0], {})
    run.rewind(trial.name, checkpoint.round_number)
    if checkpoint.round_number:
        run.append(ResumeEvent(trial=trial.name, round=checkpoint.round_number))
    with end_recorded(run, trial.name):
        run.append(trial_event(trial, method, experiment.dataset.space, rounds=rounds))
        context.callbacks.on_trial(trial.label, rounds, checkpoint.round_number)
        transport = context.make_transport(context, trial, method, checkpoint)
        best = BestRound(context, trial, rounds)
        with _interruption_scored(context, trial, rounds):
            last = _train(context, trial, transport, checkpoint=checkpoint, best=best)
        if last.round_number and _is_unchanged(start, last.shared, transport.personal):
            run.append(TrialEvent(trial=trial.name, unchanged=True))
        kept = best.kept(last)
        is_search = bool(best.keep.metric) and not experiment.recipe.evaluate.test
        if is_search:
            record_held_out(context, transport, last.shared, name=trial.name + LAST)
        if kept is not None:  # personal states are those of the best round too
            transport = context.make_transport(context, trial, trial.make_method(experiment.clip), kept)
        if is_search:
            record_held_out(context, transport, (last if kept is None else kept).shared, name=trial.name)
        _score(context, trial, transport, last, kept=kept)


@contextmanager
def _interruption_scored(context: RunContext, trial: Trial, rounds: int) -> Iterator[None]:
    """If Ctrl-C ends the training, score the last finished round first, if a callback wants that."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        checkpoint = context.run.load_checkpoint(trial.name)
        if checkpoint is None or not context.callbacks.on_interrupt(checkpoint.round_number):
            raise
        method = trial.make_method(context.experiment.clip)
        context.run.rewind(trial.name, checkpoint.round_number)  # lines of a round that has no checkpoint
        context.run.append(trial_event(trial, method, context.experiment.dataset.space, rounds=rounds))
        last = Start(checkpoint.round_number, checkpoint.shared, checkpoint.memory)
        kept = BestRound(context, trial, rounds).kept(last)
        transport = context.make_transport(context, trial, method, checkpoint if kept is None else kept)
        _score(context, trial, transport, last, kept=kept)
        raise RoundKeptInterrupt(
            f"Interrupted; {trial.label} is scored after round {last.round_number}."
        ) from interrupt


def _score(context: RunContext, trial: Trial, transport: RunTransport, last: Start, *, kept: Checkpoint | None) -> None:
    """Score the round that is kept (the last one if None) and save its adapter, and that of the last one."""
    shared, number = (last.shared, last.round_number) if kept is None else (kept.shared, kept.round_number)
    context.callbacks.on_step(f"Scoring {trial.label}")
    score_clients(context, trial, transport, shared, round_number=number)
    decisions = fit_decisions(context, transport, shared)
    score_test_sets(context, trial, transport, shared, round_number=number, decisions=decisions)
    method = transport.restore(shared, transport.owners[0])
    record_samples(context, trial, method)
    if trial.sharing == "local":  # local training leaves no model that all clients share
        return
    save = partial(save_trial_adapter, context.run, context.experiment, trial, threshold=decisions[None].tuned)
    backbone = backbone_elsewhere(context.experiment.recipe.backbone.path)
    save(shared, exports=method.exports(backbone))
    if kept is not None:
        method = transport.restore(last.shared)
        save(last.shared, exports=method.exports(backbone), suffix=LAST)


def _is_unchanged(start: tuple[State, State], shared: State, personal: Mapping[int, State]) -> bool:
    """Whether all tensors that this process holds, shared and personal ones, are those that training started from."""
    begun = [(start[0], shared), *((start[1], own) for own in personal.values())]
    return any(now for _, now in begun) and all(
        torch.equal(before[name], now[name]) for before, now in begun for name in now
    )


def _train(
    context: RunContext, trial: Trial, transport: RunTransport, *, checkpoint: Checkpoint, best: BestRound
) -> Start:
    """Train, with a record and a checkpoint of every round; returns the last one.

    A privacy budget may end it early, and so may `best`, which scores held-out images.
    """
    rounds, suspected = best.rounds, Finished.of(checkpoint.suspected)
    last = Start(checkpoint.round_number, checkpoint.shared, checkpoint.memory, suspected)
    # The run may have stopped between the checkpoint of a round and its scores.
    _score_round(context, trial, transport, last, best, is_tested=_is_tested(context, trial, transport, last))
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
        last = Start(record.number, record.shared, record.memory, record.suspected)
        event = round_event(trial, record, transport.notes, spent(ledger, trial.setup.table))
        context.run.append(event)
        if record.rolled_back:
            best.forget(record.rolled_back)
            context.callbacks.on_warning(rollback_warning(record, context.experiment.partition))
        # After the round's line, as a line without a checkpoint is rewound; before its scores, which take time: sites
        # charge a round again that they train again, or refuse it.
        context.run.save_checkpoint(trial.name, _checkpoint(last, transport.personal))
        _score_round(context, trial, transport, last, best)
        context.callbacks.on_round(record.number, event.loss)
        if best.is_exhausted or context.callbacks.stops(record.number):
            best.say_if_exhausted(record.number)
            return last
    if ledger is not None and last.round_number < rounds and not best.is_exhausted:
        _report_budget(context, trial, ledger, last.round_number)
    return last


def _score_round(
    context: RunContext,
    trial: Trial,
    transport: RunTransport,
    reached: Start,
    best: BestRound,
    *,
    is_tested: bool = False,
) -> None:
    """Score the state after a round on test images and on held-out ones, each if it is due and not on record."""
    every, number = context.experiment.recipe.evaluate.every, reached.round_number
    # The last round is scored at the end, unless another one may be kept.
    is_due = every and number % every == 0 and (number < best.rounds or best.keep.metric)
    try:
        if is_due and not is_tested:
            score_test_sets(context, trial, transport, reached.shared, round_number=number)
    except NotFiniteError as error:  # the next round shows whether it is to be rolled back
        context.callbacks.on_warning(f"No score after round {number}: {error}")
    best.score(number, transport, reached.shared)


def _is_tested(context: RunContext, trial: Trial, transport: RunTransport, reached: Start) -> bool:
    """Whether the scores of all models on all test sets after a round are on record."""
    events = chain.from_iterable(map(unpacked, context.run.events()))
    known = {
        (event.split, event.part, event.name, event.client)
        for event in events
        if isinstance(event, ScoreEvent) and (event.trial, event.round) == (trial.name, reached.round_number)
    }
    sets = [(one.split, one.part, one.name) for one in context.test_sets]
    return all((*one, owner) in known for one in sets for owner in transport.owners)


def _checkpoint(last: Start, personal: dict[int, State]) -> Checkpoint:
    suspected = {} if last.suspected is None else last.suspected.tensors()
    return Checkpoint(last.round_number, last.shared, personal, last.memory, suspected)


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
