"""The two ends of the scale, and methods with tensors of a client's own, through whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fedprompt.config.recipe import Recipe, parse_recipe
from fedprompt.config.recipe_tables import ServerTable
from fedprompt.experiments import run as runs
from fedprompt.experiments.experiment import assemble
from fedprompt.experiments.plan import resolve
from fedprompt.report import Run, read_run

pytestmark = pytest.mark.usefixtures("kept_backbone", "undrawn")

RECIPE = """
name = "ends"
seed = 3
compare = [
  { name = "promptfl", label = "alone", train = { sharing = "local" } },
  { name = "promptfl", label = "together", train = { sharing = "pooled" } },
  { name = "fedpgp" },
]
[data]
source = "emoji"
train = 1
test = 1
[partition]
rule = "class_chunks"
classes_per_client = 20
shots = 1
[method]
name = "promptfl"
[train]
rounds = 2
batch_size = 20
lr = 0.03
optimizer = "adamw"
[evaluate]
samples = 1
"""


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return parse_recipe(RECIPE)


@pytest.fixture(scope="module")
def folder(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharing") / "run"
    runs.start(resolve(recipe), folder)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return read_run(folder)


def test_the_ends_differ_from_federated_training(run: Run) -> None:
    figures = {trial.name: dict(trial.figures) for trial in run.trials}
    assert set(figures) == {"promptfl", "alone", "together", "fedpgp"}
    assert all(set(found) == {"local", "base", "new", "unseen", "hm"} for found in figures.values())
    losses = {trial.name: [line.loss for line in trial.rounds] for trial in run.trials}
    assert losses["alone"][0] == losses["promptfl"][0] != losses["together"][0]  # the first round starts alike
    assert losses["alone"][1] != losses["promptfl"][1]


def test_only_federated_training_sends_something(run: Run) -> None:
    sent = {trial.name: trial.bytes_up for trial in run.trials}
    assert sent["alone"] == 0 and sent["together"] is None and sent["promptfl"] == 4 * 4 * 160
    assert sent["fedpgp"] == 16 * 4 * 160  # the correction stays at home


def test_every_client_is_scored_where_tensors_are_personal(run: Run) -> None:
    owners = {trial.name: [score.client for score in trial.final("new")] for trial in run.trials}
    assert owners == {"promptfl": [None], "together": [None], "alone": [0, 1, 2], "fedpgp": [0, 1, 2]}


def test_training_alone_leaves_no_adapter(folder: Path, run: Run) -> None:
    assert {path.name for path in (folder / "adapters").iterdir()} == {"promptfl", "together", "fedpgp"}
    metrics = json.loads((folder / "adapters" / "fedpgp" / "metrics.json").read_text())
    assert metrics["figures"].keys() == {"local", "base", "new", "unseen", "hm"}


def test_resuming_is_never_having_stopped(tmp_path: Path, recipe: Recipe, folder: Path) -> None:
    stopped = tmp_path / "run"

    class Impatient(runs.RunCallbacks):
        def __init__(self) -> None:
            self.name = ""

        def on_trial(self, name: str, rounds: int, done: int) -> None:
            self.name = name

        def on_round(self, number: int, loss: float | None) -> None:
            if self.name == "alone":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.start(resolve(recipe), stopped, callbacks=Impatient())
    runs.resume(stopped)
    ours, theirs = (
        [(trial.name, [(s.column, s.client, s.value) for s in trial.scores]) for trial in read_run(path).trials]
        for path in (stopped, folder)
    )
    assert ours == theirs


def test_a_server_has_nothing_to_do_where_nothing_is_sent() -> None:
    server = ["train.server.secure.share=0.9", "train.server.attack={name='sign_flip'}"]
    one, alone, together, _ = resolve(parse_recipe(RECIPE, server)).trials
    assert one.setup.secure is not None and one.setup.attack is not None
    assert alone.setup.table == together.setup.table == ServerTable()
    private = ["train.server.privacy={name='sample', clip=1.0, noise=2.0, epsilon=3.0, delta=1e-3}"]
    assert all(trial.setup.privacy is not None for trial in resolve(parse_recipe(RECIPE, private)).trials)


def test_pooling_holds_every_picture_once(recipe: Recipe) -> None:
    experiment = assemble(resolve(recipe))
    (all_clients,) = experiment.partition.pooled(experiment.dataset).shards
    rows = sorted(row for shard in experiment.partition.shards for row in shard.rows)
    assert list(all_clients.rows) == rows and all_clients.classes == experiment.dataset.base
    trainer = experiment.trainers(experiment.trials[2])[0]
    assert torch.equal(trainer.train.targets.sort().values, torch.arange(60))
