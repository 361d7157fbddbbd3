"""A run: its trials one after another, every round recorded and kept, so that stopping anywhere loses nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

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
from fedprompt.report.events import Expected
from fedprompt.runtimes.simulator import Simulator

RECIPE = "recipe.toml"


class Watch:
    """Whoever looks on while a run goes: every step is told here. This one does nothing."""

    def step(self, text: str) -> None:
        """Something that takes a while begins."""

    def said(self, text: str) -> None:
        """Something that is good to know."""

    def warn(self, text: str) -> None:
        """Something is odd, but the run goes on."""

    def moved(self, done: int, total: int) -> None:
        """How far a step has come, if it can tell."""

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


def start(
    recipe: Recipe,
    folder: Path,
    *,
    watch: Watch = SILENT,
    origin: str = "recipe",
    expected: Sequence[Expected] = (),
) -> Path:
    """Run a recipe into a new folder and return its report; UserError, before the folder exists, if anything is wrong.

    `expected` are published figures that the report shows ours beside. On an interruption or an error the folder says
    so and `resume` goes on from the last finished round.
    """
    watch.step("Opening backbone and data")
    experiment = assemble(recipe, origin=origin, on_step=watch.moved)
    for note in experiment.dataset.notes:
        watch.warn(note)
    if experiment.recipe.check:
        _inspect(experiment.dataset, watch)
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
        return _conduct(Desk(run, experiment, asked, watch))


def _inspect(dataset: Dataset, watch: Watch) -> None:
    """Open every picture file; UserError if one cannot be read, a warning for anything else that is odd."""
    if not all(isinstance(part.source, FileSource) for part in dataset.parts):
        return
    watch.step("Opening every picture")
    problems = check(dataset, on_image=watch.moved)
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
        experiment = assemble(load_recipe(folder / RECIPE), origin=RECIPE, on_step=watch.moved)
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
    trains = any(True for _ in method.parameters())
    rounds = trial.settings.rounds if trains else 0  # a method without parameters is scored as it is
    checkpoint = run.load_checkpoint(trial.name) or Checkpoint(0, initial_state(method)[0], {})
    run.rewind(trial.name, checkpoint.round_number)
    if checkpoint.round_number:
        run.append({"event": "resume", "trial": trial.name, "round": checkpoint.round_number})
    with _end_recorded(run, trial.name):
        run.append(describe.trial_line(trial, method, rounds=rounds))
        desk.watch.trial(trial.name, rounds, checkpoint.round_number)
        transport = Simulator(
            method,
            experiment.clip,
            experiment.trainers(trial),
            trial.settings,
            personal=checkpoint.personal,
            on_client=desk.watch.client,
        )
        shared = _train(desk, trial, transport, checkpoint=checkpoint, rounds=rounds)
        desk.watch.step(f"Scoring {trial.name}")
        _score_clients(desk, trial, transport, shared, round_number=rounds)
        owners = _owners(transport)
        decisions = {owner: _decide(desk, transport.restore(shared, owner)) for owner in {*owners, None}}
        _score(desk, trial, transport, shared, round_number=rounds, decisions=decisions)
        _show(desk, trial, transport.restore(shared, owners[0]))
        if trial.sharing != "local":  # which leaves nothing that all clients could use
            exports = method.exports(experiment.recipe.backbone.path)
            save_trial_adapter(run, experiment, trial, shared, exports=exports, threshold=decisions[None].tuned)


def _train(desk: Desk, trial: Trial, transport: Simulator, *, checkpoint: Checkpoint, rounds: int) -> State:
    """Record and keep every round; return the last shared state."""
    every, shared = desk.experiment.recipe.evaluate.every, checkpoint.shared

    def score_now(number: int) -> None:
        if every and number % every == 0 and number < rounds:
            _score(desk, trial, transport, shared, round_number=number)

    if not checkpoint.round_number:
        score_now(0)
    for record in federate(
        transport.method,
        transport,
        clients=range(len(transport.clients)),
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
    clients = desk.experiment.clients
    if trial.sharing == "pooled":  # one client has trained for all
        everyone = dict.fromkeys(range(len(clients)), transport.personal.get(0, {}))
        transport = Simulator(transport.method, desk.experiment.clip, clients, trial.settings, personal=everyone)
    tested = [client for client in clients if client.test is not None]
    scores = transport.evaluate(round_number, shared, [client.id for client in tested])
    for client, found in zip(tested, scores, strict=True):
        part, space = desk.experiment.clients.part(client.id), client.train.space
        line = describe.score_line(trial, round_number, "local", found, space, client=client.id, part=part)
        desk.run.append(line)


def _owners(transport: Simulator) -> Sequence[int | None]:
    """Whose models are to be scored: every client's where some parameters are personal, else the one all share."""
    method = transport.method
    if any(name.startswith(method.personal) for name, _ in method.named_parameters()):
        return range(len(transport.clients))
    return (None,)


def _decide(desk: Desk, method: Method) -> Decision:
    """When a label counts as present: the threshold that is best on held-out training pictures, if there are any."""
    recipe, held = desk.experiment.recipe.evaluate, desk.experiment.clients.held_out()
    if held is None or held.space.kind == "single":
        return Decision(oracle=recipe.oracle)
    logits = predict(method, desk.experiment.clip, held.images, held.space, batch_size=recipe.batch_size)
    tuned = best_threshold(logits.sigmoid(), held.targets)
    return Decision(None if math.isnan(tuned) else tuned, recipe.oracle)


def _score(
    desk: Desk,
    trial: Trial,
    transport: Simulator,
    shared: State,
    *,
    round_number: int,
    decisions: Mapping[int | None, Decision] = MappingProxyType({}),
) -> None:
    """Ask every owner's model every question; with `decisions`, by owner, also which labels it sees together."""
    clip, batch_size = desk.experiment.clip, desk.experiment.recipe.evaluate.batch_size
    present: dict[str, list[Tensor]] = {}  # by split, a tensor an owner
    for owner in _owners(transport):
        method = transport.restore(shared, owner)
        for question in desk.asked:
            asked, space = question.examples, question.examples.space
            logits = predict(method, clip, asked.images, space, batch_size=batch_size)
            figures = score(logits, asked.targets, space, name=question.name, decision=decisions.get(owner))
            line = describe.score_line(
                trial, round_number, question.split, figures, space, client=owner, part=question.part
            )
            desk.run.append(line)
            if decisions and space.kind == "multi":
                present.setdefault(question.split, []).append(likeliest(logits, asked.targets))
    for question in desk.asked:
        if question.split in present:
            shown = torch.cat(present[question.split])
            desk.run.append(describe.company_line(question, shown, trial=trial.name))


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
