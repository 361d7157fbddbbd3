"""Runs: train and score the trials of a plan, with a record and a checkpoint of every round to resume from."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedprompt.clip.threads import fitting_threads
from fedprompt.config.outside_code import named_code, require_trusted
from fedprompt.config.recipe import Recipe, checked, load_recipe
from fedprompt.config.recipe_tables import RuntimeTable
from fedprompt.errors import NotFiniteError, UserError, option
from fedprompt.experiments.budget import divide_time, give_back_time
from fedprompt.experiments.checks import (
    PARTITION,
    changes_since,
    header_of,
    recorded_partition,
    warn_of_missing_tests,
    warn_of_problems,
)
from fedprompt.experiments.context import NO_CALLBACKS, RunCallbacks, RunContext, TransportFactory
from fedprompt.experiments.events import cooccurrence_event, header_event
from fedprompt.experiments.experiment import Experiment, assemble
from fedprompt.experiments.given import NOTHING, Given
from fedprompt.experiments.intervals import interval_events, row_groups
from fedprompt.experiments.plan import Plan, Trial, resolve
from fedprompt.experiments.protocol import training_images
from fedprompt.experiments.runtimes import RUNTIMES, Prepare
from fedprompt.experiments.test_sets import UNSHIFTED, TestSet, make_test_sets
from fedprompt.experiments.trackers import require_trackers, tracked
from fedprompt.experiments.trials import end_recorded, run_trial
from fedprompt.file_system import is_file, require_folder
from fedprompt.records.atomic_files import write_atomic
from fedprompt.records.checkpoints import save_tensors
from fedprompt.records.event_fields import CommandRecord, ExpectedFigure
from fedprompt.records.events import ChangesEvent, EndEvent, TrialEvent
from fedprompt.records.output_folder import require_no_run, require_no_search
from fedprompt.records.reading import read_run
from fedprompt.records.run_folder import RunFolder
from fedprompt.report import render

RECIPE = "recipe.toml"


def start(  # noqa: PLR0913  (the plan, and what a command, a study or Python adds to it)
    plan: Plan,
    folder: Path,
    *,
    callbacks: RunCallbacks = NO_CALLBACKS,
    expected: Sequence[ExpectedFigure] = (),
    make_transport: TransportFactory | None = None,
    given: Given = NOTHING,
    command: CommandRecord | None = None,
) -> Path:
    """Run a plan into a new folder and return its report; UserError, before the folder exists, if anything is wrong.

    `expected` are published figures that the report compares with, `given` may hold the backbone, and `command` is what
    the user typed. `make_transport` reaches clients that are not simulated. An interruption or an error is recorded in
    the folder, and `resume` continues after the last finished round.
    """
    require_trackers(plan.recipe.track)
    require_no_run(folder)  # a run over sites has files of its server there already
    with ExitStack() as opened:
        prepare = opened.enter_context(_runtime(plan, given, make_transport))
        callbacks.on_step("Opening backbone and data")
        experiment = assemble(plan, on_step=callbacks.on_progress, backbone=given.backbone)
        opened.enter_context(fitting_threads(experiment.clip))
        callbacks.on_message(experiment.dataset.report.sentence())
        for name, origin in experiment.origins.items():
            callbacks.on_message(f"{name} reads bundled descriptions: {origin}.")
        for sentence in experiment.merged:
            callbacks.on_message(sentence)
        for warning in experiment.partition.warnings:
            callbacks.on_warning(warning)
        warn_of_problems(experiment, callbacks)
        callbacks.on_message(training_images(experiment))
        test_sets = _test_sets(experiment)
        warn_of_missing_tests(experiment, test_sets, callbacks)
        transports = prepare(experiment, callbacks)
        for trial in experiment.trials:  # what a method refuses is said before the folder exists
            trial.make_method(experiment.clip)
        run = opened.enter_context(RunFolder.create(folder))
        write_atomic(folder / RECIPE, experiment.recipe.to_toml())
        write_atomic(folder / PARTITION, experiment.partition.to_json())
        if experiment.hidden is not None:
            save_tensors(folder / "annotation.safetensors", {"hidden": experiment.hidden})
        run.append(header_event(experiment, test_sets, expected=expected, command=command))
        for test_set in test_sets:
            if test_set.examples.space.kind == "multi":
                run.append(cooccurrence_event(test_set, test_set.examples.targets == 1))
        return _run_trials(RunContext(run, experiment, test_sets, callbacks, transports))


def resume(  # noqa: PLR0913  (what a command or Python may change of a run)
    folder: Path,
    *,
    callbacks: RunCallbacks = NO_CALLBACKS,
    make_transport: TransportFactory | None = None,
    accept_changes: bool = False,
    trusted: Sequence[str] | None = (),
    given: Given = NOTHING,
    runtime: RuntimeTable | None = None,
) -> Path:
    """Continue a run that stopped; the result is bitwise that of a run that never stopped. Returns the report.

    Of a finished run only the report is written again. `trusted` are the modules outside fedprompt that the run's
    recipe may name; None for a folder of one's own, which may name any. `given` stands for what the recipe names, and
    `runtime` for its [runtime], which no result depends on.
    Raises UserError when recipe, versions, backbone, data (images, labels, split, domains, classes), clients or
    descriptions are no longer those that the run began with; with `accept_changes` they are recorded, and it goes on.
    """
    with RunFolder.open(folder) as run, ExitStack() as opened:
        if _is_finished(run):
            callbacks.on_message("This run has finished; only its report is written again.")
            return render(folder)
        callbacks.on_step("Opening backbone and data")
        header = header_of(run)
        unreadable = {image.row: image.reason for image in header.left_out}
        if trusted is not None:
            require_trusted_recipe(folder, trusted)
        recipe = _with_runtime(load_recipe(folder / RECIPE), runtime)
        at_sites = make_transport is not None
        plan = resolve(recipe, origin=RECIPE) if at_sites else given.plan(recipe, origin=RECIPE)
        prepare = opened.enter_context(_runtime(plan, given, make_transport))
        experiment = assemble(plan, on_step=callbacks.on_progress, backbone=given.backbone, unreadable=unreadable)
        opened.enter_context(fitting_threads(experiment.clip))
        changes = changes_since(header, experiment, recorded_partition(folder))
        if changes and not accept_changes:
            raise UserError(
                f"The run {folder} is not as it began: {'; '.join(changes)}. Undo that, start a new run, or resume it "
                f"with {option('accept-changes', 'accept_changes=True')}."
            )
        for change in changes:
            callbacks.on_warning(f"The run goes on although it has changed: {change}.")
        if changes:
            run.append(ChangesEvent(changes=changes))
        callbacks.on_message(experiment.dataset.report.sentence())
        transports = prepare(experiment, callbacks)
        return _run_trials(RunContext(run, experiment, _test_sets(experiment), callbacks, transports))


def _runtime(plan: Plan, given: Given, make_transport: TransportFactory | None) -> AbstractContextManager[Prepare]:
    """The runtime that the recipe names, unless the clients are not simulated."""
    if make_transport is not None:
        return nullcontext(lambda experiment, callbacks: make_transport)
    table = plan.recipe.runtime
    return RUNTIMES[table.name](table, given)


def _with_runtime(recipe: Recipe, runtime: RuntimeTable | None) -> Recipe:
    return recipe if runtime is None else recipe.model_copy(update={"runtime": runtime})


def _test_sets(experiment: Experiment) -> tuple[TestSet, ...]:
    """The test sets that an experiment evaluates; none if it leaves the test images unseen."""
    evaluate = experiment.recipe.evaluate
    if not evaluate.test:
        return ()
    return tuple(one for one in make_test_sets(experiment.dataset) if evaluate.shifted or one.split in UNSHIFTED)


def changed_runtime(folder: Path, changes: Mapping[str, Any]) -> RuntimeTable:
    """The [runtime] of a run that is to be resumed, with changes; UserError for wrong ones, or if there is no run."""
    require_folder(folder, "give the folder of a run")
    require_no_search(folder)
    recorded = load_recipe(folder / RECIPE).runtime
    return checked(RuntimeTable, {**recorded.model_dump(), **changes}, origin="[runtime]")


def require_trusted_recipe(folder: Path, trusted: Sequence[str]) -> None:
    """Raise UserError if the recipe of a run that is to be resumed names code that is not trusted."""
    path = folder / RECIPE
    require_folder(folder, "give the folder of a run")
    if is_file(path):
        require_trusted(named_code(load_recipe(path)), trusted, place=str(path))


def _is_finished(run: RunFolder) -> bool:
    """Whether the last event of a run is its end, without an error."""
    *_, last = [None, *run.events()]
    return isinstance(last, EndEvent) and last.status == "done"


def _run_trials(context: RunContext) -> Path:
    with tracked(context) as followed:
        _train_and_compare(followed)
        followed.callbacks.on_step("Drawing the report")
        return render(context.run.path)


def _train_and_compare(context: RunContext) -> None:
    finished = {
        event.trial for event in context.run.events() if isinstance(event, TrialEvent) and event.status == "done"
    }
    with end_recorded(context.run):
        todo = {trial.name: trial for trial in context.experiment.trials if trial.name not in finished}
        contexts = {name: _for_trial(context, trial) for name, trial in todo.items()}
        ends = time.perf_counter() + 60 * context.experiment.recipe.minutes
        costs = divide_time(todo, contexts)
        for place, (name, trial) in enumerate(todo.items()):
            if place:
                give_back_time(context, list(todo.values())[place:], costs, ends - time.perf_counter())
            with _divergence_recorded(context, trial):
                run_trial(contexts[name], trial)
        context.callbacks.on_step("Comparing the methods")
        groups = row_groups(context.experiment.dataset)
        for event in interval_events(context.run.path, read_run(context.run.path), groups):
            context.run.append(event)


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


def free_folder(wanted: Path) -> Path:
    """The folder, or the first of NAME-2, NAME-3, ... that does not exist."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
