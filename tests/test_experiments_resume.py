"""Resuming a run that is no longer what it was: every difference is named, and accepted only on request."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import fedprompt as fp
from fedprompt.cli.main import app
from fedprompt.config.recipe import parse_recipe
from fedprompt.errors import UserError
from fedprompt.experiments import checks
from fedprompt.experiments import run as runs
from fedprompt.experiments.clients import Clients
from fedprompt.experiments.plan import resolve
from fedprompt.records.events import ChangesEvent
from fedprompt.records.run_folder import read_events
from fedprompt.seeding import numpy_stream
from test_cli import without_end

pytestmark = pytest.mark.usefixtures("kept_backbone", "undrawn")

TRIES = int(os.environ.get("FEDPROMPT_ATTACK_TRIES", "10"))
RECIPE = """
name = "small"
seed = 3
[data]
source = "emoji"
train = 1
test = 1
[partition]
rule = "class_chunks"
classes_per_client = 20
shots = 1
[method]
name = "promptfl"
[train]
rounds = 1
batch_size = 20
lr = 0.002
optimizer = "sgd"
[evaluate]
samples = 0
"""
EDITS = {
    "lr = 0.002": ("lr = 0.5", "[train] lr was 0.002, is 0.5"),
    "seed = 3": ("seed = 4", "seed was 3, is 4"),
    "classes_per_client = 20": ("classes_per_client = 30", "[partition] classes_per_client was 20, is 30"),
    "rounds = 1": ("rounds = 2", "[train] rounds was 1, is 2"),
    'optimizer = "sgd"': ('optimizer = "adamw"', '[train] optimizer was "sgd", is "adamw"'),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "run"
    runs.start(resolve(parse_recipe(RECIPE)), folder)
    without_end(folder)  # of a finished run only the report is written again
    return folder


def edited(finished: Path, folder: Path, *lines: str) -> list[str]:
    """Copy the run, edit these lines of its recipe, and return what must be said."""
    shutil.copytree(finished, folder)
    text = (folder / "recipe.toml").read_text()
    for line in lines:
        assert line in text
        text = text.replace(line, EDITS[line][0])
    (folder / "recipe.toml").write_text(text)
    return [EDITS[line][1] for line in lines]


def test_an_edited_recipe_is_not_resumed_in_silence(finished: Path, tmp_path: Path) -> None:
    draws = numpy_stream(0, "attack 19")
    for attempt in range(TRIES):
        chosen = [line for line in EDITS if draws.integers(2)] or ["seed = 3"]
        folder = tmp_path / str(attempt)
        said = edited(finished, folder, *chosen)
        before = (folder / "run.jsonl").read_bytes()
        with pytest.raises(UserError, match="is not as it began") as refusal:
            runs.resume(folder)
        assert all(one in str(refusal.value) for one in said) and "--accept-changes" in str(refusal.value)
        assert (folder / "run.jsonl").read_bytes() == before
        shutil.rmtree(folder)


def test_accepted_changes_are_recorded(finished: Path, tmp_path: Path) -> None:
    (said,) = edited(finished, tmp_path / "run", "lr = 0.002")
    result = CliRunner().invoke(app, ["resume", str(tmp_path / "run"), "--accept-changes", "--quiet"])
    assert result.exit_code == 0, result.output
    changes = [event.changes for event in read_events(tmp_path / "run") if isinstance(event, ChangesEvent)]
    assert changes == [(said,)]


def test_other_versions_are_named_and_another_machine_is_not(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    versions = checks.versions()
    monkeypatch.setattr(checks, "versions", lambda: versions | {"threads": "99", "platform": "other"})
    runs.resume(tmp_path / "run")
    without_end(tmp_path / "run")
    monkeypatch.setattr(checks, "versions", lambda: versions | {"torch": "0.1"})
    with pytest.raises(UserError, match=re.escape(f"torch was {versions['torch']}, is 0.1")):
        runs.resume(tmp_path / "run")


def test_an_untouched_run_is_resumed_without_a_word(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    runs.resume(tmp_path / "run")
    assert not [event for event in read_events(tmp_path / "run") if isinstance(event, ChangesEvent)]


TABLE = """
name = "table"
[data]
source = "class_table"
path = "{}"
test_fraction = 0.25
[partition]
rule = "iid"
clients = 2
[method]
name = "promptfl"
[train]
rounds = 1
batch_size = 20
[evaluate]
samples = 0
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 24 images, a table of their labels and an unfinished run on them."""
    folder = tmp_path_factory.mktemp("table")
    for number in range(24):
        Image.new("RGB", (8, 8), (10 * number, 40, 200)).save(folder / f"{number}.png")
    write_labels(folder, "abc")
    runs.start(resolve(parse_recipe(TABLE.format(folder / "labels.csv"))), folder / "run")
    without_end(folder / "run")
    return folder


def write_labels(folder: Path, classes: str) -> None:
    rows = [f"{number}.png,{classes[number % len(classes)]}" for number in range(24)]
    (folder / "labels.csv").write_text("\n".join(["image,label", *rows, ""]))


def forget(folder: Path) -> None:
    """Take out of a run's header what older versions did not record."""
    first, *rest = (folder / "run.jsonl").read_text().splitlines(keepends=True)
    header = json.loads(first)
    del header["data"]["columns"]
    (folder / "run.jsonl").write_text(json.dumps(header) + "\n" + "".join(rest))


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ("abc", ""),
        ("bca", "other labels"),
        ("abd", r"other classes \(.*\"c\".*, now .*\"d\""),
        ("abcb", "other labels"),
    ],
)
def test_other_labels_in_the_files_are_not_taken_in_silence(
    table: Path, tmp_path: Path, classes: str, said: str
) -> None:
    shutil.copytree(table / "run", tmp_path / "run")
    write_labels(table, classes)
    try:
        if said:
            with pytest.raises(UserError, match=f"is not as it began: .*{said}"):
                runs.resume(tmp_path / "run")
        runs.resume(tmp_path / "run", accept_changes=bool(said))
    finally:
        write_labels(table, "abc")
    assert bool(said) == any(isinstance(event, ChangesEvent) for event in read_events(tmp_path / "run"))


def test_a_run_of_an_older_version_is_resumed_and_its_clients_are_compared(table: Path, tmp_path: Path) -> None:
    shutil.copytree(table / "run", tmp_path / "run")
    forget(tmp_path / "run")
    write_labels(table, "abcb")
    try:
        with pytest.raises(UserError, match=r"began: another split \(.*; clients with other images"):
            runs.resume(tmp_path / "run")
    finally:
        write_labels(table, "abc")
    runs.resume(tmp_path / "run")
    without_end(tmp_path / "run")
    (tmp_path / "run" / "partition.json").unlink()
    runs.resume(tmp_path / "run")


@pytest.fixture(scope="module")
def python_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("python") / "run"
    data = in_memory()
    fp.train("promptfl", fp.load_clip(), data, clients(data), out=folder, rounds=1, progress=False)
    without_end(folder)
    return folder


def in_memory(*, shift: int = 0, **options: Any) -> fp.Dataset:
    images = [Image.new("RGB", (8, 8), (10 * number, 40, 200)) for number in range(24)]
    pairs = [(image, "abc"[(number + shift) % 3]) for number, image in enumerate(images)]
    return fp.load_dataset(pairs, **{"test_fraction": 0.25, "seed": 1, **options})


def clients(data: fp.Dataset, *, count: int = 2, alpha: float = 0.5) -> Clients:
    return fp.partition(data, "dirichlet", clients=count, alpha=alpha, seed=1)


@pytest.mark.parametrize(
    ("options", "division", "said"),
    [
        ({}, {}, ""),
        ({"seed": 5}, {}, "another split"),
        ({"test_fraction": 0.5}, {}, r"another split \(\{\"train\": 18, .*, now \{\"train\": 12"),
        ({"shift": 1}, {}, "other labels"),
        ({"base": "half"}, {}, r"other classes \(.*, now .*\"new\": "),
        ({}, {"count": 3}, r"other clients \(2 clients, now 3 clients\)"),
        ({}, {"alpha": 50.0}, "clients with other images or classes"),
    ],
)
def test_other_data_and_clients_from_python_are_not_taken_in_silence(
    python_run: Path, tmp_path: Path, options: dict[str, Any], division: dict[str, Any], said: str
) -> None:
    shutil.copytree(python_run, tmp_path / "run")
    data = in_memory(**options)
    given = {"clip": fp.load_clip(), "data": data, "clients": clients(data, **division), "progress": False}
    if said:
        with pytest.raises(UserError, match=f"is not as it began: .*{said}.*accept_changes=True"):
            fp.resume(tmp_path / "run", **given)
    fp.resume(tmp_path / "run", accept_changes=bool(said), **given)
