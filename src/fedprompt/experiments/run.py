"""Runs: train and score the trials of a plan, with a record and a checkpoint of every round to resume from."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from fedprompt.config.recipe import load_recipe
from fedprompt.errors import NotFiniteError, UserError
from fedprompt.experiments.best_round import BestRound
from fedprompt.experiments.budget import within_budget
from fedprompt.experiments.checks import changes_since, header_of, warn_of_missing_tests, warn_of_problems
from fedprompt.experiments.context import NO_CALLBACKS, RunCallbacks, RunContext, RunTransport, TransportFactory
from fedprompt.experiments.evaluate import fit_decisions, record_samples, score_clients, score_test_sets
from fedprompt.experiments.events import cooccurrence_event, header_event, training_images, trial_event
from fedprompt.experiments.experiment import Experiment, assemble
from fedprompt.experiments.intervals import interval_events
from fedprompt.experiments.model_card import LAST, save_trial_adapter
from fedprompt.experiments.plan import Plan, Trial, resolve
from fedprompt.experiments.test_sets import TestSet, make_test_sets
from fedprompt.experiments.training import train
from fedprompt.federated.rounds import Start, initial_state
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
) -> Path:
    """Run a plan into a new folder and return its report; UserError, before the folder exists, if anything is wrong.

    `expected` are published figures that the report compares with. An interruption or an error is recorded in the
    folder, and `resume` continues after the last finished round.
    """
    require_no_run(folder)
    callbacks.on_step("Opening backbone and data")
    experiment = assemble(plan, on_step=callbacks.on_progress)
    callbacks.on_message(experiment.dataset.report.sentence())
    for name, origin in experiment.origins.items():
        callbacks.on_message(f"{name} reads bundled descriptions: {origin}.")
    for warning in experiment.partition.warnings:
        callbacks.on_warning(warning)
    warn_of_problems(experiment, callbacks)
    callbacks.on_message(training_images(experiment))
    test_sets = _test_sets(experiment)
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
) -> Path:
    """Continue a run that stopped; the result is bitwise that of a run that never stopped. Returns the report.

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
        plan = resolve(load_recipe(folder / RECIPE), origin=RECIPE)
        experiment = assemble(plan, on_step=callbacks.on_progress, unreadable=unreadable)
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
        return _run_trials(RunContext(run, experiment, _test_sets(experiment), callbacks, make_transport))


def _test_sets(experiment: Experiment) -> tuple[TestSet, ...]:
    """The test sets of an experiment; none if it leaves the test images unseen."""
    return make_test_sets(experiment.dataset) if experiment.recipe.evaluate.test else ()


def _is_finished(run: RunFolder) -> bool:
    """Whether the last event of a run is its end, without an error."""
    *_, last = [None, *run.events()]
    return isinstance(last, EndEvent) and last.status == "done"


def _run_trials(context: RunContext) -> Path:
    finished = {
        event.trial for event in context.run.events() if isinstance(event, TrialEvent) and event.status == "done"
    }
    with _end_recorded(context.run):
        for trial in (trial for trial in context.experiment.trials if trial.name not in finished):
            with _divergence_recorded(context, trial):
                _run_trial(_for_trial(context, trial), trial)
        context.callbacks.on_step("Comparing the methods")
        for event in interval_events(context.run.path, read_run(context.run.path)):
            context.run.append(event)
        context.callbacks.on_step("Drawing the report")
    return render(context.run.path)


@contextmanager
def _divergence_recorded(context: RunContext, trial: Trial) -> Iterator[None]:
    """In a search for settings, which leaves test images unseen, let a trial diverge without ending the others."""
    try:
        yield
    except NotFiniteError as error:
        if context.experiment.recipe.evaluate.test:
            raise
        context.callbacks.on_warning(f"{trial.label} diverged and counts as the worst: {error}")


def _for_trial(context: RunContext, trial: Trial) -> RunContext:
    """The context with the trial's own class descriptions."""
    experiment = context.experiment.of(trial)
    return replace(context, experiment=experiment, test_sets=_test_sets(experiment))


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
    trial = within_budget(context, trial)
    method = trial.make_method(experiment.clip)
    trains = any(True for _ in method.parameters())
    rounds = trial.settings.rounds if trains else 0  # a method without parameters is only scored
    start = initial_state(method)
    checkpoint = run.load_checkpoint(trial.name) or Checkpoint(0, start[0], {})
    run.rewind(trial.name, checkpoint.round_number)
    if checkpoint.round_number:
        run.append(ResumeEvent(trial=trial.name, round=checkpoint.round_number))
    with _end_recorded(run, trial.name):
        run.append(trial_event(trial, method, experiment.dataset.space, rounds=rounds))
        context.callbacks.on_trial(trial.label, rounds, checkpoint.round_number)
        transport = context.make_transport(context, trial, method, checkpoint)
        best = BestRound(context, trial, rounds)
        last = train(context, trial, transport, checkpoint=checkpoint, best=best)
        if last.round_number and _is_unchanged(start, last.shared, transport.personal):
            run.append(TrialEvent(trial=trial.name, unchanged=True))
        kept = best.kept(last)
        if kept is not None:  # personal states are those of the best round too
            transport = context.make_transport(context, trial, trial.make_method(experiment.clip), kept)
        _score(context, trial, transport, last, kept=kept)


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
    save(shared, exports=method.exports(context.experiment.recipe.backbone.path))
    if kept is not None:
        method = transport.restore(last.shared)
        save(last.shared, exports=method.exports(context.experiment.recipe.backbone.path), suffix=LAST)


def _is_unchanged(start: tuple[State, State], shared: State, personal: Mapping[int, State]) -> bool:
    """Whether all tensors that this process holds, shared and personal ones, are those that training started from."""
    begun = [(start[0], shared), *((start[1], own) for own in personal.values())]
    return any(now for _, now in begun) and all(
        torch.equal(before[name], now[name]) for before, now in begun for name in now
    )


def free_folder(wanted: Path) -> Path:
    """The folder, or the first of NAME-2, NAME-3, ... that does not exist."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
