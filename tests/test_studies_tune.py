"""Tuning for one's own data: rates searched on held-out images within a budget of time, then a run with the best."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import fedprompt as fp
from fedprompt.cli.main import app
from fedprompt.config.recipe import find_recipe, load_recipe, parse_recipe
from fedprompt.config.tuned import tuned_defaults
from fedprompt.errors import NotFiniteError, UserError
from fedprompt.experiments import run as runs
from fedprompt.experiments.budget import Costs
from fedprompt.experiments.context import RunCallbacks
from fedprompt.experiments.keep import Keep
from fedprompt.experiments.plan import resolve
from fedprompt.records.event_fields import CommandRecord
from fedprompt.records.predictions import read_predictions
from fedprompt.records.reading import read_run
from fedprompt.studies.tune import GRID, Wanted, make_tuning
from fedprompt.studies.tune_results import Result, metric_of, ranked, remarks, result_rows, trainable
from fedprompt.studies.tune_rounds import Rounds, plan_rounds, rounds_in
from fedprompt.studies.tune_run import Tuned

pytestmark = pytest.mark.usefixtures("kept_backbone", "undrawn")

RECIPE = """
name = "small"
seed = 3
compare = [{ name = "zeroshot" }, { name = "fedclip" }]
[data]
source = "emoji"
train = 3
test = 1
[partition]
rule = "class_chunks"
classes_per_client = 20
shots = 3
[method]
name = "promptfl"
[train]
rounds = 2
batch_size = 20
optimizer = "adamw"
[evaluate]
samples = 0
[tuning]
grid = { lr = [0.0001, 0.03] }
"""


@contextmanager
def stopped_after(trials: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C before the trial after so many."""
    train, trained = runs.run_trial, []

    def stop(context: object, trial: SimpleNamespace) -> None:
        if len(trained) == trials:
            raise KeyboardInterrupt
        trained.append(trial.name)
        train(context, trial)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "run_trial", stop)
        yield


def call(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    (folder / "small.toml").write_text(RECIPE, encoding="utf-8")
    return folder


def tune(folder: Path, *words: object, out: str = "out", code: int = 0) -> str:
    return call("tune", folder / "small.toml", "--out", folder / out, *words, code=code)


@pytest.fixture(scope="module")
def said(folder: Path) -> str:
    return tune(folder)


def predictions(folder: Path, run: str, name: str) -> list:
    return list(read_predictions(folder / "out" / run, name))


COSTS = Costs(first_round=10.0, round=2.0, scoring=0.0, final=4.0)


def test_two_thirds_of_the_time_go_to_the_search_and_the_rest_to_the_final_run() -> None:
    # One method at three points: the first round opens images, 8 seconds more. 8 + 3 * 2 * rounds <= 80: 12 rounds.
    found = rounds_in([COSTS], 120.0, points=3, most=50, keep=Keep())
    assert (found.search, found.final) == (12, 18)  # 120 - 80 = 40 = 18 * 2 + 4
    assert (found.search_minutes, found.final_minutes) == (80 / 60, 40 / 60)
    two = rounds_in([COSTS, replace(COSTS, round=4.0, final=0.0)], 240.0, points=3, most=50, keep=Keep())
    assert (two.search, two.final) == (8, 13)  # 8 + 6 + 18 * 8 = 158 <= 160; 82 left: 4 + 13 * 6 = 82


def test_what_the_search_does_not_need_goes_to_the_final_run() -> None:
    found = rounds_in([COSTS], 120.0, points=3, most=5, keep=Keep())
    assert (found.search, found.final) == (5, 5)


def test_scorings_of_held_out_images_cost_time_as_often_as_they_are_due() -> None:
    scored = replace(COSTS, held_out=1.0)
    # Six rounds are scored seven times: 8 + 3 * (6 * 2 + 7) = 65; seven: 8 + 3 * (14 + 8) = 74 <= 80; eight: 83.
    assert rounds_in([scored], 120.0, points=3, most=50, keep=Keep("hm")).search == 7
    # Every fourth round: 8 rounds are scored three times, 8 + 3 * (16 + 3) = 65; ten 4 times: 80; eleven: 86.
    assert rounds_in([scored], 120.0, points=3, most=50, keep=Keep("hm", every=4)).search == 10


def test_too_little_time_is_refused_with_the_time_that_is_needed() -> None:
    # One round at three points costs 8 + 6 = 14 seconds, which are two thirds of 21; one of the final run 6.
    with pytest.raises(UserError, match=r"at each of 3 points of the grid with 1 method, .* need about 0\.4 minutes"):
        rounds_in([COSTS], 20.0, points=3, most=50, keep=Keep())
    assert rounds_in([COSTS], 21.0, points=3, most=50, keep=Keep()).search == 1


def test_the_first_of_equal_rates_is_kept_and_methods_are_ranked_by_their_best() -> None:
    table = SimpleNamespace(title="x")
    found = [
        Result(table, "a", (0.5, 0.7, 0.7)),
        Result(table, "b", (None, 0.9, None)),
        Result(table, "c", (None, None, None)),
        Result(table, "d", (0.9, 0.1, 0.0)),
    ]
    assert [result.best for result in found] == [1, 1, None, 0]
    assert [result.label for result in ranked(found)] == ["b", "d", "a", "c"]
    assert [result.label for result in trainable(found)] == ["b", "d", "a"]
    with pytest.raises(UserError, match="Every method diverged at every point"):
        trainable([found[2]])


def test_a_rate_is_taken_only_if_the_held_out_images_can_tell_it_from_the_default() -> None:
    table = SimpleNamespace(title="x")
    points = ({"lr": 0.001}, {"lr": 0.01}, {"lr": 0.03})
    noise = Result(table, "FedVPT", (0.165, 0.147, 0.126), points, default=1, sure=False, images=45)
    assert (noise.best, noise.highest, noise.value) == (1, 0, 0.147)
    assert noise.sentence(2) == (
        "FedVPT keeps its default lr 0.01 (14.7): lr 0.001 has 16.5, but with 2 rounds per rate and 45 held-out images "
        "the two cannot be told apart."
    )
    assert replace(noise, sure=True).best == 0 and not replace(noise, sure=True).sentence(2)
    assert Result(table, "x", (0.126, 0.126, 0.126), default=2).best == 2, "a tie goes to the default"
    assert Result(table, "x", (0.126, 0.2, None), default=2, sure=False).best == 1, "a default that diverged is none"
    assert Result(table, "x", (0.3, 0.2), default=None, sure=False).best == 0


def test_methods_that_the_held_out_images_cannot_tell_apart_are_named() -> None:
    table = SimpleNamespace(title="x")
    drawn = np.random.default_rng(1).normal(0.3, 0.05, 1000)
    best, near, far = (
        Result(table, label, (value,), images=26, drawn=drawn + shift)
        for label, value, shift in (
            ("FedVPT", 0.297, np.random.default_rng(2).normal(0, 0.05, 1000)),
            ("PromptFL", 0.296, 0.0),
            ("FedOTP", 0.1, -0.3),
        )
    )
    assert remarks([far, near, best], 5) == [
        "FedVPT has the best value (29.7) and is taken, but with 5 rounds per rate and 26 held-out images it cannot be "
        "told apart from PromptFL (29.6)."
    ]
    assert not remarks([best, far], 5) and not remarks([best], 5)
    assert not remarks([best, Result(table, "c", (None,), images=26)], 5), "one that diverged is no rival"


def test_the_grid_is_a_part_of_those_of_the_comparisons() -> None:
    for name in ("compare_single", "compare_multi"):
        grid = load_recipe(find_recipe(name)).tuning.grid
        assert grid.keys() == GRID.keys()
        assert set(GRID["lr"]) <= set(grid["lr"])


def test_the_grid_has_every_default_rate_for_data_of_ones_own() -> None:
    rates = {own["train"]["lr"] for methods in tuned_defaults().values() for own in methods.values()}
    assert rates <= set(GRID["lr"])


def test_the_best_rate_of_each_method_is_trained_and_the_best_method_is_the_main_one(folder: Path, said: str) -> None:
    search, final = (read_run(folder / "out" / name) for name in ("search", "final"))
    values = {trial.name: trial.validations[-1].value for trial in search.trials}
    assert set(values) == {f"{name}-lr-{rate}" for name in ("promptfl", "fedclip") for rate in (0.0001, 0.03)}
    for trial in final.trials:
        if trial.trains:
            rate = trial.about.settings["lr"]
            assert values[f"{trial.name}-lr-{rate}"] == max(values[f"{trial.name}-lr-{one}"] for one in (0.0001, 0.03))
    best = max(values, key=lambda name: values[name])
    assert final.main is not None and best.startswith(final.main.name)
    assert {trial.name for trial in final.trials} == {"promptfl", "fedclip", "zeroshot"}
    shown = f"{100 * values[best]:.1f}"
    assert f"{shown} *" in said and f"**{shown}**" in (folder / "out" / "tuning.md").read_text()


def test_a_search_scores_no_test_image_and_has_the_seed_of_the_recipe(folder: Path, said: str) -> None:
    search, final = (read_run(folder / "out" / name) for name in ("search", "final"))
    assert search.header.seed == final.header.seed == 3
    assert all(not trial.scores and trial.validations for trial in search.trials)
    test_rows = {row for trial in final.trials for one in predictions(folder, "final", trial.name) for row in one.rows}
    for trial in search.trials:
        for name in (trial.name, f"{trial.name}@last"):
            found = predictions(folder, "search", name)
            assert {one.key[0] for one in found} == {"base", "local"}
            assert not test_rows & {row for one in found for row in one.rows}
            held_out = [one for one in found if one.key[0] == "base"]
            value = np.average([one.correct.mean() for one in held_out], weights=[len(one.rows) for one in held_out])
            recorded = (
                trial.validations[-1]
                if name != trial.name
                else next(event for event in trial.validations if event.round == trial.kept.round)
            )
            counts = [recorded.images[one.key[3]] for one in held_out]
            expected = np.average([recorded.scores[one.key[3]]["base"] for one in held_out], weights=counts)
            assert value == pytest.approx(expected)
    assert all(trial.scores and not trial.validations for trial in final.trials)
    assert (folder / "out" / "search" / "partition.json").read_text() == (
        folder / "out" / "final" / "partition.json"
    ).read_text()


def test_the_written_recipe_trains_the_best_method_again_to_the_bit(folder: Path, said: str) -> None:
    assert f"fedprompt run {folder / 'out' / 'best.toml'}" in said
    main = read_run(folder / "out" / "final").main
    assert main is not None
    recipe = load_recipe(folder / "out" / "best.toml")
    assert [table.title for table in (recipe.method, *recipe.compare)] == [main.name, "zeroshot"]
    runs.start(resolve(recipe), folder / "again")
    one, two = (
        load_file(folder / place / "adapters" / main.name / "adapter_model.safetensors")
        for place in ("out/final", "again")
    )
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_folder_of_a_search_stands_for_its_final_run(folder: Path, said: str) -> None:
    fp.load_dataset(train=1, test=1).source.open(0).save(folder / "new.png")
    final = folder / "out" / "final"
    assert call("predict", folder / "out", folder / "new.png") == call("predict", final, folder / "new.png")
    assert fp.load_adapter(folder / "out", trial="promptfl").folder == final / "adapters" / "promptfl"
    text, on = (" ".join(call("resume", folder / "out", *words, code=2).split()) for words in ((), ("--on", "ray")))
    how = f"holds a search, which goes on with the same `fedprompt tune` command with --out {folder / 'out'} as before."
    assert text == on == f"{folder / 'out'} {how}"
    with pytest.raises(UserError, match=r"goes on with the same call of `fedprompt.tune` with out='.*out' as before"):
        fp.resume(folder / "out", progress=False)
    text = call("report", folder / "out", code=2)
    assert text.strip().endswith(f"give the final run of this search, {final}.")


def test_a_search_without_a_final_run_predicts_nothing_and_says_how_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "rounds.json").write_text("{}")
    text = " ".join(call("predict", tmp_path, tmp_path / "rounds.json", code=2).split())
    assert text == (
        f"The final run in {tmp_path / 'final'} has not begun: {tmp_path} holds a search, which goes on with the same "
        f"`fedprompt tune` command with --out {tmp_path} as before."
    )


def test_what_is_done_is_not_done_again_and_what_was_stopped_goes_on(
    folder: Path, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (folder / "out" / name / "run.jsonl").read_bytes() for name in ("search", "final")}
    tune(folder)
    assert before == {name: (folder / "out" / name / "run.jsonl").read_bytes() for name in before}
    with stopped_after(2, monkeypatch):
        tune(folder, out="stopped", code=130)
    tune(folder, out="stopped")
    for name in ("search", "final"):
        one, two = read_run(folder / "out" / name), read_run(folder / "stopped" / name)
        assert [trial.figures for trial in one.trials] == [trial.figures for trial in two.trials]
        assert [trial.validations for trial in one.trials] == [trial.validations for trial in two.trials]


def test_a_recipe_that_keeps_the_best_round_is_searched_by_its_best_rounds(folder: Path) -> None:
    said = tune(folder, "--method", "promptfl", "--set", "train.keep=best:base", out="best")
    search, final = (read_run(folder / "best" / name) for name in ("search", "final"))
    kept = {trial.name: trial.kept for trial in search.trials}
    assert all(one is not None and one.metric == "base" for one in kept.values())
    main = final.main
    assert main is not None and main.kept is not None and main.kept.metric == "base"
    rate = main.about.settings["lr"]
    assert kept[f"promptfl-lr-{rate}"].value == max(one.value for one in kept.values())
    for text in (said, (folder / "best" / "tuning.md").read_text()):
        assert "Base of the best round in percent" in " ".join(text.split())
    assert "the round with the best Base on held-out images" in final.header.protocol


@pytest.mark.parametrize("trains_on_all", [True, False])
def test_the_metric_of_a_search_says_among_which_classes_held_out_images_are_scored(trains_on_all: bool) -> None:
    recipe = parse_recipe(RECIPE)
    kind = "" if trains_on_all else "base "
    said = metric_of(recipe, trains_on_all=trains_on_all)
    assert f"HM (harmonic mean of accuracy among all {kind}classes and Local, among a client's)" in said


def test_local_of_a_search_is_named_as_in_its_final_run_where_clients_may_predict_all_classes(folder: Path) -> None:
    said = tune(folder, "--method", "promptfl", "--set", "partition={rule='iid', clients=2}", out="iid")
    meaning = read_run(folder / "iid" / "final").header.splits["local"]
    among = "among all base classes, since every client may predict any of them"
    assert among in meaning
    for text in (said, (folder / "iid" / "tuning.md").read_text()):
        words = " ".join(text.split())
        assert f"HM (harmonic mean of accuracy among all base classes and Local, {among}; mean over clients" in words


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--method", "promptfll"), "There is no method 'promptfll'; did you mean 'promptfl'?"),
        (("--method", "promptfl,promptfl"), "--method names 'promptfl' twice; name every method once."),
        (("--method", "zeroshot"), "zeroshot trains nothing, so it has nothing to tune; leave it out of --method."),
        (("--method", "promptfl,"), "--method 'promptfl,' has an empty name; write e.g. --method fedvpt,promptfl."),
        (
            ("--set", "tuning.grid={lrr=[0.1]}"),
            "[tuning]: has no key 'lrr'; did you mean 'lr'?",
        ),
        (("--minutes", "nan"), "--minutes nan is not a finite number; give one."),
        (
            ("--minutes", "0.01", "--set", "train.local_epochs=50"),
            "give more --minutes, fewer methods, or fewer images per class (partition.shots).",
        ),
    ],
)
def test_bad_input_is_refused_in_a_sentence(words: tuple[str, ...], sentence: str, folder: Path) -> None:
    text = tune(folder, *words, out="bad", code=2)
    assert sentence in " ".join(text.split())
    assert not (folder / "bad" / "search").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("tune", "small.toml"),
        ("compare", "small.toml"),
        ("compare", "out/final"),
        ("reproduce", "fedmvp/base-to-new", "--root", "."),
    ],
)
def test_a_study_is_not_written_into_the_folder_of_a_run(
    words: tuple[str, ...], folder: Path, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run = folder / "out" / "final"
    before = sorted(run.iterdir())
    text = " ".join(call(*words, "--out", "out/final", code=2).split())
    assert text == (
        "The folder out/final already holds a run; continue it with `fedprompt resume out/final`, delete it, or choose "
        "another folder with --out."
    )
    assert sorted(run.iterdir()) == before
    with pytest.raises(UserError, match=r"already holds a run.* or choose another folder with `out`"):
        fp.tune("small.toml", out=run, progress=False)
    with pytest.raises(UserError, match=r"already holds a run.* or choose another folder with `out`"):
        fp.reproduce("fedmvp/base-to-new", root=".", out=run)


def test_another_time_than_the_search_began_with_is_refused(folder: Path, said: str) -> None:
    text = tune(folder, "--minutes", "9", code=2)
    assert "holds a search with no limit of time; give the same, or another folder with --out." in text


def test_the_numbers_of_rounds_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = resolve(parse_recipe(RECIPE)).recipe
    tuning, experiment = make_tuning(
        recipe, Wanted(["promptfl"]), tmp_path, origin="small.toml", callbacks=RunCallbacks()
    )
    monkeypatch.setattr("fedprompt.studies.tune_rounds.measure", lambda *_, **__: replace(COSTS, first_round=2.0))
    first = plan_rounds(tuning, experiment, 10.0, callbacks=RunCallbacks())
    assert (first.minutes, first.search, first.final) == (10.0, 2, 2), "the recipe has two rounds"
    assert Rounds(**json.loads((tmp_path / "rounds.json").read_text())) == first
    monkeypatch.setattr("fedprompt.studies.tune_rounds.measure", lambda *_, **__: pytest.fail("measured twice"))
    assert plan_rounds(tuning, experiment, 10.0, callbacks=RunCallbacks()) == first
    assert re.fullmatch(r"Of 10 minutes the search takes about [\d.]+ \(2 rounds at each rate\) .*", first.sentence)
    assert "Rates compared after 2 rounds are weak evidence" in first.sentence
    assert "weak evidence" not in replace(first, search=5).sentence


def test_the_final_run_records_the_rounds_of_the_recipe_if_it_has_no_time_for_all(tmp_path: Path) -> None:
    recipe = resolve(parse_recipe(RECIPE)).recipe
    wanted = Wanted(["promptfl"])
    tuning, _ = make_tuning(recipe, wanted, tmp_path, origin="small.toml", callbacks=RunCallbacks())
    tuning = replace(tuning, command=CommandRecord(name="tune", recipe="small.toml"))
    found = Result(recipe.method.model_copy(update={"name": "promptfl"}), "PromptFL", (0.5,), ({"lr": 0.1},))
    for rounds, recorded in ((1, 2), (2, 0)):
        job = Tuned(tuning, (found,), Rounds(5.0, 1, rounds)).final_job
        assert job.command is not None and job.command.rounds == recorded
        assert job.recipe.train.rounds == rounds


def test_a_rate_that_diverges_does_not_end_the_search(folder: Path) -> None:
    out = tune(folder, "--method", "promptfl", "--set", "tuning.grid.lr=[1e30,0.01]", out="wild")
    assert "promptfl-lr-1e+30 diverged and counts as the worst: The loss of PromptFL became" in " ".join(out.split())
    assert "| PromptFL | diverged | **" in (folder / "wild" / "tuning.md").read_text()
    (trial,) = (one for one in read_run(folder / "wild" / "final").trials if one.trains)
    assert trial.about.settings["lr"] == 0.01
    with pytest.raises(NotFiniteError):
        runs.start(resolve(parse_recipe(RECIPE, ["train.lr=1e30", "compare=[]"])), folder / "alone")


def test_methods_that_were_tried_at_different_points_are_shown_with_what_each_keeps() -> None:
    table = SimpleNamespace(title="x")
    one = Result(table, "a", (0.5, 0.7), ({"lr": 0.1}, {"lr": 0.2}), default=0)
    two = Result(table, "b", (None, 0.9), ({"lr": 0.1}, {"lr": 0.3}), default=0)
    head, rows = result_rows([one, two])
    assert head == ["method", "tried", "default", "kept", "settings"]
    assert [[cell.text for cell in row] for row in rows] == [
        ["b", "2", "diverged", "90.0", "lr 0.3"],
        ["a", "2", "50.0", "70.0", "lr 0.2"],
    ]


def drawn(folder: Path, *words: object, out: str = "drawn", draws: int = 3, code: int = 0) -> str:
    return tune(folder, "--method", "promptfl", "--draws", str(draws), *words, out=out, code=code)


@pytest.fixture(scope="module")
def draws(folder: Path) -> str:
    pytest.importorskip("optuna", reason="drawing needs the extra `tune`")
    return drawn(folder)


def rates(folder: Path, out: str) -> list[float]:
    parts = sorted((folder / out / "search").iterdir())
    return [trial.about.settings["lr"] for part in parts for trial in read_run(part).trials]


def test_optuna_draws_from_between_the_ends_of_the_grid_and_tries_the_default_first(folder: Path, draws: str) -> None:
    default = load_recipe(folder / "small.toml").train.lr
    first, *others = rates(folder, "drawn")
    assert first == default and len(others) == 2
    assert all(0.0001 <= rate <= max(0.03, default) for rate in others) and len({first, *others}) == 3
    values = [read_run(part).trials[0].validations[-1].value for part in sorted((folder / "drawn/search").iterdir())]
    final = read_run(folder / "drawn" / "final").main
    assert final is not None and final.about.settings["lr"] in rates(folder, "drawn")
    assert f"| method | lr {default} | lr " in (folder / "drawn" / "tuning.md").read_text()
    assert f"{100 * values[0]:.1f}" in draws


def test_a_stopped_search_by_optuna_draws_the_same_points_and_a_longer_one_keeps_them(
    folder: Path, draws: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped_after(1, monkeypatch):
        drawn(folder, out="halted", code=130)
    drawn(folder, out="halted")
    assert rates(folder, "halted") == rates(folder, "drawn")
    before = (folder / "halted" / "search" / "000" / "run.jsonl").read_bytes()
    drawn(folder, out="halted")
    assert (folder / "halted" / "search" / "000" / "run.jsonl").read_bytes() == before


def test_a_damaged_storage_of_optuna_is_a_sentence(folder: Path, draws: str) -> None:
    (folder / "damaged").mkdir()
    (folder / "damaged" / "optuna.db").write_bytes(b"no database" * 100)
    said = " ".join(drawn(folder, out="damaged", code=2).split())
    assert "optuna.db cannot be read by Optuna" in said and "delete it" in said


def test_without_optuna_the_fix_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedprompt.studies.tune_optuna.find_spec", lambda _: None)
    assert "pip install 'fedprompt[tune]'" in drawn(folder, out="none", code=2)
    assert not (folder / "none").exists()
