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
from fedprompt.experiments.context import SILENT, Carrier, Carry, Desk, Watch
from fedprompt.experiments.evaluate import decide, score_all, score_clients, show_samples
from fedprompt.experiments.experiment import Trial, assemble, make_method
from fedprompt.experiments.model_card import save_trial_adapter
from fedprompt.experiments.server import make_liars, make_server, open_ledger, secure_sum, spent
from fedprompt.experiments.test_sets import questions
from fedprompt.federated.rounds import Start, federate, initial_state
from fedprompt.methods.base import Method
from fedprompt.records.events import Expected
from fedprompt.records.run_folder import Checkpoint, RunFolder, save_tensors, write_atomic
from fedprompt.report import render
from fedprompt.runtimes.simulator import Simulator

RECIPE = "recipe.toml"


def simulate(desk: Desk, trial: Trial, method: Method, checkpoint: Checkpoint) -> Carrier:
    """All clients in this process."""
    clients = desk.experiment.trainers(trial)
    return Simulator(
        method,
        desk.experiment.clip,
        clients,
        trial.settings,
        personal=checkpoint.personal,
        on_client=desk.watch.client,
        liars=make_liars(trial.server, clients=len(clients), seed=trial.settings.seed),
        secure=secure_sum(trial.server, weighting=trial.weighting),
    )


def start(
    recipe: Recipe,
    folder: Path,
    *,
    watch: Watch = SILENT,
    origin: str = "recipe",
    expected: Sequence[Expected] = (),
    carry: Carry = simulate,
) -> Path:
    """Run a recipe into a new folder and return its report; UserError, before the folder exists, if anything is wrong.

    `expected` are published figures that the report shows ours beside. On an interruption or an error the folder says
    so and `resume` goes on from the last finished round.
    """
    watch.step("Opening backbone and data")
    experiment = assemble(recipe, origin=origin, on_step=watch.moved)
    for note in experiment.dataset.notes:
        watch.warn(note)
    inspect(experiment, watch)
    asked = questions(experiment.dataset)
    with RunFolder.create(folder) as run:
        write_atomic(folder / RECIPE, experiment.recipe.to_toml())
        write_atomic(folder / "partition.json", experiment.partition.to_json())
        if experiment.hidden is not None:
            save_tensors(folder / "annotation.safetensors", {"hidden": experiment.hidden})
        run.append(describe.header(experiment, asked) | {"expected": [one.model_dump() for one in expected]})
        for question in asked:
            if question.examples.space.kind == "multi":
                run.append(describe.company_line(question, question.examples.targets == 1))
        return _conduct(Desk(run, experiment, asked, watch, carry))


def resume(folder: Path, *, watch: Watch = SILENT, carry: Carry = simulate) -> Path:
    """Go on with a run that stopped; the result is, to the bit, that of never stopping. Returns the report.

    Raises UserError when backbone or data are no longer those the run began with.
    """
    with RunFolder.open(folder) as run:
        watch.step("Opening backbone and data")
        header = header_of(run)
        unreadable = {lost["row"]: lost["reason"] for lost in header.get("left_out", ())}
        recipe = load_recipe(folder / RECIPE)
        experiment = assemble(recipe, origin=RECIPE, on_step=watch.moved, unreadable=unreadable)
        check_same(run, header, experiment)
        return _conduct(Desk(run, experiment, questions(experiment.dataset), watch, carry))


def _conduct(desk: Desk) -> Path:
    finished = {
        event["trial"] for event in desk.run.events() if event["event"] == "trial" and event["status"] == "done"
    }
    with _end_recorded(desk.run):
        for trial in desk.experiment.trials:
            if trial.name not in finished:
                _conduct_trial(_in_words(desk, trial), trial)
        desk.watch.step("Drawing the report")
    return render(desk.run.path)


def _in_words(desk: Desk, trial: Trial) -> Desk:
    """The desk with the trial's own words on it."""
    experiment = desk.experiment.of(trial)
    return replace(desk, experiment=experiment, asked=questions(experiment.dataset))


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


def _conduct_trial(desk: Desk, trial: Trial) -> None:
    """Train from where the trial stands, score, show samples, and write the adapter."""
    experiment, run = desk.experiment, desk.run
    method = make_method(trial, experiment.clip)
    trains = any(True for _ in method.parameters())
    rounds = trial.settings.rounds if trains else 0  # a method without parameters is scored as it is
    checkpoint = run.load_checkpoint(trial.name) or Checkpoint(0, initial_state(method)[0], {})
    run.rewind(trial.name, checkpoint.round_number)
    if checkpoint.round_number:
        run.append({"event": "resume", "trial": trial.name, "round": checkpoint.round_number})
    with _end_recorded(run, trial.name):
        run.append(describe.trial_line(trial, method, rounds=rounds))
        desk.watch.trial(trial.name, rounds, checkpoint.round_number)
        transport = desk.carry(desk, trial, method, checkpoint)
        last = _train(desk, trial, transport, checkpoint=checkpoint, rounds=rounds)
        shared, rounds = last.shared, last.round_number
        desk.watch.step(f"Scoring {trial.name}")
        score_clients(desk, trial, transport, shared, round_number=rounds)
        decisions = decide(desk, transport, shared)
        score_all(desk, trial, transport, shared, round_number=rounds, decisions=decisions)
        show_samples(desk, trial, transport.restore(shared, transport.owners[0]))
        if trial.sharing != "local":  # which leaves nothing that all clients could use
            exports = method.exports(experiment.recipe.backbone.path)
            save_trial_adapter(run, experiment, trial, shared, exports=exports, threshold=decisions[None].tuned)


def _train(desk: Desk, trial: Trial, transport: Carrier, *, checkpoint: Checkpoint, rounds: int) -> Start:
    """Record and keep every round; return the last one, which a privacy budget may bring early."""
    every, shared = desk.experiment.recipe.evaluate.every, checkpoint.shared

    def score_now(number: int) -> None:
        if every and number % every == 0 and number < rounds:
            score_all(desk, trial, transport, shared, round_number=number)

    if not checkpoint.round_number:
        score_now(0)
    last = Start(checkpoint.round_number, shared, checkpoint.memory)
    ledger = open_ledger(desk.run, trial.name, trial.server, trial.settings, transport.pictures)
    for record in federate(
        transport.method,
        transport,
        clients=range(len(desk.experiment.trainers(trial))),
        rounds=rounds,
        fraction=trial.fraction,
        seed=trial.settings.seed,
        server=make_server(trial.server, trial.method, weighting=trial.weighting),
        start=last,
        admit=ledger.admit if ledger else None,
    ):
        shared, last = record.shared, Start(record.number, record.shared, record.memory)
        line = describe.round_line(trial, record, {**transport.notes, **spent(ledger, trial.server)})
        desk.run.append(line)
        score_now(record.number)
        # The checkpoint comes last: a round that has one has its lines, and lines without one are rewound.
        desk.run.save_checkpoint(trial.name, Checkpoint(record.number, shared, transport.personal, record.memory))
        desk.watch.round(record.number, line["loss"])
    if last.round_number < rounds:
        desk.watch.warn(f"{trial.name} ends after round {last.round_number}: one more would pass its privacy budget.")
    return last


def free_folder(wanted: Path) -> Path:
    """The folder, or the first of NAME-2, NAME-3, ... that does not exist."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
