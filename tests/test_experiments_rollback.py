"""A poisoned round in a whole run: the record, the warning, and a run that is stopped in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedprompt.config.recipe import parse_recipe
from fedprompt.experiments import run as runs
from fedprompt.experiments.context import RunCallbacks
from fedprompt.experiments.plan import resolve
from fedprompt.records.events import RoundEvent, ScoreEvent
from fedprompt.records.run_folder import read_events

pytestmark = pytest.mark.usefixtures("kept_backbone", "undrawn")

RECIPE = """
name = "poisoned"
seed = 3
[data]
source = "pictograms"
train = 1
test = 1
[partition]
rule = "class_chunks"
classes_per_client = 20
shots = 1
[method]
name = "{method}"
[train]
rounds = 4
batch_size = 20
lr = 0.002
[train.server.attack]
name = "scaled"
factor = {factor}
adversaries = 1
[evaluate]
samples = 0
every = 1
local = false
"""


class Said(RunCallbacks):
    def __init__(self, *, stop_after: int = 0) -> None:
        self.warnings: list[str] = []
        self.stop_after = stop_after

    def on_warning(self, text: str) -> None:
        self.warnings.append(text)

    def on_round(self, number: int, loss: float | None) -> None:
        if number == self.stop_after:
            raise KeyboardInterrupt


def rounds_of(folder: Path) -> list[RoundEvent]:
    return [event for event in read_events(folder) if isinstance(event, RoundEvent)]


def test_the_round_is_rolled_back_and_the_client_named(tmp_path: Path) -> None:
    said = Said()
    runs.start(resolve(parse_recipe(RECIPE.format(method="promptfl", factor=1e30))), tmp_path / "run", callbacks=said)
    first, second, *rest = rounds_of(tmp_path / "run")
    assert first.rolled_back is None and not first.failed
    assert second.rolled_back == 1 and list(second.failed) == [1] and "rolled back: " in second.failed[1]
    assert len(rest) == 2 and all(event.losses for event in rest[:1])
    (warning,) = (text for text in said.warnings if "was rolled back" in text)
    assert warning.startswith("Round 2: round 1 was rolled back") and "without the update of client" in warning
    assert any(text.startswith("No score after round 1: ") for text in said.warnings)
    last = [event for event in read_events(tmp_path / "run") if isinstance(event, ScoreEvent)][-1]
    assert last.round == 4 and last.figures["accuracy"] is not None


def test_a_run_that_stopped_on_a_poisoned_checkpoint_goes_back_to_the_one_before(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        runs.start(
            resolve(parse_recipe(RECIPE.format(method="fedclip", factor=1e25))),
            tmp_path / "run",
            callbacks=Said(stop_after=1),
        )
    said = Said()
    runs.resume(tmp_path / "run", callbacks=said)
    second = next(event for event in rounds_of(tmp_path / "run") if event.round == 2)
    assert second.rolled_back == 1 and not second.failed
    assert any("as it was before, because no single update is to blame" in text for text in said.warnings)
