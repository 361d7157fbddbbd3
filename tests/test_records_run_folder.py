from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.errors import UserError
from fedprompt.records import atomic_files
from fedprompt.records.atomic_files import write_atomic
from fedprompt.records.checkpoints import Checkpoint, load_tensors, save_tensors
from fedprompt.records.events import EndEvent, HeaderEvent, ResumeEvent, RoundEvent, ScoreEvent, TrialEvent
from fedprompt.records.run_folder import RunFolder, read_events


def checkpoint(number: int) -> Checkpoint:
    shared = {"deep.x": torch.full((2, 3), float(number)), "half": torch.ones(3, dtype=torch.bfloat16)}
    return Checkpoint(number, shared, {7: {"own": torch.arange(number), "phase": torch.tensor(1)}})


def assert_same(one: Checkpoint | None, other: Checkpoint) -> None:
    assert one is not None and one.round_number == other.round_number
    for mine, theirs in ((one.shared, other.shared), *((one.personal[c], other.personal[c]) for c in other.personal)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype for name in mine)


def resume(number: int) -> ResumeEvent:
    return ResumeEvent(trial="a", round=number)


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_atomic_write_replaces_a_whole_file_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file.txt"
    write_atomic(path, "è\n")
    assert path.read_bytes() == "è\n".encode()
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match=r"Cannot write to .*new: the disk is full; free some space and resume"):
        write_atomic(path, b"second")
    assert path.read_bytes() == "è\n".encode()
    assert os.listdir(path.parent) == ["file.txt"]


def test_any_other_failure_names_the_folder_too(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(UserError, match=r"Cannot write to .*directory"):
        write_atomic(tmp_path / "file", "x")


def test_tensors_survive_with_their_metadata(tmp_path: Path) -> None:
    tensors = {"x": torch.randn(3, 4).T, "none": torch.empty(0, 2), "one": torch.tensor(True)}
    save_tensors(tmp_path / "t.safetensors", tensors, {"method": "coop"})
    loaded, metadata = load_tensors(tmp_path / "t.safetensors")
    assert metadata == {"method": "coop"}
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_any_damage_to_a_tensor_file_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"x": torch.arange(5)})
    whole = path.read_bytes()
    damaged = [whole[:cut] for cut in range(0, len(whole), 7)] + [whole[:-1] + bytes([whole[-1] ^ 1]), whole + b"\0"]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(UserError, match="restore"):
            load_tensors(path)
    with pytest.raises(UserError, match="missing"):
        load_tensors(tmp_path / "missing")


@settings(max_examples=30)
@given(st.dictionaries(st.text(), st.recursive(st.none() | st.text(st.characters()) | st.integers(), st.lists)))
def test_events_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, recipe: dict) -> None:
    with RunFolder.create(tmp_path_factory.mktemp("run") / "here") as folder:
        folder.append(HeaderEvent(recipe=recipe))
        folder.append(EndEvent())
        assert list(folder.events()) == [HeaderEvent(recipe=recipe), EndEvent()]


def test_what_json_lacks_becomes_null(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    with RunFolder.create(tmp_path) as folder:
        folder.append(
            ScoreEvent(trial="a", round=1, split="base", per_class=(0.5, nan), figures={"accuracy": inf, "f1": 1e305})
        )
        folder.append(TrialEvent(trial="a", options={"deep": [{"rate": nan}]}))
        score, trial = map(json.loads, folder.log.read_text().splitlines())
        assert score["per_class"] == [0.5, None] and score["figures"] == {"accuracy": None, "f1": None}
        assert trial["options"] == {"deep": [{"rate": None}]}


def test_infinity_of_a_setting_is_written_as_recipes_write_it(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path) as folder:
        folder.append(HeaderEvent(recipe={"partition": {"alpha": float("inf")}, "other": float("nan")}))
        assert json.loads(folder.log.read_text())["recipe"] == {"partition": {"alpha": "inf"}, "other": None}


def test_a_torn_last_line_is_passed_over_and_repaired(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path) as folder:
        folder.append(resume(1))
        folder.append(EndEvent(message="é"))
    whole = folder.log.read_bytes()
    first = whole.index(b"\n") + 1
    torn_lines = [whole[first:cut] for cut in range(first, len(whole))] + [b"\0" * 9, b"\0\n"]
    for torn in [whole[:first] + line for line in torn_lines]:
        folder.log.write_bytes(torn)
        assert list(read_events(tmp_path)) == [resume(1)]
        with RunFolder.open(tmp_path) as reopened:
            reopened.append(resume(3))
        assert list(read_events(tmp_path)) == [resume(1), resume(3)]


def test_damage_before_the_last_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").write_text('{"n": 1}\nnonsense\n{"n": 3}\n')
    with pytest.raises(UserError, match=r"Line 2 of .*run\.jsonl"):
        list(read_events(tmp_path))
    (tmp_path / "run.jsonl").write_text('{"event": "end"}\n{"event": "privacy", "ledger": "a", "clients": 3}\n')
    with pytest.raises(UserError, match=r"Line 2 of .*run\.jsonl is damaged \(privacy\.number: .*restore the file"):
        list(read_events(tmp_path))
    with pytest.raises(UserError, match="elsewhere does not exist; give the folder of a run"):
        list(read_events(tmp_path / "elsewhere"))


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder.create(tmp_path) as folder:
        folder.append(resume(1))
        monkeypatch.setattr(os, "fsync", full_disk)
        with pytest.raises(UserError, match="the disk is full"):
            folder.append(resume(2))
        monkeypatch.undo()
        folder.append(resume(3))
        assert list(folder.events()) == [resume(1), resume(3)]


def test_leftovers_of_a_killed_writer_are_swept(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".t@1.safetensors.123.part").write_bytes(b"half")
    RunFolder(tmp_path).close()
    assert not os.listdir(tmp_path / "checkpoints")


def test_create_and_open_refuse_the_wrong_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent does not exist; give the folder of a run"):
        RunFolder.open(tmp_path / "absent")
    with RunFolder.create(tmp_path):
        pass
    with pytest.raises(UserError, match="holds no run to resume"):
        RunFolder.open(tmp_path)
    with RunFolder.create(tmp_path) as folder:
        folder.append(resume(1))
    with pytest.raises(UserError, match="already holds a run"):
        RunFolder.create(tmp_path)
    RunFolder.open(tmp_path).close()  # the refusals above gave the folder free


def _hold(path: Path, ready: object, done: object) -> None:
    with RunFolder(path):
        ready.set()  # type: ignore[attr-defined]
        done.wait(600)  # type: ignore[attr-defined]


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready, done))
    other.start()
    assert ready.wait(600)
    with pytest.raises(UserError, match="in use by another process"):
        RunFolder(tmp_path)
    other.kill()  # a lock dies with its owner
    other.join()
    with RunFolder(tmp_path), pytest.raises(UserError, match="in use"):
        RunFolder(tmp_path)


def test_checkpoints_keep_two_and_each_trial_its_own(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path) as folder:
        for number in (1, 2, 10):
            for trial in ("coop", "coop 2", "../x@[1]"):
                folder.save_checkpoint(trial, checkpoint(number + (trial == "coop 2")))
        assert_same(folder.load_checkpoint("coop"), checkpoint(10))
        assert_same(folder.load_checkpoint("coop 2"), checkpoint(11))
        assert_same(folder.load_checkpoint("../x@[1]"), checkpoint(10))
        assert folder.load_checkpoint("never run") is None
    assert sorted(os.listdir(tmp_path)) == [".lock", "checkpoints"]
    assert len(os.listdir(tmp_path / "checkpoints")) == 6


def test_a_torn_checkpoint_falls_back_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with RunFolder.create(tmp_path) as folder:
        folder.save_checkpoint("t", checkpoint(2))
        folder.save_checkpoint("t", checkpoint(3))
        newest = max((tmp_path / "checkpoints").iterdir())
        whole = newest.read_bytes()
        for cut in range(0, len(whole), 10):
            newest.write_bytes(whole[:cut])
            with caplog.at_level(logging.WARNING):
                assert_same(folder.load_checkpoint("t"), checkpoint(2))
        assert "damaged checkpoint" in caplog.text and newest.name in caplog.text
        min((tmp_path / "checkpoints").iterdir()).write_bytes(b"")
        assert folder.load_checkpoint("t") is None
        folder.save_checkpoint("t", checkpoint(1))  # started anew: what is left of the damaged ones must not win
        assert_same(folder.load_checkpoint("t"), checkpoint(1))


def test_a_checkpoint_that_finds_no_room_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder.create(tmp_path) as folder:
        folder.save_checkpoint("t", checkpoint(1))
        monkeypatch.setattr(atomic_files.os, "fsync", full_disk)
        with pytest.raises(UserError, match=r"checkpoints: the disk is full"):
            folder.save_checkpoint("t", checkpoint(2))
        assert_same(folder.load_checkpoint("t"), checkpoint(1))


def test_rewinding_forgets_one_trials_later_rounds(tmp_path: Path) -> None:
    rounds = [RoundEvent(trial=trial, round=number) for trial, number in (("a", 1), ("a", 2), ("b", 2))]
    with RunFolder.create(tmp_path) as folder:
        for event in [HeaderEvent(), *rounds, TrialEvent(trial="a")]:
            folder.append(event)
        folder.rewind("a", 1)
        assert list(folder.events()) == [HeaderEvent(), rounds[0], rounds[2]]
        folder.append(EndEvent())
    assert json.loads(folder.log.read_text().splitlines()[-1]) == {"event": "end"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=r"Cannot write to .*taken: .* choose another folder"):
        RunFolder.create(tmp_path / "taken")
