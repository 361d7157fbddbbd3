"""A run: its trials one after another, every round recorded and kept, so that stopping anywhere loses nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from fedprompt.config.recipe import Recipe, load_recipe
from fedprompt.errors import UserError
from fedprompt.experiments import events as describe
from fedprompt.experiments.checks import check_same, header_of, inspect
from fedprompt.experiments.context import NO_CALLBACKS, RunCallbacks, RunContext, RunTransport, TransportFactory
from fedprompt.experiments.evaluate import decide, score_all, score_clients, show_samples
from fedprompt.experiments.experiment import Trial, assemble, make_method
from fedprompt.experiments.model_card import save_trial_adapter
from fedprompt.experiments.server import make_adversaries, make_server, open_ledger, secure_sum, spent
from fedprompt.experiments.test_sets import make_test_sets
from fedprompt.federated.rounds import Start, federate, initial_state
from fedprompt.methods.base import Method
from fedprompt.records.events import Expected
from fedprompt.records.run_folder import Checkpoint, RunFolder, save_tensors, write_atomic
from fedprompt.report import render
from fedprompt.runtimes.simulator import Simulator

RECIPE = "recipe.toml"


def simulate(context: RunContext, trial: Trial, method: Method, checkpoint: Checkpoint) -> RunTransport:
    """All clients in this process."""
    clients = context.experiment.trainers(trial)
    return Simulator(
        method,
        context.experiment.clip,
        clients,
        trial.settings,
        personal=checkpoint.personal,
        on_client=context.callbacks.client,
        adversaries=make_adversaries(trial.server, clients=len(clients), seed=trial.settings.seed),
        secure=secure_sum(trial.server, weighting=trial.weighting),
    )


def start(
    recipe: Recipe,
    folder: Path,
    *,
    callbacks: RunCallbacks = NO_CALLBACKS,
    origin: str = "recipe",
    expected: Sequence[Expected] = (),
    make_transport: TransportFactory = simulate,
) -> Path:
    """Run a recipe into a new folder and return its report; UserError, before the folder exists, if anything is wrong.

    `expected` are published figures that the report shows ours beside. On an interruption or an error the folder says
    so and `resume` goes on from the last finished round.
    """
    callbacks.step("Opening backbone and data")
    experiment = assemble(recipe, origin=origin, on_step=callbacks.moved)
    for note in experiment.dataset.notes:
        callbacks.warn(note)
    inspect(experiment, callbacks)
    asked = make_test_sets(experiment.dataset)
    with RunFolder.create(folder) as run:
        write_atomic(folder / RECIPE, experiment.recipe.to_toml())
        write_atomic(folder / "partition.json", experiment.partition.to_json())
        if experiment.hidden is not None:
            save_tensors(folder / "annotation.safetensors", {"hidden": experiment.hidden})
        run.append(describe.header(experiment, asked) | {"expected": [one.model_dump() for one in expected]})
        for test_set in asked:
            if test_set.examples.space.kind == "multi":
                run.append(describe.cooccurrence_line(test_set, test_set.examples.targets == 1))
        return _conduct(RunContext(run, experiment, asked, callbacks, make_transport))


def resume(
    folder: Path, *, callbacks: RunCallbacks = NO_CALLBACKS, make_transport: TransportFactory = simulate
) -> Path:
    """Go on with a run that stopped; the result is, to the bit, that of never stopping. Returns the report.

    Raises UserError when backbone or data are no longer those the run began with.
    """
    with RunFolder.open(folder) as run:
        callbacks.step("Opening backbone and data")
        header = header_of(run)
        unreadable = {lost["row"]: lost["reason"] for lost in header.get("left_out", ())}
        recipe = load_recipe(folder / RECIPE)
        experiment = assemble(recipe, origin=RECIPE, on_step=callbacks.moved, unreadable=unreadable)
        check_same(run, header, experiment)
        return _conduct(RunContext(run, experiment, make_test_sets(experiment.dataset), callbacks, make_transport))


def _conduct(context: RunContext) -> Path:
    finished = {
        event["trial"] for event in context.run.events() if event["event"] == "trial" and event["status"] == "done"
    }
    with _end_recorded(context.run):
        for trial in context.experiment.trials:
            if trial.name not in finished:
                _conduct_trial(_in_words(context, trial), trial)
        context.callbacks.step("Drawing the report")
    return render(context.run.path)


def _in_words(context: RunContext, trial: Trial) -> RunContext:
    """The context with the trial's own words on it."""
    experiment = context.experiment.of(trial)
    return replace(context, experiment=experiment, asked=make_test_sets(experiment.dataset))


@contextmanager
def _end_recorded(run: RunFolder, trial: str | None = None) -> Iterator[None]:
    """Record how a run, or one trial of it, ended, whatever happens."""
    started = time.perf_counter()
    line = {"event": "end"} if trial is None else {"event": "trial", "trial": trial}
    try:
        yield
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with suppress(UserError):  # on a full disk the first error is the one to hear
            run.append({**line, "status": status, "message": str(error), "seconds": time.perf_counter() - started})
        raise
    run.append({**line, "status": "done", "seconds": time.perf_counter() - started})


def _conduct_trial(context: RunContext, trial: Trial) -> None:
    """Train from where the trial stands, score, show samples, and write the adapter."""
    experiment, run = context.experiment, context.run
    method = make_method(trial, experiment.clip)
    trains = any(True for _ in method.parameters())
    rounds = trial.settings.rounds if trains else 0  # a method without parameters is scored as it is
    checkpoint = run.load_checkpoint(trial.name) or Checkpoint(0, initial_state(method)[0], {})
    run.rewind(trial.name, checkpoint.round_number)
    if checkpoint.round_number:
        run.append({"event": "resume", "trial": trial.name, "round": checkpoint.round_number})
    with _end_recorded(run, trial.name):
        run.append(describe.trial_line(trial, method, rounds=rounds))
        context.callbacks.trial(trial.name, rounds, checkpoint.round_number)
        transport = context.make_transport(context, trial, method, checkpoint)
        last = _train(context, trial, transport, checkpoint=checkpoint, rounds=rounds)
        shared, rounds = last.shared, last.round_number
        context.callbacks.step(f"Scoring {trial.name}")
        score_clients(context, trial, transport, shared, round_number=rounds)
        decisions = decide(context, transport, shared)
        score_all(context, trial, transport, shared, round_number=rounds, decisions=decisions)
        show_samples(context, trial, transport.restore(shared, transport.owners[0]))
        if trial.sharing != "local":  # which leaves nothing that all clients could use
            exports = method.exports(experiment.recipe.backbone.path)
            save_trial_adapter(run, experiment, trial, shared, exports=exports, threshold=decisions[None].tuned)


def _train(context: RunContext, trial: Trial, transport: RunTransport, *, checkpoint: Checkpoint, rounds: int) -> Start:
    """Record and keep every round; return the last one, which a privacy budget may bring early."""
    every, shared = context.experiment.recipe.evaluate.every, checkpoint.shared

    def score_now(number: int) -> None:
        if every and number % every == 0 and number < rounds:
            score_all(context, trial, transport, shared, round_number=number)

    if not checkpoint.round_number:
        score_now(0)
    last = Start(checkpoint.round_number, shared, checkpoint.memory)
    ledger = open_ledger(context.run, trial.name, trial.server, trial.settings, transport.num_examples)
    for record in federate(
        transport.method,
        transport,
        clients=range(len(context.experiment.trainers(trial))),
        rounds=rounds,
        fraction=trial.fraction,
        seed=trial.settings.seed,
        server=make_server(trial.server, trial.method, weighting=trial.weighting),
        start=last,
        admit=ledger.admit if ledger else None,
    ):
        shared, last = record.shared, Start(record.number, record.shared, record.memory)
        line = describe.round_line(trial, record, {**transport.notes, **spent(ledger, trial.server)})
        context.run.append(line)
        score_now(record.number)
        # The checkpoint comes last: a round that has one has its lines, and lines without one are rewound.
        context.run.save_checkpoint(trial.name, Checkpoint(record.number, shared, transport.personal, record.memory))
        context.callbacks.round(record.number, line["loss"])
    if last.round_number < rounds:
        context.callbacks.warn(
            f"{trial.name} ends after round {last.round_number}: one more would pass its privacy budget."
        )
    return last


def free_folder(wanted: Path) -> Path:
    """The folder, or the first of NAME-2, NAME-3, ... that does not exist."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
