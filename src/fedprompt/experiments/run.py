"""Runs: train and score the trials of a plan, with a record and a checkpoint of every round to resume from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch

from fedprompt.config.recipe import Recipe, load_recipe
from fedprompt.errors import UserError
from fedprompt.experiments.checks import changes_since, header_of, warn_of_missing_tests, warn_of_problems
from fedprompt.experiments.context import NO_CALLBACKS, RunCallbacks, RunContext, RunTransport, TransportFactory
from fedprompt.experiments.evaluate import fit_decisions, record_samples, score_clients, score_test_sets
from fedprompt.experiments.events import cooccurrence_event, header_event, round_event, training_images, trial_event
from fedprompt.experiments.experiment import Backbone, assemble
from fedprompt.experiments.intervals import interval_events
from fedprompt.experiments.model_card import save_trial_adapter
from fedprompt.experiments.plan import Plan, Trial, resolve
from fedprompt.experiments.server import open_ledger, spent
from fedprompt.experiments.test_sets import make_test_sets
from fedprompt.federated.privacy.accounting import Ledger
from fedprompt.federated.rounds import Start, federate, initial_state
from fedprompt.methods.base import Method
from fedprompt.records.event_fields import ExpectedFigure
from fedprompt.records.events import ChangesEvent, EndEvent, ResumeEvent, Status, TrialEvent
from fedprompt.records.reading import read_run
from fedprompt.records.run_folder import Checkpoint, RunFolder, require_no_run, save_tensors, write_atomic
from fedprompt.report import render
from fedprompt.runtimes.simulator import Simulator
from fedprompt.updates import State

RECIPE = "recipe.toml"


def simulate(context: RunContext, trial: Trial, method: Method, checkpoint: Checkpoint) -> RunTransport:
    """The transport to clients that this process simulates."""
    clients = context.experiment.trainers(trial)
    return Simulator(
        method,
        context.experiment.clip,
        clients,
        trial.settings,
        personal=checkpoint.personal,
        on_client=context.callbacks.on_client,
        adversaries=trial.setup.adversaries(clients=len(clients), seed=trial.settings.seed),
        secure=trial.setup.secure,
    )


def start(
    plan: Plan,
    folder: Path,
    *,
    callbacks: RunCallbacks = NO_CALLBACKS,
    expected: Sequence[ExpectedFigure] = (),
    make_transport: TransportFactory = simulate,
    backbone: Backbone | None = None,
) -> Path:
    """Run a plan into a new folder and return its report; UserError, before the folder exists, if anything is wrong.

    `expected` are published figures that the report compares with; `backbone` opens the CLIP. An interruption or an
    error is recorded in the folder, and `resume` continues after the last finished round.
    """
    require_no_run(folder)
    callbacks.on_step("Opening backbone and data")
    experiment = assemble(plan, on_step=callbacks.on_progress, backbone=backbone)
    callbacks.on_message(experiment.dataset.report.sentence())
    for name, origin in experiment.origins.items():
        callbacks.on_message(f"{name} reads bundled descriptions: {origin}.")
    for warning in experiment.partition.warnings:
        callbacks.on_warning(warning)
    warn_of_problems(experiment, callbacks)
    callbacks.on_message(training_images(experiment))
    test_sets = make_test_sets(experiment.dataset)
    warn_of_missing_tests(experiment, test_sets, callbacks)
    with RunFolder.create(folder) as run:
        write_atomic(folder / RECIPE, experiment.recipe.to_toml())
        write_atomic(folder / "partition.json", experiment.partition.to_json())
        if experiment.hidden is not None:
            save_tensors(folder / "annotation.safetensors", {"hidden": experiment.hidden})
        run.append(header_event(experiment, test_sets, expected=expected))
        for test_set in test_sets:
            if test_set.examples.space.kind == "multi":
                run.append(cooccurrence_event(test_set, test_set.examples.targets == 1))
        return _run_trials(RunContext(run, experiment, test_sets, callbacks, make_transport))


def resume(
    folder: Path,
    *,
    callbacks: RunCallbacks = NO_CALLBACKS,
    make_transport: TransportFactory = simulate,
    accept_changes: bool = False,
    backbone: Backbone | None = None,
    make_plan: Callable[[Recipe], Plan] | None = None,
) -> Path:
    """Continue a run that stopped; the result is bitwise that of a run that never stopped. Returns the report.

    `backbone` opens the CLIP, and `make_plan` makes the plan from the run's recipe, if that needs more than `resolve`.
    Of a finished run only the report is written again. Raises UserError when recipe, versions, backbone, data or
    descriptions are no longer those that the run began with; with `accept_changes` they are recorded, and the run goes
    on.
    """
    with RunFolder.open(folder) as run:
        if _is_finished(run):
            callbacks.on_message("This run has finished; only its report is written again.")
            return render(folder)
        callbacks.on_step("Opening backbone and data")
        header = header_of(run)
        unreadable = {image.row: image.reason for image in header.left_out}
        recipe = load_recipe(folder / RECIPE)
        plan = resolve(recipe, origin=RECIPE) if make_plan is None else make_plan(recipe)
        experiment = assemble(plan, on_step=callbacks.on_progress, backbone=backbone, unreadable=unreadable)
        changes = changes_since(header, experiment)
        if changes and not accept_changes:
            raise UserError(
                f"The run {folder} is not as it began: {'; '.join(changes)}. Undo that, start a new run, or resume it "
                "with --accept-changes."
            )
        for change in changes:
            callbacks.on_warning(f"The run goes on although it has changed: {change}.")
        if changes:
            run.append(ChangesEvent(changes=changes))
        callbacks.on_message(experiment.dataset.report.sentence())
        return _run_trials(RunContext(run, experiment, make_test_sets(experiment.dataset), callbacks, make_transport))


def _is_finished(run: RunFolder) -> bool:
    """Whether the last event of a run is its end, without an error."""
    *_, last = [None, *run.events()]
    return isinstance(last, EndEvent) and last.status == "done"


def _run_trials(context: RunContext) -> Path:
    finished = {
        event.trial for event in context.run.events() if isinstance(event, TrialEvent) and event.status == "done"
    }
    with _end_recorded(context.run):
        for trial in context.experiment.trials:
            if trial.name not in finished:
                _run_trial(_for_trial(context, trial), trial)
        context.callbacks.on_step("Comparing the methods")
        for event in interval_events(context.run.path, read_run(context.run.path)):
            context.run.append(event)
        context.callbacks.on_step("Drawing the report")
    return render(context.run.path)


def _for_trial(context: RunContext, trial: Trial) -> RunContext:
    """The context with the trial's own class descriptions."""
    experiment = context.experiment.of(trial)
    return replace(context, experiment=experiment, test_sets=make_test_sets(experiment.dataset))


@contextmanager
def _end_recorded(run: RunFolder, trial: str | None = None) -> Iterator[None]:
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


def _run_trial(context: RunContext, trial: Trial) -> None:
    """Train from the trial's last checkpoint, score, record sample images, and write the adapter."""
    experiment, run = context.experiment, context.run
    method = trial.make_method(experiment.clip)
    trains = any(True for _ in method.parameters())
    rounds = trial.settings.rounds if trains else 0  # a method without parameters is only scored
    start = initial_state(method)
    checkpoint = run.load_checkpoint(trial.name) or Checkpoint(0, start[0], {})
    run.rewind(trial.name, checkpoint.round_number)
    if checkpoint.round_number:
        run.append(ResumeEvent(trial=trial.name, round=checkpoint.round_number))
    with _end_recorded(run, trial.name):
        run.append(trial_event(trial, method, rounds=rounds))
        context.callbacks.on_trial(trial.label, rounds, checkpoint.round_number)
        transport = context.make_transport(context, trial, method, checkpoint)
        last = _train(context, trial, transport, checkpoint=checkpoint, rounds=rounds)
        shared, rounds = last.shared, last.round_number
        if rounds and _is_unchanged(start, shared, transport.personal):
            run.append(TrialEvent(trial=trial.name, unchanged=True))
        context.callbacks.on_step(f"Scoring {trial.label}")
        score_clients(context, trial, transport, shared, round_number=rounds)
        decisions = fit_decisions(context, transport, shared)
        score_test_sets(context, trial, transport, shared, round_number=rounds, decisions=decisions)
        record_samples(context, trial, transport.restore(shared, transport.owners[0]))
        if trial.sharing != "local":  # local training leaves no model that all clients share
            exports = method.exports(experiment.recipe.backbone.path)
            save_trial_adapter(run, experiment, trial, shared, exports=exports, threshold=decisions[None].tuned)


def _is_unchanged(start: tuple[State, State], shared: State, personal: Mapping[int, State]) -> bool:
    """Whether all tensors that this process holds, shared and personal ones, are those that training started from."""
    begun = [(start[0], shared), *((start[1], own) for own in personal.values())]
    return any(now for _, now in begun) and all(
        torch.equal(before[name], now[name]) for before, now in begun for name in now
    )


def _train(context: RunContext, trial: Trial, transport: RunTransport, *, checkpoint: Checkpoint, rounds: int) -> Start:
    """Train, with a record and a checkpoint of every round; returns the last one. A privacy budget may end it early."""
    every, shared = context.experiment.recipe.evaluate.every, checkpoint.shared

    def score_now(number: int) -> None:
        if every and number % every == 0 and number < rounds:
            score_test_sets(context, trial, transport, shared, round_number=number)

    if not checkpoint.round_number:
        score_now(0)
    last = Start(checkpoint.round_number, shared, checkpoint.memory)
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
        score_now(record.number)
        # The checkpoint comes last: a round that has one has its lines, and lines without one are rewound.
        context.run.save_checkpoint(trial.name, Checkpoint(record.number, shared, transport.personal, record.memory))
        context.callbacks.on_round(record.number, event.loss)
        if context.callbacks.stops(record.number):
            return last
    if ledger is not None and last.round_number < rounds:
        _report_budget(context, trial, ledger, last.round_number)
    return last


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


def free_folder(wanted: Path) -> Path:
    """The folder, or the first of NAME-2, NAME-3, ... that does not exist."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
