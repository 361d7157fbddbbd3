"""Diagnostics of a run: recorded once per trial that has any, at no change of a result."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedprompt.config.recipe import parse_recipe
from fedprompt.experiments import diagnostics
from fedprompt.experiments import run as runs
from fedprompt.experiments.experiment import assemble
from fedprompt.experiments.plan import resolve
from fedprompt.experiments.test_sets import make_test_sets
from fedprompt.methods.base import Method
from fedprompt.methods.fedmvp import FedMVP
from fedprompt.records.adapter import WEIGHTS
from fedprompt.records.events import DiagnosticsEvent
from fedprompt.records.run_folder import read_events
from fedprompt.report import read_run

RECIPE = """
name = "tiny"
compare = [{ name = "zeroshot" }, { name = "fedmvp", lora = false, consistency = 0.0 }]
[data]
source = "scenes"
train = 1
test = 3
[partition]
rule = "iid"
clients = 1
[method]
name = "fedmpt"
n_conditions = 2
[train]
rounds = 1
batch_size = 64
[evaluate]
samples = 0
local = false
"""


def start(folder: Path) -> Path:
    runs.start(resolve(parse_recipe(RECIPE)), folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return start(tmp_path_factory.mktemp("diagnostics") / "run")


def test_each_trial_that_has_diagnostics_records_them_once(folder: Path) -> None:
    main, other = (event for event in read_events(folder) if isinstance(event, DiagnosticsEvent))
    assert main.split == other.split == "natural" and main.images == other.images == 18
    names = [one.name for one in main.diagnostics]
    assert names == ["gate entropy", "plan entropy", "evidence under spatial layout", "evidence under object scale"]
    assert other.diagnostics[0].name == "attention entropy" and len(other.diagnostics) == 4
    found = {trial.name: trial.diagnostics for trial in read_run(folder).trials}
    assert found == {"zeroshot": None, "fedmpt": main, "fedmvp": other}
    assert 'id="diagnostics"' in (folder / "report.html").read_text(encoding="utf-8")


def test_they_change_no_bit_of_a_result(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Method, FedMVP):
        monkeypatch.setattr(kind, "diagnostics", lambda *given: ())
    without = start(tmp_path / "run")
    assert not any(isinstance(event, DiagnosticsEvent) for event in read_events(without))
    for trial in ("fedmpt", "fedmvp"):
        ours, theirs = (run / "adapters" / trial / WEIGHTS for run in (folder, without))
        assert ours.read_bytes() == theirs.read_bytes()
    for one, other in zip(read_run(folder).trials, read_run(without).trials, strict=True):
        assert one.figures == other.figures


def test_of_many_classes_fewer_images_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "CELLS", 240)
    experiment = assemble(resolve(parse_recipe(RECIPE)))
    clip, test_sets = experiment.clip, make_test_sets(experiment.dataset)
    method = experiment.trials[0].make_method(clip)
    found = diagnostics.diagnostics_event(method, clip, test_sets, trial="fedmpt", seed=1)
    assert found is not None and found.images == 10
    assert diagnostics.diagnostics_event(method, clip, (), trial="fedmpt", seed=1) is None
