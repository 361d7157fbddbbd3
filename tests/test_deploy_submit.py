"""Looking on at a run over sites: what its records say is told once, and who keeps it waiting is named."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")

from fedprompt.deploy.settings import WAITING
from fedprompt.deploy.submit import Waiting, follow, waited_for
from fedprompt.experiments.context import RunCallbacks
from fedprompt.records.events import EndEvent, Event, HeaderEvent, ResumeEvent, RoundEvent, TrialEvent

HEADER = HeaderEvent(schema_version=1)
BEGUN = TrialEvent(trial="fedmvp", status="running", rounds=2)
FAILED = [TrialEvent(trial="fedmvp", status="failed"), EndEvent(status="failed")]
END = EndEvent(status="done")


class Heard(RunCallbacks):
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def on_trial(self, name: str, rounds: int, done: int) -> None:
        self.calls.append((name, rounds, done))

    def on_round(self, number: int, loss: float | None) -> None:
        self.calls.append(number)

    def on_warning(self, text: str) -> None:
        self.calls.append(text)


def round_event(number: int, **more: object) -> Event:
    return RoundEvent(trial="fedmvp", round=number, loss=0.5, **more)


def heard(folder: Path, events: list[Event], told: list[Event]) -> list[Any]:
    (folder / "run.jsonl").write_text("".join(event.to_json() + "\n" for event in events))
    watch = Heard()
    follow(folder, watch, told=told)
    return watch.calls


def test_a_run_is_told_from_its_beginning(tmp_path: Path) -> None:
    events = [HEADER, BEGUN, round_event(1, failed={1: "is not connected."}), round_event(2), END]
    assert heard(tmp_path, events, []) == [("fedmvp", 2, 0), 1, "In round 1, site 1 is not connected.", 2]


def test_a_run_that_took_back_its_failed_beginning_is_told_whole(tmp_path: Path) -> None:
    told = [HEADER, BEGUN, *FAILED]
    assert heard(tmp_path, [HEADER, BEGUN, round_event(1), round_event(2), END], told) == [("fedmvp", 2, 0), 1, 2]


def test_a_run_that_goes_on_is_told_from_there(tmp_path: Path) -> None:
    told = [HEADER, BEGUN, round_event(1)]
    events = [*told, ResumeEvent(trial="fedmvp", round=1), BEGUN, round_event(2), END]
    assert heard(tmp_path, events, told) == [("fedmvp", 2, 1), 2]


def test_who_is_waited_for_is_named_with_the_time(tmp_path: Path) -> None:
    assert waited_for(tmp_path) is None
    (tmp_path / WAITING).write_text(json.dumps({"sites": ["north", "south"], "since": time.time() - 241}))
    assert str(waited_for(tmp_path)) == "north, south, 4 min" and str(Waiting(("east",), 5.2)) == "east, 5 s"
    (tmp_path / WAITING).write_text(json.dumps({"sites": [], "since": time.time()}))
    assert waited_for(tmp_path) is None
