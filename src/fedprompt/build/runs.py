"""A run: its trials one after another, every round recorded and kept, so that stopping anywhere loses nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from fedprompt.build import describe
from fedprompt.build.card import save_trial_adapter
from fedprompt.build.evaluation import Question, likeliest, questions
from fedprompt.build.experiment import Experiment, Trial, assemble, make_method
from fedprompt.build.samples import choose, sample_lines
from fedprompt.build.wording import fingerprint
from fedprompt.config import Recipe, load_recipe
from fedprompt.data.check import check
from fedprompt.data.dataset import Dataset
from fedprompt.data.readers import FileSource
from fedprompt.errors import UserError
from fedprompt.federated.evaluate import Decision, predict, score
from fedprompt.federated.rounds import Start, federate, initial_state
from fedprompt.methods.base import Method
from fedprompt.metrics import best_threshold
from fedprompt.ops.averaging import State
from fedprompt.records import Checkpoint, RunFolder, save_tensors, write_atomic
from fedprompt.report import render
from fedprompt.runtimes.simulator import Simulator

RECIPE = "recipe.toml"


class Watch:
    """Whoever looks on while a run goes: every step is told here. This one does nothing."""

    def step(self, text: str) -> None:
        """Something that takes a while begins."""

    def warn(self, text: str) -> None:
        """Something is odd, but the run goes on."""

    def trial(self, name: str, rounds: int, done: int) -> None:
        """A trial begins, or goes on after `done` rounds."""

    def client(self, done: int, total: int) -> None:
        """A client of the round has answered."""

    def round(self, number: int, loss: float | None) -> None:
        """A round is recorded and kept."""


SILENT = Watch()


@dataclass(frozen=True)
class Desk:
    """What every step of a run works with."""

    run: RunFolder
    experiment: Experiment
    asked: tuple[Question, ...]
    watch: Watch


def start(recipe: Recipe, folder: Path, *, watch: Watch = SILENT, origin: str = "recipe") -> Path:
    """Run a recipe into a new folder and return its report; UserError, before the folder exists, if anything is wrong.

    On an interruption or an error the folder says so and `resume` goes on from the last finished round.
    """
    watch.step("Opening backbone and data")
    experiment = assemble(recipe, origin=origin)
    if experiment.recipe.check:
        _inspect(experiment.dataset, watch)
    asked = questions(experiment.dataset)
    with RunFolder.create(folder) as run:
        write_atomic(folder / RECIPE, experiment.recipe.to_toml())
        write_atomic(folder / "partition.json", experiment.partition.to_json())
        if experiment.hidden is not None:
            save_tensors(folder / "annotation.safetensors", {"hidden": experiment.hidden})
        run.append(describe.header(experiment, asked))
        for question in asked:
            if question.examples.space.kind == "multi":
                run.append(describe.company_line(question, question.examples.targets == 1))
        return _conduct(Desk(run, experiment, asked, watch))


def _inspect(dataset: Dataset, watch: Watch) -> None:
    """Open every picture file; UserError if one cannot be read, a warning for anything else that is odd."""
    if not isinstance(dataset.source, FileSource):
        return
    watch.step("Opening every picture")
    problems = check(dataset, on_image=watch.client)
    unreadable = [problem for problem in problems if problem.kind == "unreadable"]
    if unreadable:
        more = f" ({len(unreadable) - 1} more; list them with: fedprompt check RECIPE)" if len(unreadable) > 1 else ""
        raise UserError(unreadable[0].message + more)
    for problem in problems:
        watch.warn(problem.message)


def resume(folder: Path, *, watch: Watch = SILENT) -> Path:
    """Go on with a run that stopped; the result is, to the bit, that of never stopping. Returns the report.

    Raises UserError when backbone or data are no longer those the run began with.
    """
    with RunFolder.open(folder) as run:
        watch.step("Opening backbone and data")
        experiment = assemble(load_recipe(folder / RECIPE), origin=RECIPE)
        _check_same(run, experiment)
        return _conduct(Desk(run, experiment, questions(experiment.dataset), watch))


def _check_same(run: RunFolder, experiment: Experiment) -> None:
    header = next((event for event in run.events() if event["event"] == "header"), None)
    if header is None:
        raise UserError(
            f"The run {run.path} stopped before it had recorded anything; delete the folder and start again."
        )
    dataset = experiment.dataset
    for what, before, now in (
        ("backbone", header["backbone"]["fingerprint"], experiment.clip.fingerprint),
        ("data", header["data"]["fingerprint"], dataset.source.fingerprint),
        *(
            ("words file", before, fingerprint(experiment.spaces[name]))
            for name, before in header.get("words", {}).items()
        ),
    ):
        if before != now:
            raise UserError(
                f"The run {run.path} began with another {what} (fingerprint {before[:12]}, now {now[:12]}); "
                f"put the old {what} back, or start a new run."
            )


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
    shared, personal = initial_state(method)
    rounds = trial.settings.rounds if shared else 0  # a method without parameters is scored as it is
    checkpoint = run.load_checkpoint(trial.name) or Checkpoint(0, shared, {})
    run.rewind(trial.name, checkpoint.round_number)
    if checkpoint.round_number:
        run.append({"event": "resume", "trial": trial.name, "round": checkpoint.round_number})
    with _end_recorded(run, trial.name):
        run.append(describe.trial_line(trial, method, rounds=rounds))
        desk.watch.trial(trial.name, rounds, checkpoint.round_number)
        transport = Simulator(
            method,
            experiment.clip,
            experiment.clients,
            trial.settings,
            personal=checkpoint.personal,
            on_client=desk.watch.client,
        )
        shared = _train(desk, trial, transport, personal, checkpoint=checkpoint, rounds=rounds)
        desk.watch.step(f"Scoring {trial.name}")
        _score_clients(desk, trial, transport, shared, round_number=rounds)
        method.load_state_dict({**shared, **personal})
        decision = _decide(desk, method)
        _score(desk, trial, method, round_number=rounds, decision=decision)
        _show(desk, trial, method)
        save_trial_adapter(run, experiment, trial, shared, threshold=decision.tuned)


def _train(
    desk: Desk, trial: Trial, transport: Simulator, personal: State, *, checkpoint: Checkpoint, rounds: int
) -> State:
    """Record and keep every round; return the last shared state."""
    every, shared = desk.experiment.recipe.evaluate.every, checkpoint.shared

    def score_now(number: int) -> None:
        if every and number % every == 0 and number < rounds:
            transport.method.load_state_dict({**shared, **personal})
            _score(desk, trial, transport.method, round_number=number)

    if not checkpoint.round_number:
        score_now(0)
    for record in federate(
        transport.method,
        transport,
        clients=range(len(desk.experiment.clients)),
        rounds=rounds,
        fraction=trial.fraction,
        seed=trial.settings.seed,
        weighting=trial.weighting,
        start=Start(checkpoint.round_number, checkpoint.shared),
    ):
        shared = record.shared
        line = describe.round_line(trial, record)
        desk.run.append(line)
        score_now(record.number)
        # The checkpoint comes last: a round that has one has its lines, and lines without one are rewound.
        desk.run.save_checkpoint(trial.name, Checkpoint(record.number, shared, transport.personal))
        desk.watch.round(record.number, line["loss"])
    return shared


def _score_clients(desk: Desk, trial: Trial, transport: Simulator, shared: State, *, round_number: int) -> None:
    if not desk.experiment.recipe.evaluate.local:
        return
    tested = [client for client in desk.experiment.clients if client.test is not None]
    scores = transport.evaluate(round_number, shared, [client.id for client in tested])
    for client, found in zip(tested, scores, strict=True):
        desk.run.append(describe.score_line(trial, round_number, "local", found, client.train.space, client=client.id))


def _decide(desk: Desk, method: Method) -> Decision:
    """When a label counts as present: the threshold that is best on held-out training pictures, if there are any."""
    recipe, held = desk.experiment.recipe.evaluate, desk.experiment.clients.held_out()
    if held is None or held.space.kind == "single":
        return Decision(oracle=recipe.oracle)
    logits = predict(method, desk.experiment.clip, held.images, held.space, batch_size=recipe.batch_size)
    tuned = best_threshold(logits.sigmoid(), held.targets)
    return Decision(None if math.isnan(tuned) else tuned, recipe.oracle)


def _score(desk: Desk, trial: Trial, method: Method, *, round_number: int, decision: Decision | None = None) -> None:
    clip, batch_size = desk.experiment.clip, desk.experiment.recipe.evaluate.batch_size
    for question in desk.asked:
        asked, space = question.examples, question.examples.space
        logits = predict(method, clip, asked.images, space, batch_size=batch_size)
        figures = score(logits, asked.targets, space, name=question.name, decision=decision)
        desk.run.append(describe.score_line(trial, round_number, question.split, figures, space))
        if decision is not None and space.kind == "multi":
            present = likeliest(logits, asked.targets)
            desk.run.append(describe.company_line(question, present, trial=trial.name))


def _show(desk: Desk, trial: Trial, method: Method) -> None:
    recipe, clip = desk.experiment.recipe, desk.experiment.clip
    chosen = choose(desk.asked, count=recipe.evaluate.samples, seed=recipe.seed)
    main = trial == desk.experiment.trials[0]
    for line in sample_lines(method, clip, chosen, trial=trial.name, pictures=main):
        desk.run.append(line)


def free_folder(wanted: Path) -> Path:
    """The folder, or the first of NAME-2, NAME-3, ... that does not exist."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
