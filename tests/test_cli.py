"""Commands end to end: whole runs on the demo data sets, and one sentence per user error."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch
import typer
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.core import TyperGroup
from typer.testing import CliRunner

from fedprompt.cli import main as cli
from fedprompt.cli.doctor import run_checks
from fedprompt.cli.main import app
from fedprompt.cli.program import PANELS
from fedprompt.config.recipe import bundled_recipes, load_recipe, parse_recipe
from fedprompt.demo.emoji import emoji
from fedprompt.experiments import run as runs
from fedprompt.experiments.events import run_title
from fedprompt.experiments.plan import resolve
from fedprompt.records.events import EVENTS, EndEvent
from fedprompt.records.run_folder import read_events

pytestmark = pytest.mark.usefixtures("kept_backbone")

TINY = """
name = "tiny"
seed = 3
compare = [{ name = "zeroshot" }, { name = "promptfl", train = { lr = 0.01 } }]
[data]
source = "emoji"
train = 1
test = 1
[partition]
rule = "class_chunks"
classes_per_client = 20
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


def output(*words: object) -> str:
    """What a call writes to its output, without what it says beside that."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


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
    (folder.parent / "output.txt").write_text(table, encoding="utf-8")
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


def test_the_terminal_names_methods_as_the_table_does_and_explains_its_columns(finished: Path) -> None:
    said = (finished.parent / "output.txt").read_text(encoding="utf-8")
    assert "Zero-shot CLIP: no training" in said and "FedMVP: 3 rounds" in said and "Scoring PromptFL" in said
    assert "zeroshot" not in said and "fedmvp:" not in said
    assert re.search(r"\d+ clients hold 60 of [\d,]+ training images \(1 shot per class\): ", said)
    assert re.search(r"(?m)^  HM +harmonic mean of Local, Base and New", said)
    assert re.search(r"(?m)^  Upload +bytes that a client sends", said)
    assert re.search(r"by the intervals,\s+differences\s+are\s+known\s+to\s+±[\d.]+", said)


def test_the_protocol_is_in_whole_words(finished: Path) -> None:
    protocol = events(finished)[0]["protocol"]
    assert protocol.startswith(
        "3 clients (partition rule class_chunks), all in every round; 3 rounds of 1 local epoch; the server averages "
        "the updates with equal weights. 3 clients hold 60 of"
    )


def test_every_line_of_a_run_fits_the_schema(finished: Path) -> None:
    assert_fits_schema(finished)
    assert {line["event"] for line in events(finished)} == {
        "header",
        "trial",
        "round",
        "score",
        "interval",
        "local_images",
        "mistakes",
        "sample",
        "diagnostics",
        "end",
    }


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


def test_the_model_card_of_a_method_without_training_says_so_and_figures_have_a_meaning(finished: Path) -> None:
    cards = {path.parent.name: path.read_text(encoding="utf-8") for path in (finished / "adapters").glob("*/README.md")}
    assert len(cards) > 1 and "zeroshot" in cards
    for name, card in cards.items():
        untrained = [
            ": 0 trained parameters",
            "This method trains nothing.",
            "Nothing was trained",
            "Of the whole run:",
        ]
        assert [text in card for text in untrained] == 4 * [name == "zeroshot"]
        assert ("It was trained for " in card) == (name != "zeroshot")
        assert "|  |" not in card.partition("## Figures")[2].partition("## Protocol")[0]


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


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("stop", [("FedMVP", 1), ("PromptFL", 2)])
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


def without_end(folder: Path) -> None:
    """Remove the last event of a finished run, as if its process had been killed just before it."""
    log = folder / "run.jsonl"
    *lines, end = log.read_text(encoding="utf-8").splitlines(keepends=True)
    assert json.loads(end)["event"] == "end"
    log.write_text("".join(lines), encoding="utf-8")


def test_resuming_a_finished_run_only_writes_its_report_again(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    shutil.copytree(finished, folder)
    (folder / "report.html").unlink()
    (folder / "recipe.toml").unlink()  # backbone and data are not opened
    assert "This run has finished; only its report is written again." in call("resume", folder)
    assert (folder / "run.jsonl").read_bytes() == (finished / "run.jsonl").read_bytes()
    assert (folder / "report.html").read_bytes() == (finished / "report.html").read_bytes()


PRIVACY = "train.server.privacy={{name='client', clip=0.001, noise={noise}, epsilon={epsilon}, delta=1e-3}}"


def test_a_budget_for_no_round_is_an_error_and_no_result(recipe: Path, tmp_path: Path) -> None:
    setting = PRIVACY.format(noise=1.0, epsilon=0.5)
    said = sentence("run", recipe, "-s", setting, "-s", "compare=[]", "--out", tmp_path / "run", "--quiet")
    assert "train.server.privacy.epsilon = 0.5 allows FedMVP no round: the first one costs up to 3.54;" in said
    assert not [line for line in events(tmp_path / "run") if line["event"] == "score"]


@pytest.mark.usefixtures("blank_figures")
def test_a_run_that_its_budget_ends_early_says_after_which_round(recipe: Path, tmp_path: Path) -> None:
    setting = PRIVACY.format(noise=5.0, epsilon=0.9)  # one round costs 0.53, two cost 0.80, three 1.01
    said = call("run", recipe, "-s", setting, "-s", "compare=[]", "--out", tmp_path / "run")
    assert "FedMVP stopped after round 2: another round would exceed its privacy budget." in said


def test_predict_takes_files_and_classes_named_at_call_time(finished: Path, tmp_path: Path) -> None:
    source = emoji(train=1, test=1).source
    image = tmp_path / "one.png"
    source.open(0).save(image)
    own = json.loads(output("predict", finished, image, "--json"))
    assert own[0]["image"] == f"{tmp_path.name}/one.png" and len(own[0]["top"]) == 5
    named = json.loads(
        output("predict", finished / "adapters" / "fedmvp", image, "--classes", "llama, anchor", "--json")
    )
    assert {name for name, _ in named[0]["top"]} == {"llama", "anchor"}
    assert sum(probability for _, probability in named[0]["top"]) == pytest.approx(1, abs=1e-5)
    assert "one.png" in call("predict", finished, image, "--trial", "promptfl")
    (tmp_path / "text.jpg").write_text("no image")
    assert "text.jpg" in call("predict", finished, tmp_path / "text.jpg", code=1)


def test_an_adapter_whose_scores_are_not_finite_predicts_nothing(finished: Path, tmp_path: Path) -> None:
    image, folder = tmp_path / "one.png", tmp_path / "adapter"
    emoji(train=1, test=1).source.open(0).save(image)
    shutil.copytree(finished / "adapters" / "promptfl", folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: torch.full_like(one, torch.nan) for name, one in tensors.items()}, folder / "adapter_model.safetensors"
    )
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"weights_sha256": None}))  # as if it was trained so
    said = call("predict", folder, image, code=2)
    assert "PromptFL gives" in said and "scores that are not finite (nan for one)" in said and "nan%" not in said
    same = sentence("predict", finished, image, "--classes", "anchor, Anchor")
    assert "The classes 'anchor' and 'Anchor' are one to the backbone" in same


def folder_of_images(root: Path) -> Path:
    for number, name in enumerate(("cat", "dog", "horse", "mug")):
        for copy in range(4):
            path = root / name / f"{copy}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (60 * number, 50 * copy, 90)).save(path)
    return root


@pytest.mark.usefixtures("blank_figures")
def test_a_folder_of_own_images_works(tmp_path: Path) -> None:
    images = folder_of_images(tmp_path / "images")
    overrides = ("-s", f"data.path={images}")
    assert "16 images, 0 problems." in call("check", "own_folder", *overrides)
    drawn = tmp_path / "partition.svg"
    shown = call("partition", "own_folder", *overrides, "--plot", drawn)
    assert "client-1" in shown and "No image was opened: a run leaves out those that cannot be read" in shown
    assert drawn.read_text(encoding="utf-8").lstrip().startswith("<")
    call("partition", "own_folder", *overrides, "--plot", drawn.with_suffix(".png"))
    with Image.open(drawn.with_suffix(".png")) as image:
        assert image.format == "PNG"
    assert "ends in .svg or .png" in sentence("partition", "own_folder", *overrides, "--plot", tmp_path / "who.pdf")
    small = ("-s", "train.rounds=1", "-s", "evaluate.every=0", "-s", "backbone.path=demo")
    call("run", "own_folder", *overrides, *small, "--out", tmp_path / "run", "--quiet")
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.usefixtures("blank_figures")
def test_a_partition_with_a_single_client_is_warned_of(tmp_path: Path) -> None:
    images = folder_of_images(tmp_path / "images")
    few = ("-s", f"data.path={images}", "-s", "data.base=half", "-s", "partition.rule=class_chunks")
    few += ("-s", "partition.classes_per_client=5")
    said = call("partition", "own_folder", *few)
    warning = (
        "Warning: The partition rule class_chunks makes a single client: 'images' has 2 base classes and "
        "classes_per_client is 5; give classes_per_client at most 1 for two clients or more."
    )
    assert warning in said
    small = ("-s", "train.rounds=1", "-s", "evaluate.every=0", "-s", "backbone.path=demo", "-s", "compare=[]")
    assert warning in call("run", "own_folder", *few, *small, "--out", tmp_path / "run")


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
        ("data.source=emojis", "did you mean 'emoji'"),
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
    own = ("-s", "backbone.path=demo", "--out", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    assert "empty" in sentence("run", "own_folder", "-s", f"data.path={tmp_path / 'empty'}", *own)
    missing = tmp_path / "missing"
    assert "missing" in sentence("run", "own_folder", "-s", f"data.path={missing}", *own)


def test_corrupt_images_and_empty_classes_are_named(tmp_path: Path) -> None:
    images = folder_of_images(tmp_path / "images")
    (images / "cat" / "0.png").write_bytes((images / "cat" / "0.png").read_bytes()[:40])
    overrides = ("-s", f"data.path={images}", "-s", "data.unreadable=0", "-s", "backbone.path=demo")
    overrides += ("--out", tmp_path / "run")
    (images / "zebra").mkdir()
    assert "0.png" in sentence("run", "own_folder", *overrides)
    said = call("check", images, code=2)
    assert "make no class" in said.replace("makes", "make") and "zebra" in said and "0.png" in said
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
    without_end(folder)
    assert "another backbone" in sentence("resume", folder)


def commands(group: TyperGroup) -> Iterator[click.Command]:
    for command in group.commands.values():
        yield command
        if isinstance(command, TyperGroup):
            yield from commands(command)


def test_help_groups_the_commands_in_an_order_and_explains_every_argument() -> None:
    said = call("--help")
    names = [name for names in PANELS.values() for name in names]
    assert set(names) == {*typer.main.get_group(app).commands} and len(names) == len(set(names))
    shown = re.findall(r"(?m)^│ (\w+) {2,}", said)
    assert shown[shown.index("demo") :] == names
    assert [panel for panel in re.findall(r"╭─ (\w+) ─", said) if panel != "Options"] == list(PANELS)
    for command in commands(typer.main.get_group(app)):
        assert all(one.help for one in command.params), f"{command.name} does not explain {command.params}"
    assert "A TOML file, or the name of an embedded recipe." in call("run", "--help")


def test_help_keeps_names_of_tables_in_brackets_and_breaks_no_line_of_a_paragraph() -> None:
    said = call("tune", "--help")
    assert "or the recipe's [tuning] grid; with --draws, Optuna draws from" in " ".join(said.split())
    assert not re.search(r"(?m)^ --draws", said)
    assert "settings in [vary]." in call("compare", "--help") and "RUN...]" in call("compare", "--help")


def test_a_mistyped_command_is_corrected_once() -> None:
    for words in (("rum",), ("data", "lst")):
        assert call(*words, code=2).lower().count("did you mean") == 1


def test_both_spellings_of_the_multi_label_task_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(cli, "run", lambda recipe, *_, **__: started.append(recipe))
    for task in ("single", "multi-label", "multilabel"):
        call("demo", "--task", task)
    assert started == ["demo", "multilabel", "multilabel"]


def test_a_folder_that_holds_a_run_is_refused_before_anything_is_opened(finished: Path) -> None:
    said = sentence("run", "demo", "--out", finished, "-s", "data.source=sites", "-s", "data.classes=['a']")
    assert f"already holds a run; continue it with `fedprompt resume {finished}`" in said


def test_more_adversaries_than_clients_are_refused_without_the_data() -> None:
    attack = 'train.server.attack={name="sign_flip", adversaries=5}'
    rule = ("-s", "partition.rule=iid", "-s", "partition.clients=3")
    said = sentence("config", "validate", "demo", *rule, "-s", attack).splitlines()
    assert said == [
        "partition.rule = iid leaves out the option classes_per_client of class_chunks. It keeps shots.",
        "[train.server.attack] adversaries = 5, but there are 3 clients; give at most 3.",
    ]


def test_more_shots_than_any_class_has_are_said_to_be_all_images() -> None:
    said = call("partition", "demo", "-s", "data.train=2", "-s", "data.test=1", "-s", "partition.shots=100000")
    assert re.search(r"Warning: shots = 100,000 takes all [\d,]+ images; no class has more than \d+\.", said)


def test_the_command_is_installed_and_quick_to_help() -> None:
    program = "import sys, fedprompt.cli.main; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"
    done = subprocess.run([sys.executable, "-m", "fedprompt", "run", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2 and "There is no recipe 'nothing'" in done.stderr


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_idle_threads_sleep_unless_the_user_says_otherwise(given: str | None, expected: str) -> None:
    program = (
        "import os, sys, fedprompt\n"  # as `fedprompt.cli.main` and Python's users do
        "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    environ = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environ |= {} if given is None else {"OMP_WAIT_POLICY": given}
    assert subprocess.check_output([sys.executable, "-c", program], env=environ, text=True).split() == [
        expected,
        "False",
    ]


@pytest.mark.parametrize(("load", "busy"), [(0.4, False), (7.9, True)])
def test_doctor_says_when_the_machine_is_busy(load: float, busy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    finding = next(finding for finding in run_checks(Path(), "no/such/clip") if finding.what == "load")
    assert finding.found.startswith(f"{load} on 2 cores") and ("other processes" in finding.found) is busy
    assert bool(finding.fix) is finding.warning is (load > 2)


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("reproduce", "--list", "--rate", "nan"), "--rate nan"),
        (("reproduce", "--list", "--rate", "inf"), "--rate inf"),
        (("describe", "attributes", "--temperature", "nan"), "--temperature nan"),
        (("describe", "attributes", "--price-in", "inf"), "--price-in inf"),
    ],
)
def test_an_option_that_is_no_finite_number_is_refused_by_name(words: tuple[str, ...], option: str) -> None:
    assert f"{option} is not a finite number" in sentence(*words)


def test_predict_takes_the_images_of_a_folder_and_one_that_is_damaged_costs_only_itself(
    finished: Path, tmp_path: Path
) -> None:
    source = emoji(train=1, test=1).source
    folder = tmp_path / "mine"
    (folder / "more").mkdir(parents=True)
    for name in ("2.png", "10.png", "1.png", "more/3.png"):
        source.open(0).save(folder / name)
    (folder / "damaged.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image")
    result = CliRunner().invoke(app, ["predict", str(finished), str(folder), "--json"])
    assert result.exit_code == 1
    found = {one["image"]: one for one in json.loads(result.stdout)}
    assert list(found) == [f"mine/{name}" for name in ("1.png", "2.png", "10.png", "more/3.png", "damaged.png")]
    assert ["error" in one for one in found.values()] == [False] * 4 + [True]
    assert "Left out: 1 .txt." in result.stderr and "1 of 5 cannot be read:" in result.stderr
    assert f"The content of {folder / 'damaged.png'} is none of" in result.stderr
    (folder / "damaged.png").unlink()
    assert "10.png" in call("predict", finished, folder / "1*.png", folder / "1.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="other systems have no pipes")
def test_what_is_given_to_predict_and_is_no_image_is_named(finished: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    for name, what in {
        "pipe.jpg": "is a pipe, not a regular file",
        "empty": "holds no images",
        "loop.jpg": "is a link that leads back to itself",
        "gone.jpg": "does not exist",
        "*.tif": "matches no images",
        f"{'x' * 300}.jpg": "is not a path .File name too long",
    }.items():
        assert re.search(what, sentence("predict", finished, tmp_path / name))


def test_without_a_network_a_run_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from fedprompt.cli.main import app\n"
        "try:\n"
        "    app(['run', 'own_folder', '--set', 'train.rounds=1', '--out', sys.argv[1]])\n"
        "except SystemExit as end:\n"
        "    print(end.code, {'torch', 'transformers', 'matplotlib'} & set(sys.modules))\n"
    )
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    words = [sys.executable, "-c", program, str(tmp_path / "run")]
    done = subprocess.run(words, env=environ, text=True, capture_output=True)
    assert done.stdout.strip() == "2 set()"
    name = "openai/clip-vit-base-patch16"
    assert f"The backbone '{name}' cannot be opened" in done.stderr and "set backbone.path=demo" in done.stderr
    assert f"`fedprompt backbone fetch {name} FOLDER` on a machine with a network" in done.stderr


def test_an_output_folder_that_cannot_be_used_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    images = ("-s", f"data.path={tmp_path / 'no images'}")
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    for place, words in {
        tmp_path / "file": "which is a file; choose another folder with --out",
        tmp_path / "file" / "run": "which does not exist, since a part of this path is a file",
        tmp_path / "full": "is not empty (it holds 'thesis.tex'); choose a new folder for the run",
        Path("/proc/run"): "Nothing can be written to /proc/run (No such file or directory)",
    }.items():
        assert words in sentence("run", "own_folder", *images, "--out", place)
    assert (tmp_path / "full" / "thesis.tex").read_text() == "x"


@pytest.mark.usefixtures("blank_figures")
def test_what_an_interrupted_start_leaves_behind_does_not_stand_in_the_way(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".lock", "recipe.toml", "partition.json"):
        (folder / name).write_text("")
    call("run", recipe, "-s", "train.rounds=1", "-s", "compare=[]", "--out", folder, "--quiet")


def test_recipes_are_listed_with_a_line_each() -> None:
    lines = call("config", "list").splitlines()
    assert [line.split()[0] for line in lines] == list(bundled_recipes())
    assert all(len(line.split()) > 3 for line in lines)


def test_doctor_checks_the_data_backbone_and_output_folder_of_a_recipe(tmp_path: Path) -> None:
    images = folder_of_images(tmp_path / "images")
    own = ("-s", f"data.path={images}", "-s", "backbone.path=demo")
    said = call("doctor", "own_folder", *own, "--out", tmp_path / "runs")
    assert "recipe own_folder.toml" in said and "16 images, 4 classes" in said and "FAILED" not in said
    lost = call("doctor", "own_folder", "-s", "data.path=gone", "-s", "backbone.path=nowhere", code=2)
    assert lost.count("FAILED") == 2 and "There is no backbone folder 'nowhere'" in lost
    wrong = call("doctor", "own_folder", "-s", "data.pat=gone", "--out", "/proc/runs", code=2)
    assert wrong.count("FAILED") == 2 and "did you mean 'path'?" in wrong and "Nothing can be written to" in wrong
    for key, value in (("device", "cuda:7"), ("precision", "float16")):
        unfit = call("doctor", "own_folder", *own, "-s", f"backbone.{key}={value}", "-s", "backbone.batch=2", code=2)
        assert "FAILED" in unfit and value in unfit, "as a run refuses it"


def test_titles_name_the_methods_that_ran_and_data_and_not_an_earlier_recipe(finished: Path) -> None:
    assert events(finished)[0]["title"] == "FedMVP, Zero-shot CLIP and PromptFL on emoji"
    assert run_title(["FedLoRA"], "images") == "FedLoRA on images"
    assert run_title(["FedLoRA"], "a") == 'FedLoRA on "a"'
    assert run_title(list("abcde"), "images") == "a and 4 other methods on images"
    about = call("config", "show", "demo").splitlines()
    assert any(line.startswith("about = ") for line in about)
    replaced = call("config", "show", "demo", "-s", "method.name=fedvpt")
    assert 'about = ""' in replaced or "about = " not in replaced
    given = call("config", "show", "demo", "-s", "method.name=fedvpt", "-s", "about=Mine.")
    assert 'about = "Mine."' in given


def test_shells_complete_commands_and_recipes() -> None:
    for words, place, expected in (
        ("fedprompt pre", 1, ["predict"]),
        ("fedprompt run own", 2, ["own_folder", "own_table"]),
    ):
        environ = {"_FEDPROMPT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(place)}
        program = [sys.executable, "-c", "from fedprompt.cli.main import app; app(prog_name='fedprompt')"]
        done = subprocess.run(program, env={**os.environ, **environ}, capture_output=True, text=True)
        assert done.stdout.split() == expected, done.stderr


def test_sigterm_ends_a_run_as_ctrl_c_does(tmp_path: Path) -> None:
    command = ["run", "demo", "--out", str(tmp_path / "run"), "--set", "train.rounds=500"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-m", "fedprompt", *command], env=environment, **output) as driver:
        try:
            next(line for line in driver.stdout if "round 1/500" in line)
            driver.send_signal(signal.SIGTERM)
            _, said = driver.communicate(timeout=60)
        finally:
            driver.kill()
    assert driver.returncode == 143
    assert said.strip() == f"Interrupted; continue with: fedprompt resume {tmp_path / 'run'}"
    *_, last = read_events(tmp_path / "run")
    assert isinstance(last, EndEvent) and last.status == "interrupted" and not last.message
