"""Commands end to end: whole runs on the demo data sets, and one sentence per user error."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image
from typer.testing import CliRunner

from fedprompt.cli.main import app
from fedprompt.config.recipe import load_recipe, parse_recipe
from fedprompt.demo.world import pictograms
from fedprompt.experiments import run as runs
from fedprompt.experiments.plan import resolve
from fedprompt.records.events import EVENTS

TINY = """
name = "tiny"
seed = 3
compare = [{ name = "zeroshot" }, { name = "promptfl", train = { lr = 0.01 } }]
[data]
source = "pictograms"
train = 1
test = 1
[partition]
rule = "class_chunks"
classes_per_client = 13
shots = 1
[method]
name = "fedmvp"
consistency = 1.0
[train]
rounds = 3
batch_size = 8
lr = 0.01
[evaluate]
samples = 2
"""


def call(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


def sentence(*words: object) -> str:
    """The one sentence of a call that must end with exit code 2."""
    said = call(*words, code=2).strip()
    assert "Traceback" not in said and said.endswith((".", ")"))
    return said


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    table = call("run", recipe, "--out", folder)
    assert all(
        word in table for word in ("Zero-shot CLIP", "PromptFL", "FedMVP", "Local", "Base", "New", "HM", "Unseen")
    )
    return folder


def events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "run.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_fits_schema(folder: Path) -> None:
    """Every line has the fields of its model, none besides, and is what the model writes."""
    lines = (folder / "run.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines
    for line in lines:
        fields = json.loads(line)
        assert EVENTS[fields["event"]].model_validate(fields).to_json() == line


def test_every_line_of_a_run_fits_the_schema(finished: Path) -> None:
    assert_fits_schema(finished)
    assert {line["event"] for line in events(finished)} == {"header", "trial", "round", "score", "sample", "end"}


def test_a_run_leaves_records_adapters_and_a_page(finished: Path) -> None:
    found = events(finished)
    assert found[0]["event"] == "header" and found[-1] == {**found[-1], "event": "end", "status": "done"}
    assert {line["trial"] for line in found if line["event"] == "score"} == {"fedmvp", "zeroshot", "promptfl"}
    assert {line["split"] for line in found if line["event"] == "score"} == {"local", "base", "new", "unseen"}
    assert all(line["bytes_up"] for line in found if line["event"] == "round")
    assert {path.name for path in (finished / "adapters" / "fedmvp").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "attributes.json",
        "metrics.json",
        "provenance.json",
    }
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page and not re.search(r"""(src|href)=["']?(https?:)?//""", page)


def test_the_report_is_written_again_from_the_records_alone(finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / "run.jsonl", tmp_path)
    call("report", tmp_path)
    assert (tmp_path / "report.html").read_bytes() == (finished / "report.html").read_bytes()


class Interrupter(runs.RunCallbacks):
    """Press Ctrl-C after a round of a trial."""

    def __init__(self, trial: str, round_number: int) -> None:
        self.stop, self.now = (trial, round_number), ""

    def on_trial(self, name: str, rounds: int, done: int) -> None:
        self.now = name

    def on_round(self, number: int, loss: float | None) -> None:
        if (self.now, number) == self.stop:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [("fedmvp", 1), ("promptfl", 2)])
def test_a_resumed_run_equals_one_that_never_stopped(
    stop: tuple[str, int], recipe: Path, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        runs.start(resolve(load_recipe(recipe)), folder, callbacks=Interrupter(*stop))
    assert events(folder)[-1]["status"] == "interrupted"
    call("resume", folder)
    for trial in ("fedmvp", "promptfl"):
        place = Path("adapters") / trial / "adapter_model.safetensors"
        assert (folder / place).read_bytes() == (finished / place).read_bytes()

    def scores(run: Path) -> list[tuple]:
        lines = [line for line in events(run) if line["event"] == "score"]
        return [(line["trial"], line["split"], line["name"], line["figures"]["accuracy"]) for line in lines]

    def rounds(run: Path) -> list[tuple]:
        return [(line["trial"], line["round"], line["loss"]) for line in events(run) if line["event"] == "round"]

    assert scores(folder) == scores(finished) and rounds(folder) == rounds(finished)


def test_predict_takes_files_and_classes_named_at_call_time(finished: Path, tmp_path: Path) -> None:
    source = pictograms(train=1, test=1).source
    image = tmp_path / "one.png"
    source.open(0).save(image)
    own = json.loads(call("predict", finished, image, "--json"))
    assert own[0]["picture"] == str(image) and len(own[0]["top"]) == 5
    named = json.loads(call("predict", finished / "adapters" / "fedmvp", image, "--classes", "llama, anchor", "--json"))
    assert {name for name, _ in named[0]["top"]} == {"llama", "anchor"}
    assert sum(probability for _, probability in named[0]["top"]) == pytest.approx(1, abs=1e-5)
    assert "one.png" in call("predict", finished, image, "--trial", "promptfl")
    (tmp_path / "text.jpg").write_text("no image")
    assert "text.jpg" in sentence("predict", finished, tmp_path / "text.jpg")


def folder_of_images(root: Path) -> Path:
    for number, name in enumerate(("cat", "dog", "horse", "mug")):
        for copy in range(4):
            path = root / name / f"{copy}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (60 * number, 50 * copy, 90)).save(path)
    return root


def test_a_folder_of_own_images_works(tmp_path: Path) -> None:
    images = folder_of_images(tmp_path / "images")
    overrides = ("-s", f"data.path={images}", "-s", "partition.classes_per_client=1")
    assert "16 images, 0 problem(s)" in call("check", "own_folder", *overrides)
    drawn = tmp_path / "partition.svg"
    assert "client-1" in call("partition", "own_folder", *overrides, "--plot", drawn)
    assert drawn.read_text(encoding="utf-8").lstrip().startswith("<")
    small = ("-s", "train.rounds=1", "-s", "evaluate.every=0", "-s", "backbone.path=demo")
    call("run", "own_folder", *overrides, *small, "--out", tmp_path / "run", "--quiet")
    assert (tmp_path / "run" / "report.html").exists()


def test_commands_without_a_run_print_their_results() -> None:
    listed = call("methods")
    assert "FedMVP (Singha et al., 2025)" in listed and "consistency" in listed
    assert parse_recipe(call("config", "show", "demo")).name == "demo"
    assert "demo.toml is valid" in call("config", "validate", "demo")
    assert json.loads(call("config", "schema"))["properties"]["method"]


def test_doctor_passes_on_a_complete_installation(tmp_path: Path) -> None:
    assert "demo" in call("doctor", "--out", tmp_path)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("method.n_token=3", "did you mean 'n_tokens'"),
        ("method.name=fedmvpp", "did you mean 'fedmvp'"),
        ("train.round=3", "did you mean 'rounds'"),
        ("data.source=pictogram", "did you mean 'pictograms'"),
        ("partition.rule=iidd", "did you mean 'iid'"),
        ("backbone.path=no/such/folder", "no/such/folder"),
    ],
)
def test_a_wrong_value_is_named_and_nothing_is_written(setting: str, words: str, recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert words in sentence("run", recipe, "-s", setting, "--out", folder)
    assert not folder.exists()


def test_wrong_folders_are_named(recipe: Path, finished: Path, tmp_path: Path) -> None:
    assert "nowhere.toml" in sentence("run", tmp_path / "nowhere.toml")
    assert str(finished) in sentence("run", recipe, "--out", finished)  # a run is never overwritten
    assert "no run.jsonl" in sentence("report", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "empty" in sentence("run", "own_folder", "-s", f"data.path={tmp_path / 'empty'}", "--out", tmp_path / "run")
    missing = tmp_path / "missing"
    assert "missing" in sentence("run", "own_folder", "-s", f"data.path={missing}", "--out", tmp_path / "run")


def test_corrupt_images_and_empty_classes_are_named(tmp_path: Path) -> None:
    images = folder_of_images(tmp_path / "images")
    (images / "cat" / "0.png").write_bytes((images / "cat" / "0.png").read_bytes()[:40])
    overrides = ("-s", f"data.path={images}", "-s", "data.unreadable=0", "-s", "backbone.path=demo")
    overrides += ("--out", tmp_path / "run")
    assert "0.png" in sentence("run", "own_folder", *overrides)
    (images / "zebra").mkdir()
    assert "zebra" in sentence("run", "own_folder", *overrides)
    assert not (tmp_path / "run").exists()


def test_a_run_in_use_by_another_process_is_left_alone(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "busy"
    shutil.copytree(finished, folder)
    before = (folder / "run.jsonl").read_bytes()
    with FileLock(folder / ".lock"):
        assert "in use by another process" in sentence("resume", folder)
    assert (folder / "run.jsonl").read_bytes() == before


def test_a_run_of_another_backbone_is_not_resumed(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(finished, folder)
    lines = (folder / "run.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    header = json.loads(lines[0])
    header["backbone"]["fingerprint"] = "0" * 64
    (folder / "run.jsonl").write_text("".join([json.dumps(header) + "\n", *lines[1:]]), encoding="utf-8")
    assert "another backbone" in sentence("resume", folder)


def test_the_command_is_installed_and_quick_to_help() -> None:
    program = "import sys, fedprompt.cli.main; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"
    done = subprocess.run([sys.executable, "-m", "fedprompt", "run", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2 and "There is no recipe 'nothing'" in done.stderr
