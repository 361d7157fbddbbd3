"""`flwr run`: the app of the repository, which simulates, and that of a deployment, which runs over sites."""

from __future__ import annotations

import io
import logging
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("flwr")

from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate

from fedprompt.deploy import apps
from fedprompt.deploy.flower_run import FlowerLog, recipe_text
from fedprompt.deploy.init import init_deployment
from fedprompt.deploy.settings import HOME, Deployment
from fedprompt.errors import UserError
from fedprompt.records.events import EndEvent, RoundEvent
from fedprompt.records.run_folder import read_events
from fedprompt.runtimes.flower.apps import LOG
from fedprompt.runtimes.flower.grid import GridChannel
from fedprompt.testing import tiny_images
from grids import MemoryGrid
from pages import ROOT

SIMULATED = SimpleNamespace(simulated=True)
RECIPE = """
name = "small"
[data]
source = "image_folder"
path = "images"
[partition]
rule = "class_chunks"
classes_per_client = 1
[method]
name = "promptfl"
[train]
rounds = 9
batch_size = 16
[evaluate]
samples = 0
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a SuperLink, with images."""
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        folder = tmp_path / "images" / ("train", "test")[number % 2] / ("cat", "dog")[number // 2 % 2]
        folder.mkdir(parents=True, exist_ok=True)
        tiny_images(12).open(number).save(folder / f"{number}.png")
    return tmp_path


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """The app of a new deployment."""
    init_deployment(tmp_path / "hospitals", Deployment(name="hospitals", address="localhost", sites=("east",)))
    return tmp_path / "hospitals" / "app"


def config(folder: Path) -> dict[str, object]:
    return dict(tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"])


def test_flower_accepts_both_apps_and_bundles_no_code(app: Path) -> None:
    for folder in (ROOT, app):
        _, warnings = load_and_validate(folder / "pyproject.toml")
        assert not warnings
        with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(folder))) as bundle:
            assert set(bundle.namelist()) <= {"pyproject.toml", "README.md", "LICENSE", ".info/CONTENT"}


def test_both_apps_have_the_same_settings_which_are_those_that_a_run_reads(app: Path) -> None:
    assert config(ROOT).keys() == config(app).keys() == {"recipe", "set", "out", "accept-changes"}
    assert config(ROOT)["recipe"] == "demo" and config(app)["recipe"] == ""


def test_without_a_recipe_the_fix_is_named() -> None:
    with pytest.raises(UserError, match="--run-config 'recipe="):
        recipe_text({"recipe": "", "set": "", "out": ""})


def test_a_recipe_is_a_name_a_file_or_text_and_keys_of_it_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(RECIPE, encoding="utf-8")
    assert recipe_text({"recipe": str(tmp_path / "own.toml")}) == recipe_text({"recipe": RECIPE}) == RECIPE
    changed = tomllib.loads(recipe_text({"recipe": RECIPE, "set": "train.rounds=3 name='a.b'"}))
    assert (
        changed["train"]["rounds"] == 3 and changed["name"] == "a.b" and changed["partition"]["classes_per_client"] == 1
    )
    assert tomllib.loads(recipe_text({"recipe": "demo"}))["name"]
    with pytest.raises(UserError, match="rounds"):
        recipe_text({"recipe": RECIPE, "set": "train.round=3"})


def test_in_flowers_simulation_the_recipe_is_simulated_and_its_progress_is_logged(
    place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(LOG), "propagate", True)
    with caplog.at_level(logging.INFO, logger=LOG):
        apps.run(SIMULATED, {"recipe": RECIPE, "set": "train.rounds=1", "out": ""})
    events = list(read_events(place / "runs" / "small"))
    assert isinstance(events[-1], EndEvent) and sum(isinstance(event, RoundEvent) for event in events) == 1
    lines = [record.getMessage() for record in caplog.records]
    assert any("without Flower's SuperNodes" in line for line in lines)
    assert any("round 1/1, loss" in line for line in lines)
    assert lines[-1].endswith(str(place / "runs" / "small" / "report.html"))


def test_a_simulated_run_is_resumed_in_its_folder(place: Path) -> None:
    settings = {"recipe": RECIPE, "set": "train.rounds=1", "out": str(place / "out")}
    apps.run(SIMULATED, settings)
    before = (place / "out" / "run.jsonl").read_bytes()
    apps.run(SIMULATED, settings)
    assert (place / "out" / "run.jsonl").read_bytes() == before


def test_flowers_simulation_is_known_by_its_grid() -> None:
    from flwr.superlink.grid import InMemoryGrid  # takes a second

    assert GridChannel(InMemoryGrid.__new__(InMemoryGrid)).simulated
    assert not GridChannel(MemoryGrid.__new__(MemoryGrid)).simulated


def test_a_superlink_without_a_deployment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HOME, raising=False)
    with pytest.raises(UserError, match="serves no deployment; start one with: fedprompt server up"):
        apps.run(SimpleNamespace(simulated=False), {"recipe": "demo", "set": "", "out": ""})


def test_a_round_without_an_update_is_logged_as_such(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(LOG), "propagate", True)
    log = FlowerLog()
    with caplog.at_level(logging.INFO, logger=LOG):
        log.on_trial("fedmvp", 3, 0)
        log.on_round(2, None)
        log.on_warning("north is slow")
    assert [record.getMessage() for record in caplog.records] == ["fedmvp: round 2/3, no update", "north is slow"]
