"""Trackers receive losses, scores, the recipe and the report, and no failure of theirs stops a run."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import Result
from typer.testing import CliRunner

import fedprompt as fp
from fedprompt.cli.main import app
from fedprompt.config.recipe import find_recipe, load_recipe
from fedprompt.experiments.trackers import KEYWORDS, Tracking
from fedprompt.records.events import ScoreEvent
from fedprompt.testing import tiny_clip, tiny_dataset

tracking = pytest.importorskip("accelerate.tracking", reason="trackers need the extra `track`")


class Recorded(tracking.GeneralTracker):  # type: ignore[misc, name-defined]
    """A tracker that keeps what it is told, or fails in a call."""

    name = "aim"
    requires_logging_directory = False
    main_process_only = False
    calls: list[tuple[str, object]] = []  # noqa: RUF012  (cleared by the fixture)
    fails = ""

    def __init__(self, run_name: str) -> None:
        super().__init__()
        self._note("init", run_name)

    @property
    def tracker(self) -> object:
        return self

    def _note(self, call: str, value: object) -> None:
        if call == self.fails:
            raise OSError("the server is gone\nand so is this line")
        self.calls.append((call, value))

    def store_init_configuration(self, values: dict[str, object]) -> None:
        self._note("recipe", values)

    def log(self, values: dict[str, object], step: int | None = None, **_: object) -> None:
        self._note("log", (step, values))

    def finish(self) -> None:
        self._note("finish", None)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "aim", Recorded)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [SimpleNamespace(value="aim")])
    monkeypatch.setattr(Recorded, "calls", [])
    monkeypatch.setattr(Recorded, "fails", "")
    return Recorded


def train(out: Path, *track: str, compare: Sequence[str] = (), **settings: object) -> fp.Run:
    data = tiny_dataset()
    clients = fp.partition(data, "iid", clients=2, seed=1)
    method = {"name": "promptfl", "n_ctx": 2, "init": ""}
    return fp.train(
        method,
        tiny_clip(),
        data,
        clients,
        rounds=2,
        track=track,
        out=out,
        compare=compare,
        settings=settings,
        progress=False,
    )


def test_a_tracker_gets_losses_scores_the_recipe_and_the_report(recorded: type[Recorded], tmp_path: Path) -> None:
    run = train(tmp_path / "run", "aim", **{"evaluate.every": 1})
    kinds = [call for call, _ in recorded.calls]
    assert kinds[:2] == ["init", "recipe"] and kinds[-1] == "finish" and recorded.calls[0][1] == "PromptFL"
    recipe = dict(recorded.calls[1][1])  # type: ignore[call-overload]
    assert recipe["train.rounds"] == 2 and recipe["method.name"] == "promptfl"
    logged: dict[str, dict[int, object]] = {}
    for call, value in recorded.calls:
        if call == "log":
            step, values = value  # type: ignore[misc]
            for key, one in values.items():
                logged.setdefault(key, {})[step] = one
    assert logged["loss"] == dict(zip(run.rounds["round"], run.rounds["loss"], strict=True))
    base = run.scores.query("test_set == 'base' and metric == 'accuracy'").groupby("round")["value"].mean().to_dict()
    assert logged["base/accuracy"] == pytest.approx(base)
    assert logged["report"] == {None: str(run.folder / "report.html")}


def test_the_report_goes_to_the_main_trial_which_is_trained_first(recorded: type[Recorded], tmp_path: Path) -> None:
    run = train(tmp_path / "run", "aim", compare=["zeroshot"])
    calls = [call if call != "init" else value for call, value in recorded.calls]
    reports = [place for place, (call, value) in enumerate(recorded.calls) if call == "log" and "report" in value[1]]  # type: ignore[index]
    begins = [calls.index(name) for name in ("PromptFL", "Zero-shot CLIP")]
    assert run.finished and len(reports) == 1 and begins[0] < reports[0] < begins[1]


def test_each_trial_has_its_own_hyper_parameters(recorded: type[Recorded], tmp_path: Path) -> None:
    other = {"name": "fedclip", "train": {"lr": 0.5}}
    train(tmp_path / "run", "aim", compare=[other], **{"train.lr": 0.25})  # type: ignore[list-item]
    ours, others = (dict(value) for call, value in recorded.calls if call == "recipe")  # type: ignore[call-overload]
    assert (ours["method.name"], ours["train.lr"], ours["method.n_ctx"]) == ("promptfl", 0.25, 2)
    assert (others["method.name"], others["train.lr"]) == ("fedclip", 0.5) and "method.n_ctx" not in others


@pytest.mark.parametrize("call", ["init", "recipe", "log", "finish"])
def test_a_tracker_that_fails_is_left_out_with_one_warning(
    call: str, recorded: type[Recorded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "fails", call)
    said: list[str] = []
    tracker = Tracking(load_recipe(find_recipe("demo"), ['track=["aim"]']), tmp_path, said.append, main="One")
    tracker.on_trial("One", 2, 0)
    tracker.on_round(1, 0.5)
    tracker.on_round(2, 0.4)
    tracker.finish()
    assert said == ["The tracker 'aim' failed and is left out (OSError: the server is gone)."]


def test_a_failing_tracker_changes_no_bit_of_a_run(
    recorded: type[Recorded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "fails", "log")
    runs = [train(tmp_path / "with", "aim"), train(tmp_path / "without")]
    assert all(run.finished for run in runs)
    states = [run.adapter().folder.joinpath("adapter_model.safetensors").read_bytes() for run in runs]
    assert states[0] == states[1]


def test_scores_of_clients_are_sent_as_their_mean_and_steps_never_fall(
    recorded: type[Recorded], tmp_path: Path
) -> None:
    tracker = Tracking(load_recipe(find_recipe("demo"), ['track=["aim"]']), tmp_path, print, main="One")
    tracker.on_trial("One", 2, 0)
    tracker.on_round(2, None)
    for client, value in enumerate((0.5, 1.0, None)):
        figures = {"accuracy": value}
        tracker.on_score(ScoreEvent(trial="one", round=1, split="local", client=client, figures=figures))
    tracker.finish()
    assert ("log", (2, {"local/accuracy": 0.75})) in recorded.calls


def cli(*words: str) -> Result:
    return CliRunner().invoke(app, words, catch_exceptions=True)


def test_an_unknown_tracker_is_refused_before_the_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(fp.UserError, match="did you mean 'tensorboard'"):
        train(out, "tensorbord")
    result = cli("run", "demo", "--track", "tensorbord", "--out", str(out))
    assert isinstance(result.exception, (fp.UserError, SystemExit)) and not out.exists()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    with pytest.raises(fp.UserError, match="pip install wandb"):
        train(tmp_path / "run", "wandb")


def test_keywords_are_those_of_trackers_that_exist() -> None:
    assert set(KEYWORDS) <= set(tracking.LOGGER_TYPE_TO_CLASS)


# Real trackers


def test_tensorboard_shows_the_curves(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(tmp_path / "run", "tensorboard", compare=["zeroshot"], **{"evaluate.every": 1})
    found = events.EventAccumulator(str(run.folder / "trackers" / "tensorboard" / "PromptFL")).Reload()
    assert [one.step for one in found.Scalars("loss")] == [1, 2]
    assert [one.step for one in found.Scalars("base/accuracy")] == [0, 1, 2]
    files = (run.folder / "trackers" / "tensorboard").rglob("*tfevents*")
    assert {path.parent.name for path in files} == {"PromptFL", "Zero-shot CLIP"}


def test_mlflow_keeps_curves_recipe_and_report_in_the_run(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    before = dict(os.environ)
    run = train(tmp_path / "run", "mlflow", compare=["zeroshot"])
    store = run.folder / "trackers" / "mlflow"
    with sqlite3.connect(store / "mlflow.db") as database:
        losses = [value for (value,) in database.execute("select value from metrics where key = 'loss' order by step")]
        rounds = database.execute("select value from params where key = 'train.rounds'").fetchone()
        (main,) = database.execute("select run_uuid from runs where name = 'PromptFL'").fetchone()
    assert losses == pytest.approx(list(run.rounds["loss"])) and rounds == ("2",)
    assert [path.parents[1].name for path in store.rglob("report.html")] == [main]
    assert dict(os.environ) == before


def test_wandb_writes_offline_into_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = train(tmp_path / "run", "wandb", compare=["zeroshot"])
    store = run.folder / "trackers" / "wandb"
    assert run.finished and len(list(store.rglob("*.wandb"))) == 2
    assert len(list(store.rglob("report.html"))) == 1
