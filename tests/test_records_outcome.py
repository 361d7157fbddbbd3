"""Finished runs without a result: what their records say, and whole runs that end so with exit code 1."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from fedprompt.cli.main import app
from fedprompt.records.events import BaseEvent, EndEvent, HeaderEvent, RoundEvent, ScoreEvent, SitesEvent, TrialEvent
from fedprompt.records.outcome import missing_results, shown_name
from fedprompt.records.reading import read_run
from fedprompt.records.run_record import Run
from fedprompt.report.facts import status, summary

pytestmark = pytest.mark.usefixtures("kept_backbone", "blank_figures")

RECIPE = """
name = "tiny"
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
rounds = 2
batch_size = 8
[evaluate]
samples = 0
"""


def recorded(tmp_path: Path, *events: BaseEvent, end: bool = True) -> Run:
    begun = TrialEvent(trial="ours", status="running", trainable=3, rounds=2)
    ended = [TrialEvent(trial="ours", status="done"), EndEvent(status="done")] if end else []
    lines = [HeaderEvent(main="ours"), begun, *events, *ended]
    (tmp_path / "run.jsonl").write_text("".join(f"{event.to_json()}\n" for event in lines), encoding="utf-8")
    return read_run(tmp_path)


def score(value: float | None = 0.5, count: int = 4) -> ScoreEvent:
    return ScoreEvent(trial="ours", round=2, split="base", num_examples=count, figures={"accuracy": value})


def done(number: int, loss: float | None = 0.1, **fields: object) -> RoundEvent:
    return RoundEvent(trial="ours", round=number, loss=loss, **fields)


def test_a_run_that_trained_and_tested_lacks_nothing(tmp_path: Path) -> None:
    run = recorded(tmp_path, done(1, None, skipped="nobody came"), done(2), score())
    assert missing_results(run) == () and status(run) == "" and shown_name(run.trials[0]) == "ours"


def test_rounds_of_secure_sums_with_noise_count_although_no_loss_is_sent(tmp_path: Path) -> None:
    run = recorded(tmp_path, done(1, None, bytes_up={0: 8, 1: 8}), done(2, None, bytes_up={1: 8}), score())
    assert missing_results(run) == () and status(run) == ""


@pytest.mark.parametrize(
    ("rounds", "reason"),
    [
        ((done(1, None), done(2, None, bytes_up={3: 8}, failed={3: "is too long."})), "client 3: is too long)"),
        ((done(1, None, skipped="a"), done(2, None, skipped="the secure sum is abandoned.")), "the secure sum is aba"),
        ((done(1, None), done(2, None, failed={3: "did not answer."})), "client 3: did not answer)"),
        ((done(1, None), done(2, None)), "(no client sent an update)"),
        ((), ", for none began"),
    ],
)
def test_a_trial_in_which_no_round_counted_is_not_trained(
    rounds: tuple[RoundEvent, ...], reason: str, tmp_path: Path
) -> None:
    run = recorded(tmp_path, *rounds, score())
    (sentence,) = missing_results(run)
    assert sentence.startswith("ours is not trained: none of the 2 rounds counted") and reason in sentence
    assert sentence.endswith("Its figures are those of the untrained method.")
    assert status(run) == sentence and summary(run) == "" and shown_name(run.trials[0]) == "ours (not trained)"


def test_a_trial_that_changed_nothing_is_not_trained(tmp_path: Path) -> None:
    run = recorded(tmp_path, done(1), done(2), TrialEvent(trial="ours", unchanged=True), score())
    (sentence,) = missing_results(run)
    assert sentence.startswith("ours is not trained: 2 rounds changed no tensor")


@pytest.mark.parametrize("scores", [(), (score(None, 0),)])
def test_a_run_without_test_images_is_untested(scores: tuple[ScoreEvent, ...], tmp_path: Path) -> None:
    (sentence,) = missing_results(recorded(tmp_path, done(1), done(2), *scores))
    assert sentence.startswith("Nothing is tested: there was no test image")


@pytest.mark.parametrize(
    ("others", "said"), [("exact", "north withholds the"), ("withheld", "east, north withhold the")]
)
def test_a_run_over_sites_that_withhold_their_scores_says_so(others: str, said: str, tmp_path: Path) -> None:
    sites = SitesEvent(trial="ours", sites={"north": {"scores": "withheld"}, "east": {"scores": others}})
    (sentence,) = missing_results(recorded(tmp_path, sites, done(1), done(2), score(None, 0)))
    assert sentence.startswith(f"Nothing is tested: {said} scores of test images") and "data.test" in sentence
    (tmp_path / "run.jsonl").unlink()
    assert missing_results(recorded(tmp_path, sites, done(1), done(2), score())) == ()


def test_a_run_whose_figures_are_all_undefined_measured_nothing(tmp_path: Path) -> None:
    (sentence,) = missing_results(recorded(tmp_path, done(1), done(2), score(None)))
    assert sentence.startswith("Nothing is measured")


def test_an_unfinished_run_is_not_judged(tmp_path: Path) -> None:
    assert missing_results(recorded(tmp_path, done(1, None, skipped="nobody"), end=False)) == ()


def call(tmp_path: Path, recipe: str, *settings: str, code: int) -> str:
    path, out = tmp_path / "tiny.toml", tmp_path / "run"
    path.write_text(recipe, encoding="utf-8")
    words = ["run", str(path), "--out", str(out), *(word for one in settings for word in ("--set", one))]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
    assert result.exit_code == code, result.output
    page = (out / "report.html").read_text(encoding="utf-8")
    assert ("not trained" in page) == ("not trained" in result.output)
    return result.output


def test_a_run_that_trains_ends_with_exit_code_0(tmp_path: Path) -> None:
    said = call(tmp_path, RECIPE, code=0)
    assert "not trained" not in said and "tested" not in said


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("train.server.most_examples=1",), "(no update could be used)"),
        (
            ("train.rounds=4", "train.server.secure={share=1.0}", "train.server.attack={name='broken',adversaries=1}"),
            "none of the 4 rounds counted (secure: the secure sum of round 4 is abandoned",
        ),
        (("train.lr=1e-30",), "2 rounds changed no tensor"),
        (("train.lr=1e-30", "train.sharing='local'"), "2 rounds changed no tensor"),
    ],
)
def test_a_run_that_changes_nothing_ends_with_exit_code_1(
    settings: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    said = call(tmp_path, RECIPE, *settings, code=1)
    assert "PromptFL is not trained:" in said and reason in said and "PromptFL (not trained)" in said


def test_a_run_without_test_images_says_so_before_training_and_ends_with_exit_code_1(tmp_path: Path) -> None:
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        for number in range(3):
            path = tmp_path / "images" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), tuple(max(0, part - number) for part in colour)).save(path)
    recipe = f"""
name = "tiny"
[data]
source = "image_folder"
path = "{tmp_path / "images"}"
test_fraction = 0.0
[partition]
rule = "iid"
clients = 2
[method]
name = "promptfl"
[train]
rounds = 1
"""
    said = call(tmp_path, recipe, code=1)
    warning, trained = (
        said.index("has no test images, so this run will train and test nothing"),
        said.index("round 1/1"),
    )
    assert warning < trained < said.index("Nothing is tested: there was no test image")
