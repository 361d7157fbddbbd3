"""A poisoned round in a whole run: the record, the warning, and a run that is stopped in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedprompt.config.recipe import parse_recipe
from fedprompt.experiments import run as runs
from fedprompt.experiments.context import RunCallbacks
from fedprompt.experiments.plan import resolve
from fedprompt.records.checkpoints import load_tensors
from fedprompt.records.events import RoundEvent, ScoreEvent, ValidationEvent
from fedprompt.records.run_folder import read_events

pytestmark = pytest.mark.usefixtures("kept_backbone", "undrawn")

RECIPE = """
name = "poisoned"
seed = 3
[data]
source = "emoji"
train = 1
test = 1
[partition]
rule = "class_chunks"
classes_per_client = 30
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
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def on_warning(self, text: str) -> None:
        self.warnings.append(text)


class Stops(RunCallbacks):
    """Stop the run `clients` trained clients after the end of a round."""

    def __init__(self, after: int, clients: int) -> None:
        self.after, self.clients, self.reached = after, clients, False

    def on_round(self, number: int, loss: float | None) -> None:
        self.reached = number >= self.after
        self.on_client(0, 0)

    def on_client(self, done: int, total: int) -> None:
        if self.reached and done == self.clients:
            raise KeyboardInterrupt


def rounds_of(folder: Path) -> list[RoundEvent]:
    return [event for event in read_events(folder) if isinstance(event, RoundEvent)]


def test_the_round_is_rolled_back_and_the_client_named(tmp_path: Path) -> None:
    said = Said()
    runs.start(resolve(parse_recipe(RECIPE.format(method="promptfl", factor=1e30))), tmp_path / "run", callbacks=said)
    first, second, *rest = rounds_of(tmp_path / "run")
    assert first.rolled_back is None and not first.failed
    assert second.rolled_back == 1 and second.failed.pop(1).startswith("rolled back: ")
    assert second.failed and all(why.startswith("diverged: ") for why in second.failed.values())
    assert len(rest) == 2 and all(event.losses for event in rest[:1])
    (warning,) = (text for text in said.warnings if "was rolled back" in text)
    assert warning.startswith("Round 2: round 1 was rolled back") and "without the update of client" in warning
    assert any(text.startswith("No score after round 1: ") for text in said.warnings)
    last = [event for event in read_events(tmp_path / "run") if isinstance(event, ScoreEvent)][-1]
    assert last.round == 4 and last.figures["accuracy"] is not None


def test_held_out_images_are_scored_after_a_poisoned_round_though_test_images_cannot_be(tmp_path: Path) -> None:
    """As sites score them, which cannot say that logits are not finite."""
    recipe = RECIPE.format(method="promptfl", factor=1e30).replace("shots = 1", "shots = 2")
    recipe = recipe.replace("rounds = 4", 'rounds = 2\nkeep = "best:base"')
    runs.start(resolve(parse_recipe(recipe)), tmp_path / "run")
    assert [event.rolled_back for event in rounds_of(tmp_path / "run")] == [None, 1]
    scored = [event for event in read_events(tmp_path / "run") if isinstance(event, ValidationEvent)]
    assert [event.round for event in scored] == [0, 1, 2] and scored[1].value == 0.0


def outcome(folder: Path, method: str) -> tuple[object, ...]:
    """All that a run decides: its rounds, the scores after them, and the last checkpoint's tensors."""
    rounds = [event.model_copy(update={"seconds": 0.0}) for event in rounds_of(folder)]
    scores = [event for event in read_events(folder) if isinstance(event, ScoreEvent)]
    (last,) = (folder / "checkpoints").glob(f"{method}@{len(rounds):08d}.safetensors")
    return rounds, scores, {name: tensor.tolist() for name, tensor in load_tensors(last)[0].items()}


@pytest.mark.parametrize(("method", "factor"), [("promptfl", 1e30), ("fedpgp", 1e30)])
def test_a_run_that_stops_after_any_round_or_within_the_next_ends_as_one_that_never_stopped(
    method: str, factor: float, tmp_path: Path
) -> None:
    plan = resolve(parse_recipe(RECIPE.format(method=method, factor=factor)))
    runs.start(plan, tmp_path / "whole")
    whole = outcome(tmp_path / "whole", method)
    assert [event.rolled_back for event in rounds_of(tmp_path / "whole")] == [None, 1, None, None]
    for after, clients in ((1, 0), (1, 1), (2, 0), (3, 1)):
        folder = tmp_path / f"{after} {clients}"
        with pytest.raises(KeyboardInterrupt):
            runs.start(plan, folder, callbacks=Stops(after, clients))
        runs.resume(folder)
        assert outcome(folder, method) == whole, (after, clients)
