"""A budget of time chooses the number of rounds; training is that of a run with this number, also after a resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprompt.config.recipe import parse_recipe
from fedprompt.deploy.server_run import require_rounds
from fedprompt.errors import UserError
from fedprompt.experiments import budget
from fedprompt.experiments import run as runs
from fedprompt.experiments.budget import Costs, duration, rounds_that_fit
from fedprompt.experiments.context import RunCallbacks
from fedprompt.experiments.plan import resolve
from fedprompt.records.checkpoints import load_tensors
from fedprompt.records.events import BudgetEvent, TrialEvent
from fedprompt.records.run_folder import read_events
from test_experiments_resume import RECIPE

pytestmark = pytest.mark.usefixtures("kept_backbone", "undrawn")

SECONDS = st.floats(0.001, 1e5)


class Said(RunCallbacks):
    """What a run says about its budget, and an error after a round."""

    def __init__(self, *, stop: int = 0) -> None:
        self.lines: list[str] = []
        self.stop = stop

    def on_message(self, text: str) -> None:
        self.lines += [text] * ("a round takes" in text)

    def on_warning(self, text: str) -> None:
        self.on_message(text)

    def on_round(self, number: int, loss: float | None) -> None:
        if number == self.stop:
            raise KeyboardInterrupt


@given(st.lists(SECONDS, min_size=1, max_size=6), SECONDS)
def test_each_gets_what_it_needs_up_to_an_equal_part_and_those_that_need_more_share_the_rest(needed, total):
    parts = budget.water_filled(needed, total)
    assert sum(parts) == pytest.approx(total)
    short = [part for part, need in zip(parts, needed, strict=True) if part < need * (1 - 1e-9)]
    assert all(part == pytest.approx(max(parts)) for part in short), "who lacks time has as much as anybody"
    if sum(needed) < total:
        assert not short


@given(SECONDS, SECONDS, SECONDS, SECONDS, st.integers(1, 200), st.integers(0, 9))
def test_all_rounds_fit_into_the_seconds_that_they_need(first, later, final, held_out, most, every):
    costs = Costs(first, later, final / 2, final, held_out)
    needed = budget.seconds_needed(costs, most, every=every)
    assert rounds_that_fit(costs, needed, most=most, every=every) == most


@given(SECONDS, SECONDS, SECONDS, SECONDS, SECONDS, st.integers(1, 200), st.integers(0, 9))
def test_the_rounds_that_fit_take_the_time_and_one_more_would_not(first, later, scoring, final, seconds, most, every):
    def needed(rounds: int) -> float:
        return first + (rounds - 1) * (later + (scoring / every if every else 0)) + final

    rounds = rounds_that_fit(Costs(first, later, scoring, final), seconds, most=most, every=every)
    assert 1 <= rounds <= most
    assert rounds == 1 or needed(rounds) <= seconds * (1 + 1e-9)
    assert rounds == most or needed(rounds + 1) > seconds * (1 - 1e-9)


def recipe(*, rounds: int, minutes: float) -> str:
    return f"minutes = {minutes}\n" + RECIPE.replace("rounds = 1", f"rounds = {rounds}")


def run(folder: Path, text: str, said: RunCallbacks) -> Path:
    runs.start(resolve(parse_recipe(text)), folder, callbacks=said)
    return folder


def events_of(folder: Path, kind: type) -> list:
    return [event for event in read_events(folder) if isinstance(event, kind)]


@pytest.fixture(scope="module")
def stated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("stated") / "run", recipe(rounds=2, minutes=0), Said())


def test_training_is_that_of_a_run_with_the_chosen_number(stated: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(budget, "measure", lambda *_, seconds: Costs(seconds / 2, seconds / 5, 1.0, seconds / 5))
    said = Said()
    run(tmp_path / "run", recipe(rounds=9, minutes=1), said)
    (found,) = events_of(tmp_path / "run", BudgetEvent)
    assert (found.name, found.rounds, found.wanted) == ("promptfl", 2, 9)
    assert found.seconds == pytest.approx(60.0, abs=1.0) and found.needed > found.seconds
    line = "PromptFL: a round takes about 12 s, the first one 30 s; 2 of 9 rounds fit into its part of the time, 60 s."
    assert said.lines == [line]
    started = events_of(tmp_path / "run", TrialEvent)[0]
    assert started.rounds == started.settings["rounds"] == 2
    ours, theirs = (folder / "checkpoints" / "promptfl@00000002.safetensors" for folder in (tmp_path / "run", stated))
    assert {key: one.tolist() for key, one in load_tensors(ours)[0].items()} == {
        key: one.tolist() for key, one in load_tensors(theirs)[0].items()
    }


def test_time_that_a_method_leaves_is_given_to_those_after_it_before_their_first_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "measure", lambda *_, seconds: Costs(10.0, 10.0, 0.0, 0.0))
    said, text = Said(), recipe(rounds=5, minutes=1) + '[[compare]]\nname = "fedotp"\n'
    run(tmp_path / "run", text, said)
    found = [(event.name, event.rounds) for event in events_of(tmp_path / "run", BudgetEvent)]
    assert [name for name, _ in found] == ["promptfl", "fedotp", "fedotp"]
    assert found[:2] in ([("promptfl", 2), ("fedotp", 2)], [("promptfl", 3), ("fedotp", 3)]), "half of the minute each"
    assert found[2] == ("fedotp", 5), "PromptFL has taken seconds"
    begun = {event.trial: event.rounds for event in events_of(tmp_path / "run", TrialEvent) if event.rounds}
    assert begun == {"promptfl": found[0][1], "fedotp": 5}
    order = [getattr(event, "name", "") or getattr(event, "trial", "") for event in read_events(tmp_path / "run")]
    assert len(said.lines) == 3 and order.index("fedotp") < order.index("promptfl", order.index("promptfl") + 1)


def test_a_resumed_run_keeps_its_number_of_rounds(stated: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(budget, "measure", lambda *_, seconds: Costs(seconds / 2, seconds / 5, 1.0, seconds / 5))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", recipe(rounds=9, minutes=1), Said(stop=1))
    monkeypatch.setattr(budget, "measure", None)  # is not called again
    runs.resume(tmp_path / "run")
    assert len(events_of(tmp_path / "run", BudgetEvent)) == 1
    ours, theirs = (folder / "checkpoints" / "promptfl@00000002.safetensors" for folder in (tmp_path / "run", stated))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_measurement_counts_steps_and_leaves_no_trace(stated: Path, tmp_path: Path, monkeypatch) -> None:
    def half_a_second(work: Callable[[], object]) -> float:
        work()
        return 0.5

    monkeypatch.setattr(budget, "_timed", half_a_second)
    text = recipe(rounds=2, minutes=1000) + '[[compare]]\nname = "zeroshot"\n'
    run(tmp_path / "run", text, Said())
    (found,) = events_of(tmp_path / "run", BudgetEvent)
    assert found.seconds == pytest.approx(60_000.0, rel=0.01)  # of the one method that trains
    assert (found.first_round, found.round) == (1.5, 1.5)  # three clients with a step each
    ours, theirs = (folder / "checkpoints" / "promptfl@00000002.safetensors" for folder in (tmp_path / "run", stated))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_round_that_does_not_fit_is_said_with_what_to_do(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(budget, "measure", lambda *_, seconds: Costs(9000.0, 30.0, 1.0, 1.0))
    said = Said()
    run(tmp_path / "run", recipe(rounds=9, minutes=1), said)
    (line,) = said.lines
    assert "the first one 150 min" in line and "it trains one round. Give more --minutes" in line
    assert events_of(tmp_path / "run", BudgetEvent)[0].rounds == 1


def test_no_budget_measures_nothing(stated: Path) -> None:
    assert not events_of(stated, BudgetEvent)


def test_sites_are_not_measured() -> None:
    with pytest.raises(UserError, match="minutes = 10 is measured on one machine"):
        require_rounds(parse_recipe(recipe(rounds=2, minutes=10)))
    require_rounds(parse_recipe(recipe(rounds=2, minutes=0)))


def test_time_that_one_method_does_not_need_goes_to_the_others_before_any_trains(tmp_path: Path, monkeypatch) -> None:
    costs = {"promptfl": Costs(0.0, 1.0, 0.0, 0.0), "fedclip": Costs(0.0, 10.0, 0.0, 0.0)}
    monkeypatch.setattr(budget, "measure", lambda _, __, trial, seconds: costs[trial.name])
    trained = []
    monkeypatch.setattr(runs, "run_trial", lambda context, trial: trained.append((trial.name, context)))
    text = recipe(rounds=9, minutes=1) + '[[compare]]\nname = "fedclip"\n'
    run(tmp_path / "run", text, Said())
    found = {event.name: event for event in events_of(tmp_path / "run", BudgetEvent)}
    assert (found["promptfl"].rounds, found["fedclip"].rounds) == (9, 6)  # 8 of 30 s are enough; 52 s for the other
    assert [name for name, _ in trained] == ["promptfl", "fedclip"]


@pytest.mark.parametrize(("seconds", "text"), [(3.14, "3.1 s"), (99.4, "99 s"), (99.6, "1.66 min"), (120, "2 min")])
def test_durations_are_written_without_exponents(seconds: float, text: str) -> None:
    assert duration(seconds) == text
