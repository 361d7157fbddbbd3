"""Runs and studies on Ray: the adapters and scores of a run in one process, whatever is killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from typer.testing import CliRunner

import fedprompt as fp
from fedprompt.cli.main import app
from fedprompt.config.recipe import parse_recipe
from fedprompt.experiments import on_ray
from fedprompt.experiments import run as runs
from fedprompt.experiments.context import RunCallbacks
from fedprompt.experiments.plan import resolve
from fedprompt.records.events import HeaderEvent, RoundEvent, ScoreEvent
from fedprompt.records.run_folder import read_events
from fedprompt.runtimes.ray import cluster as clusters
from fedprompt.runtimes.ray.cluster import connected
from fedprompt.runtimes.ray.guard import marked
from fedprompt.runtimes.ray.pool import Pool
from fedprompt.seeding import numpy_stream
from fedprompt.studies.spread import progress_of, spread
from fedprompt.studies.sweep import Job
from fedprompt.testing.tiny import tiny_clip, tiny_dataset
from made_files import RECIPE as SMALL

pytestmark = pytest.mark.usefixtures("undrawn")

PERSONAL, SHARED = "fedotp", "promptfl"
TRAIN: dict[str, Any] = {"rounds": 3, "batch_size": 2, "fraction": 0.6, "lr": 0.01}


@pytest.fixture(scope="module")
def two_cores() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "cores", lambda: 2)
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected():
            yield


def train(out: Path, *, on: Any = None, callbacks: Any = (), **options: Any) -> Path:
    data = tiny_dataset()
    clients = fp.partition(data, "class_chunks", classes_per_client=2, shots=2)
    settings = {"evaluate.samples": 0}
    fp.train(
        PERSONAL,
        tiny_clip(),
        data,
        clients,
        compare=[SHARED],
        out=out,
        on=on,
        callbacks=callbacks,
        progress=False,
        settings=settings,
        **{**TRAIN, **options},
    )
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "render", lambda folder: folder / "report.html")
        return train(tmp_path_factory.mktemp("runs") / "alone")


def tensors(folder: Path) -> dict[str, bytes]:
    """The bytes of adapters and of checkpoints, with the personal states in them, by file."""
    paths = sorted([*folder.glob("adapters/**/*.safetensors"), *folder.glob("checkpoints/*.safetensors")])
    assert paths
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def figures(folder: Path) -> list[tuple[Any, ...]]:
    """Losses and scores of a run."""
    events = list(read_events(folder))
    losses = [(one.trial, one.round, dict(one.losses)) for one in events if isinstance(one, RoundEvent)]
    scores = [
        (one.trial, one.split, one.name, one.client, dict(one.figures)) for one in events if isinstance(one, ScoreEvent)
    ]
    assert losses and scores
    return [*losses, *scores]


@pytest.mark.parametrize("actors", [1, 2, 4])
def test_a_run_has_the_bits_of_one_process_for_any_number_of_actors(
    two_cores: None, alone: Path, tmp_path: Path, actors: int
) -> None:
    spread_out = train(tmp_path / "run", on={"name": "ray", "actors": actors, "cpus": 0.5})
    assert tensors(spread_out) == tensors(alone)
    assert repr(figures(spread_out)) == repr(figures(alone))
    header = next(event for event in read_events(spread_out) if isinstance(event, HeaderEvent))
    assert header.versions["threads"] == "1"


class Killer(fp.Callback):
    """Kills a random actor after random numbers of clients, some times."""

    def __init__(self, pools: list[Pool], times: int) -> None:
        self.pools, self.left = pools, times
        self.draws = numpy_stream(5, "kills")

    def on_client(self, done: int, total: int) -> None:
        members = list(self.pools[-1].members.values())
        if self.left and members and self.draws.random() < 0.7:
            self.left -= 1
            os.kill(members[int(self.draws.integers(len(members)))].process, signal.SIGKILL)


@pytest.mark.slow
def test_actors_killed_ten_times_at_random_moments_change_no_bit(
    two_cores: None, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Pool] = []

    class Recorded(Pool):
        def __init__(self, *parts: Any, **options: Any) -> None:
            super().__init__(*parts, **options)
            made.append(self)

    monkeypatch.setattr(on_ray, "Pool", Recorded)
    killer = Killer(made, 10)
    found = train(tmp_path / "run", on={"name": "ray", "actors": 2, "cpus": 0.5}, callbacks=killer)
    assert killer.left == 0
    assert tensors(found) == tensors(alone) and repr(figures(found)) == repr(figures(alone))


RECIPE = (
    SMALL.replace("rounds = 1", "rounds = 3")
    + """
[runtime]
name = "ray"
actors = 1
cpus = 0.5
"""
)


def test_runs_of_a_study_are_spread_and_one_that_fails_is_named(two_cores: None, tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPE, ["train.rounds=1"])
    wrong = recipe.model_copy(update={"train": recipe.train.model_copy(update={"lr": 1e30, "rounds": 2})})
    todo = [Job(recipe, tmp_path / "a"), Job(wrong, tmp_path / "b")]
    states: list[dict[Path, str]] = []
    failed = spread(todo, lambda found: states.append(dict(found)))
    assert [one.job.folder for one in failed] == [tmp_path / "b"] and "lower the learning rate" in failed[0].reason
    assert states[-1][tmp_path / "a"] == "done" and states[-1][tmp_path / "b"].startswith("failed: ")
    assert todo[0].done and not todo[1].done
    assert progress_of(tmp_path / "a").startswith("promptfl, ")
    runs.start(resolve(parse_recipe(RECIPE, ["train.rounds=1", "runtime.name=simulator"])), tmp_path / "alone")
    adapter = "adapters/promptfl/adapter_model.safetensors"
    assert (tmp_path / "a" / adapter).read_bytes() == (tmp_path / "alone" / adapter).read_bytes()


PROGRAM = """
import sys
from pathlib import Path
from fedprompt.config.recipe import parse_recipe
from fedprompt.experiments import run as runs
from fedprompt.experiments.context import RunCallbacks
from fedprompt.experiments.context import RunCallbacks
from fedprompt.experiments.plan import resolve
from fedprompt.runtimes.ray import cluster, guard

runs.render = lambda folder: folder / "report.html"
cluster.secrets.token_hex = lambda size: "mark-" + sys.argv[3]

class Said(RunCallbacks):
    def on_round(self, number, loss):
        print("round", number, flush=True)

runs.start(resolve(parse_recipe(Path(sys.argv[1]).read_text())), Path(sys.argv[2]), callbacks=Said())
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_is_stopped_leaves_no_process_and_a_run_to_resume(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    mark = f"{os.getpid()}-{number}"
    out = tmp_path / "run"
    # Without the variables of a Ray that other tests of this process use.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment["OMP_NUM_THREADS"] = "1"
    driver = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "recipe.toml"), str(out), mark],
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "errors").open("wb"),
        env=environment,
    )
    assert driver.stdout is not None
    assert driver.stdout.readline() == b"round 1\n", (tmp_path / "errors").read_text()
    assert list(marked(f"mark-{mark}"))
    driver.send_signal(number)
    driver.wait()
    end = time.monotonic() + 60
    while list(marked(f"mark-{mark}")) and time.monotonic() < end:
        time.sleep(0.2)
    assert not list(marked(f"mark-{mark}"))
    runs.resume(out, runtime=runs.changed_runtime(out, {"name": "simulator"}))
    runs.start(resolve(parse_recipe(RECIPE, ["runtime.name=simulator"])), tmp_path / "alone")
    assert tensors(out) == tensors(tmp_path / "alone")


def test_a_runtime_that_is_misspelt_is_refused_with_the_right_one() -> None:
    for command in (
        ["run", "demo", "--on", "rai"],
        ["compare", "demo", "--on", "rai"],
        ["tune", "demo", "--on", "rai"],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2 and "did you mean 'ray'?" in " ".join(result.output.split())


def test_jobs_and_ray_exclude_each_other() -> None:
    result = CliRunner().invoke(app, ["compare", "demo", "--on", "ray", "--jobs", "2"])
    assert result.exit_code == 2 and "--jobs is for processes of this machine" in " ".join(result.output.split())


def test_on_and_a_setting_of_another_runtime_are_refused() -> None:
    for command in ("run", "compare", "tune"):
        result = CliRunner().invoke(app, [command, "demo", "--on", "ray", "--set", "runtime.name=simulator"])
        said = " ".join(result.output.split())
        assert result.exit_code == 2 and "--on ray and --set runtime.name=simulator contradict each other" in said


class Said(RunCallbacks):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def on_message(self, text: str) -> None:
        self.messages.append(text)


def test_keys_of_the_runtime_that_one_process_does_not_use_are_named(tmp_path: Path) -> None:
    said = Said()
    settings = ["runtime.name=simulator", "runtime.actors=2", "runtime.cpus=2"]
    runs.start(resolve(parse_recipe(RECIPE, settings)), tmp_path / "run", callbacks=said)
    (sentence,) = (text for text in said.messages if "runtime." in text)
    assert sentence.startswith("runtime.actors and runtime.cpus had no effect: this run trains in one process")
