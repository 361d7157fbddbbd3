"""Following a run over sites: every event is reported once, and sites that it waits for are named."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")

from fedprompt.deploy.settings import WAITING
from fedprompt.deploy.submit import Waiting, follow, waiting_for
from fedprompt.experiments.context import RunCallbacks
from fedprompt.records.event_fields import PartitionCounts
from fedprompt.records.events import EndEvent, Event, HeaderEvent, ResumeEvent, RoundEvent, SitesEvent, TrialEvent
from fedprompt.records.reading import read_run
from fedprompt.report.tables import scores_text

HEADER = HeaderEvent(schema_version=1)
BEGUN = TrialEvent(trial="fedmvp", status="running", rounds=2)
FAILED = [TrialEvent(trial="fedmvp", status="failed"), EndEvent(status="failed")]
END = EndEvent(status="done")


class Recorder(RunCallbacks):
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


def report_of(folder: Path, events: list[Event], known: list[Event]) -> list[Any]:
    (folder / "run.jsonl").write_text("".join(event.to_json() + "\n" for event in events))
    recorder = Recorder()
    follow(folder, recorder, known=known)
    return recorder.calls


def test_a_new_run_is_reported_from_its_beginning(tmp_path: Path) -> None:
    events = [HEADER, BEGUN, round_event(1, failed={1: "is not connected."}), round_event(2), END]
    assert report_of(tmp_path, events, []) == [("fedmvp", 2, 0), 1, "In round 1, site 1 is not connected.", 2]


def test_a_site_whose_update_is_left_out_is_named(tmp_path: Path) -> None:
    counts = PartitionCounts(clients=("east", "north"), classes=("a",), counts=((1,), (1,)))
    header = HeaderEvent(schema_version=1, partition=counts)
    failed = {0: "did not answer within 5 s.", 1: "rolled back: its change in round 1 was 9 times as long as usual."}
    said = report_of(tmp_path, [header, BEGUN, round_event(2, failed=failed), END], [])
    assert said[-2:] == [
        "In round 2, site east did not answer within 5 s.",
        "In round 2, site north: rolled back: its change in round 1 was 9 times as long as usual.",
    ]


def test_a_site_that_withholds_scores_is_named_once(tmp_path: Path) -> None:
    told = [
        SitesEvent(trial="fedmvp", sites={name: {"scores": scores}})
        for name, scores in (("east", "withheld"), ("north", "rounded"), ("east", "withheld"))
    ]
    said = report_of(tmp_path, [HEADER, BEGUN, *told, round_event(1), END], [])
    assert said == [("fedmvp", 2, 0), "east withholds the scores and losses of its images, as its policy says.", 1]
    text = scores_text(read_run(tmp_path))
    assert text == (
        "By the policy of east, scores and losses of the images there do not leave; by the policy of north, scores of "
        "the images there are rounded"
    )


def test_a_run_that_removed_its_failed_events_is_reported_completely(tmp_path: Path) -> None:
    known = [HEADER, BEGUN, *FAILED]
    assert report_of(tmp_path, [HEADER, BEGUN, round_event(1), round_event(2), END], known) == [("fedmvp", 2, 0), 1, 2]


def test_a_resumed_run_is_reported_from_there(tmp_path: Path) -> None:
    known = [HEADER, BEGUN, round_event(1)]
    events = [*known, ResumeEvent(trial="fedmvp", round=1), BEGUN, round_event(2), END]
    assert report_of(tmp_path, events, known) == [("fedmvp", 2, 1), 2]


def test_sites_that_are_waited_for_are_named_with_the_time(tmp_path: Path) -> None:
    assert waiting_for(tmp_path) is None
    (tmp_path / WAITING).write_text(json.dumps({"sites": ["north", "south"], "since": time.time() - 241}))
    assert str(waiting_for(tmp_path)) == "north, south, 4 min" and str(Waiting(("east",), 5.2)) == "east, 5 s"
    (tmp_path / WAITING).write_text(json.dumps({"sites": [], "since": time.time()}))
    assert waiting_for(tmp_path) is None
