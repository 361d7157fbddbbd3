"""The verdict on a run: every sentence follows from the recorded figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedprompt.config.tuned import own_defaults, recommended, tuned_defaults
from fedprompt.ops.bootstrap import chance_average_precision
from fedprompt.records.reading import read_run
from fedprompt.report import render
from fedprompt.report.verdict import chance, verdict

Event = dict[str, Any]
SETTINGS = ["data.path=my images", "backbone.path=demo"]
OWN = "own_folder --set 'data.path=my images' --set backbone.path=demo"
FOUR = ["cat", "dog", "car", "bus"]


def events(figures: dict[str, float], *, losses: tuple[float, ...] = (1.0, 0.5), classes: int = 4) -> list[Event]:
    """A run over four classes with one test set; `zero` is the reference and `ours` the main trial."""
    found: list[Event] = [
        {
            "event": "header",
            "main": "ours",
            "backbone": {"name": "demo"},
            "recipe": {"name": "mine", "data": {"source": "image_folder", "test_fraction": 0.25}},
            "command": {"name": "run", "recipe": "own_folder", "settings": SETTINGS, "folder": "runs/mine"},
            "splits": {"base": "all classes"},
            "data": {"name": "drawings"},
        }
    ]
    for name, value in figures.items():
        rounds = () if name == "zero" else losses
        found.append({"event": "trial", "trial": name, "method": name, "idea": f"{name.title()} (Someone, 2020)."})
        found += [
            {"event": "round", "trial": name, "round": number, "clients": [0], "loss": loss}
            for number, loss in enumerate(rounds, start=1)
        ]
        found.append(
            {"event": "score", "trial": name, "round": len(rounds), "split": "base", "num_examples": 200}
            | {"figures": {"accuracy": value}, "classes": FOUR[:classes]}
        )
    return found


def interval(trial: str, low: float, high: float, against: str = "", **more: Any) -> Event:
    value = (low + high) / 2
    return {
        "event": "interval",
        "trial": trial,
        "column": "base",
        "against": against,
        "value": value,
        "low": low,
        "high": high,
        "images": 200,
    } | more


def said(tmp_path: Path, lines: list[Event]) -> str:
    (tmp_path / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = verdict(read_run(tmp_path))
    return "\n".join((*found.sentences, *(f"Next: {step}" for step in found.steps)))


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.05, "It is better than Zero (60.0%): +3.0 points, interval +1.0 to +5.0."),
        (-0.01, 0.05, "It is not distinguishable from Zero (60.0%): +2.0 points, interval -1.0 to +5.0."),
        (-0.05, -0.01, "It is worse than Zero (60.0%): -3.0 points, interval -5.0 to -1.0."),
    ],
)
def test_the_comparison_with_zero_shot_follows_the_interval_of_the_difference(
    low: float, high: float, words: str, tmp_path: Path
) -> None:
    lines = [*events({"zero": 0.60, "ours": 0.63}), interval("ours", 0.58, 0.68), interval("ours", low, high, "zero")]
    text = said(tmp_path, lines)
    assert "Ours reaches Base 63.0% (95% interval 58.0% to 68.0%; 200 test images" in text.replace(", 200", "; 200")
    assert words in text and "random guessing gives 25.0%" in text
    tune = f"fedprompt tune {OWN} --method {','.join(recommended('single'))} --minutes 30"
    assert (tune in text) is (low <= 0)
    assert (f"fedprompt compare {OWN} --seeds 1,2,3" in text) is not (low < 0 < high)


def test_without_new_classes_the_figure_is_that_of_the_test_images(tmp_path: Path) -> None:
    lines = events({"zero": 0.60, "ours": 0.63})
    lines[0]["data"] |= {"base": FOUR}
    assert "Ours reaches Test 63.0%" in said(tmp_path, lines)
    lines[0]["data"] |= {"new": ["tram"]}
    assert "Ours reaches Base 63.0%" in said(tmp_path, lines)


def test_without_intervals_the_difference_is_given_and_called_so(tmp_path: Path) -> None:
    text = said(tmp_path, events({"zero": 0.60, "ours": 0.63}))
    assert "That is +3.0 points against Zero (60.0%); no interval is recorded." in text


def test_other_methods_are_grouped_by_the_sign_of_the_difference(tmp_path: Path) -> None:
    lines = events({"zero": 0.60, "rival": 0.5, "twin": 0.62, "ours": 0.63})
    lines += [interval("ours", 0.1, 0.16, "rival"), interval("ours", -0.01, 0.03, "twin")]
    text = said(tmp_path, lines)
    assert "It is better than Rival (+13.0 points" in text
    assert "It is not distinguishable from Twin (+1.0 points" in text


def test_training_is_said_to_change_no_prediction_only_if_none_differs(tmp_path: Path) -> None:
    lines = events({"zero": 0.60, "rival": 0.60, "ours": 0.63})
    assert "their predictions have not been compared" in said(tmp_path, lines)
    same = [*lines, interval("rival", -0.1, 0.1, "zero", changed=0)]
    assert "The figures of Zero and Rival are identical: training changed no prediction." in said(tmp_path, same)
    other = said(tmp_path, [*lines, interval("rival", -0.1, 0.1, "zero", changed=4)])
    assert "Zero and Rival have the same accuracy, though 4 of 200 predictions differ." in other
    assert "identical" not in other and "no prediction" not in other


def test_equal_trained_methods_are_compared_with_each_other(tmp_path: Path) -> None:
    lines = [*events({"zero": 0.60, "rival": 0.63, "ours": 0.63}), interval("ours", -0.1, 0.1, "rival", changed=0)]
    assert "The figures of Rival and Ours are identical: they predict the same." in said(tmp_path, lines)


@pytest.mark.parametrize(("losses", "moved"), [((1.0, 0.995), False), ((1.0, 0.9), True), ((1.0, 1.3), True)])
def test_a_loss_that_hardly_moved_is_said_with_what_to_do(
    losses: tuple[float, ...], moved: bool, tmp_path: Path
) -> None:
    text = said(tmp_path, events({"zero": 0.60, "ours": 0.63}, losses=losses))
    assert ("hardly moved" in text) is not moved and ("Raise the learning rate" in text) is not moved


def test_a_backbone_at_chance_level_is_named(tmp_path: Path) -> None:
    lines = [*events({"zero": 0.26, "ours": 0.30}), interval("zero", 0.2, 0.32), interval("ours", 0.24, 0.36)]
    lines[0]["backbone"] = {"name": "some/clip"}
    text = said(tmp_path, lines)
    assert "the backbone some/clip cannot be told from random guessing here: the interval of Zero covers" in text
    assert "trained on drawings" not in text and "class names in plain English" in text


@pytest.mark.parametrize("low", [0.2, 0.3])
def test_the_embedded_clip_on_own_images_is_said_to_know_drawings_whatever_the_interval(
    low: float, tmp_path: Path
) -> None:
    lines = [*events({"zero": 0.33, "ours": 0.34}), interval("zero", low, 0.36), interval("ours", 0.3, 0.36)]
    text = said(tmp_path, lines)
    assert "The embedded demo CLIP was trained on emoji and knows neither photographs nor most other drawings." in text
    assert (
        "fedprompt backbone fetch openai/clip-vit-base-patch16 clip-b16 (on a machine with a network), then "
        "fedprompt run own_folder --set "
        "'data.path=my images' --set backbone.path=clip-b16" in text
    )
    lines[0]["recipe"]["data"]["source"] = "emoji"
    assert "trained on drawings" not in said(tmp_path, lines)


def test_drawings_of_ones_own_are_no_photographs(tmp_path: Path) -> None:
    lines = [*events({"zero": 0.83, "ours": 0.84}), interval("zero", 0.7, 0.9), interval("ours", 0.7, 0.9)]
    assert "photographs" not in said(tmp_path, lines)


def test_a_run_from_python_proposes_calls(tmp_path: Path) -> None:
    lines = [*events({"zero": 0.30, "rival": 0.4, "ours": 0.33}), interval("ours", -0.1, 0.2, "zero", images=20)]
    lines[0]["command"] = {"name": "run", "folder": "", "python": True}
    lines[0]["data"]["origins"] = {"splits": "drawn with the seed 0, 25% for testing"}
    text = said(tmp_path, lines)
    assert 'clip = fp.load_clip("openai/clip-vit-base-patch16")' in text
    first, *others = recommended("single")
    assert f'fp.tune("{first}", clip, data, clients, compare={json.dumps(others)}, minutes=30)' in text
    assert "fp.load_dataset(..., test_fraction=0.4)" in text
    assert "Predict with Rival: run.adapter('rival').predict(images)" in text
    assert "fedprompt " not in text


@pytest.mark.parametrize("python", [False, True])
def test_an_interrupted_run_says_where_and_what_is_missing(python: bool, tmp_path: Path) -> None:
    lines = events({"ours": 0.63})
    lines[0]["recipe"] |= {"method": {"name": "ours"}, "compare": [{"name": "zero"}, {"name": "x", "label": "rival"}]}
    lines[0]["command"] |= {"python": python}
    lines += [{"event": "trial", "trial": "ours", "status": "interrupted", "rounds": 5}]
    assert "interrupted" not in said(tmp_path, lines)
    text = said(tmp_path, [*lines, {"event": "end", "status": "interrupted"}])
    assert text.startswith("The run was interrupted: Ours after round 2 of 5; zero and rival have not begun.")
    going_on = "fp.resume('runs/mine', clip=clip" if python else "fedprompt resume runs/mine"
    assert f"Next: Go on: {going_on}" in text


def test_another_method_with_a_higher_figure_is_named_with_the_command_that_predicts_with_it(tmp_path: Path) -> None:
    lines = [*events({"zero": 0.60, "rival": 0.70, "ours": 0.63}), interval("ours", -0.1, -0.04, "rival")]
    text = said(tmp_path, lines)
    assert "The best method is Rival with Base 70.0%, above Ours by more than the interval." in text
    assert "Predict with Rival: fedprompt predict runs/mine IMAGES --trial rival" in text
    lines[-1] = interval("ours", -0.1, 0.04, "rival")
    assert "with Base 70.0%, above Ours by no more than the interval." in said(tmp_path, lines)
    text = said(tmp_path, events({"zero": 0.70, "rival": 0.65, "ours": 0.63}))
    assert "The best method is Zero with Base 70.0%" in text, "no trained method is called best below zero-shot"
    assert "Predict with Zero: fedprompt predict runs/mine IMAGES --trial zero" in text
    text = said(tmp_path, events({"zero": 0.60, "rival": 0.61, "ours": 0.63}))
    assert "The best method" not in text and "Predict with Ours: fedprompt predict runs/mine IMAGES" in text
    assert "--trial" not in text


def test_a_method_with_fewer_rounds_than_the_recipe_has_is_named_and_more_time_comes_first(tmp_path: Path) -> None:
    lines = events({"zero": 0.60, "ours": 0.63}, losses=(1.0, 0.8, 0.6))
    budget = {"event": "budget", "first_round": 1.0, "round": 1.0, "scoring": 1.0, "seconds": 60.0}
    lines += [budget | {"name": "ours", "rounds": 3, "wanted": 30, "needed": 600.0}]
    text = said(tmp_path, lines)
    assert "Ours had 3 of 30 rounds and its loss was still falling: 12 minutes would fit all." in text
    assert text.split("Next: ")[1].startswith(f"Give more time: fedprompt run {OWN} --minutes 12")
    lines[-1] |= {"rounds": 30}
    assert "--minutes 12" not in said(tmp_path, lines)


def test_the_time_for_all_rounds_is_that_of_the_rounds_that_were_trained(tmp_path: Path) -> None:
    lines = events({"zero": 0.60, "ours": 0.63}, losses=(1.0, 0.8, 0.6))
    for line in lines:
        if line["event"] == "round":
            line["seconds"] = 40.0 if line["round"] == 1 else 4.0
    lines.append({"event": "trial", "trial": "ours", "status": "done", "seconds": 50.0})
    budget = {"event": "budget", "first_round": 11.0, "round": 11.0, "scoring": 1.0, "seconds": 60.0}
    lines.append(budget | {"name": "ours", "rounds": 3, "wanted": 30, "needed": 600.0})
    assert ": 4 minutes would fit all." in said(tmp_path, lines), "1.15 x (50 s + 27 rounds of 4 s)"
    lines[0]["command"]["minutes"] = 4.0
    text = said(tmp_path, lines)
    assert "they were planned while the machine was busy. By the time that the rounds took, 4 minutes fit all." in text
    assert f"Next: Run it again on a quiet machine, where all rounds fit: fedprompt run {OWN} --minutes 4" in text
    assert "Give more time" not in text


def test_a_tuning_without_time_for_all_rounds_says_so_with_what_trains_them(tmp_path: Path) -> None:
    lines = events({"zero": 0.60, "ours": 0.63}, losses=(1.0, 0.8, 0.6))
    lines[0]["recipe"]["train"] = {"rounds": 3}
    lines[0]["command"] |= {"name": "tune", "minutes": 5.0, "folder": "runs/mine/final"}
    next(line for line in lines if line["event"] == "trial" and line["trial"] == "ours")["rounds"] = 3
    assert "of 30 rounds" not in said(tmp_path, lines)
    lines[0]["command"]["rounds"] = 30
    text = said(tmp_path, lines)
    assert (
        "Ours had 3 of 30 rounds, as many as were planned, from the first training steps, to fit into the time" in text
    )
    assert "that were found: fedprompt run runs/mine/best.toml --set train.rounds=30" in text


def test_a_tuning_whose_choice_is_not_the_highest_on_the_test_images_says_by_what_each_won(tmp_path: Path) -> None:
    lines = [*events({"zero": 0.60, "rival": 0.70, "ours": 0.63}), interval("ours", -0.1, 0.04, "rival")]
    lines[0]["command"] |= {"name": "tune", "folder": "runs/mine/final"}
    text = said(tmp_path, lines)
    assert "The search chose Ours by held-out images, and on the test images Rival is higher, Base 70.0%, above" in text
    assert "so Ours stays the choice" in text and "The best method is" not in text
    assert "Predict with Ours: fedprompt predict runs/mine/final IMAGES" in text and "--trial" not in text


def test_after_a_tuning_the_settings_that_were_found_are_kept_or_searched_again(tmp_path: Path) -> None:
    lines = [*events({"zero": 0.60, "ours": 0.63}), interval("ours", 0.01, 0.05, "zero", images=20)]
    lines[0]["command"] |= {"name": "tune", "minutes": 4.0, "folder": "runs/my tune/final"}
    assert "not that of seeds: fedprompt compare 'runs/my tune/best.toml' --seeds 1,2,3\n" in said(tmp_path, lines)
    lines[0]["data"]["origins"] = {"splits": "drawn with the seed 1, 25% for testing"}
    text = said(tmp_path, lines)
    again = "--method ours --minutes 4 --out 'runs/my tune-2'"
    assert f"hold more back: fedprompt tune {OWN} --set data.test_fraction=0.4 {again}" in text
    assert f"then fedprompt tune {OWN[:-4]}clip-b16 {again}" in text
    assert "fedprompt run" not in text
    lines[0]["command"]["python"] = True
    assert 'fp.train(..., **tuned.settings["ours"], seed=seed) for seed in (1, 2, 3)' in said(tmp_path, lines)


def test_a_search_after_a_tuning_has_a_folder_of_its_own(tmp_path: Path) -> None:
    lines = [*events({"zero": 0.60, "ours": 0.63}), interval("ours", -0.05, -0.01, "zero")]
    lines[0]["command"] |= {"name": "tune", "minutes": 4.0, "folder": "runs/mine/final"}
    names = ",".join(recommended("single"))
    assert f"fedprompt tune {OWN} --method {names} --minutes 30 --out runs/mine-2" in said(tmp_path, lines)
    lines[0]["command"]["rounds"] = 30
    next(line for line in lines if line["event"] == "trial" and line["trial"] == "ours")["rounds"] = 2
    lines[0]["recipe"]["train"] = {"rounds": 2}
    (tmp_path / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for place, best in ((".", "../best.toml"), ("final", "best.toml"), ("moved/final", "moved/best.toml")):
        assert f"found: fedprompt run {best} --set train.rounds=30" in " ".join(
            verdict(read_run(tmp_path), folder=place).steps
        )


def test_the_time_that_was_given_is_kept_in_what_is_proposed(tmp_path: Path) -> None:
    lines = [*events({"zero": 0.60, "ours": 0.63}), interval("ours", 0.01, 0.05, "zero", images=20)]
    lines[0]["command"]["minutes"] = 7.5
    lines[0]["data"]["origins"] = {"splits": "drawn with the seed 1, 25% for testing"}
    text = said(tmp_path, lines)
    assert f"fedprompt run {OWN} --set data.test_fraction=0.4 --minutes 7.5" in text
    assert f"fedprompt compare {OWN} --set minutes=7.5 --seeds 1,2,3" in text
    assert f"{OWN[:-4]}clip-b16 --minutes 7.5" in text


def test_methods_that_the_backbone_cannot_carry_are_not_proposed(tmp_path: Path) -> None:
    lines = [*events({"zero": 0.60, "ours": 0.63}), interval("ours", -0.1, 0.2, "zero")]
    first, *others = recommended("single")
    lines[0]["backbone"] = {"name": "clip", "refused": [first]}
    assert f"--method {','.join(others)} --minutes" in said(tmp_path, lines)


def test_methods_whose_package_is_missing_are_not_proposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [*events({"zero": 0.60, "ours": 0.63}), interval("ours", -0.1, 0.2, "zero")]
    assert "fedlora" in said(tmp_path, lines)
    monkeypatch.setattr("fedprompt.methods.find_spec", lambda name: None)
    left = ",".join(name for name in recommended("single") if name != "fedlora")
    assert f"--method {left} --minutes" in said(tmp_path, lines)


def test_methods_that_have_run_are_not_proposed_again(tmp_path: Path) -> None:
    lines = [*events({"zero": 0.60, "fedlora": 0.6, "ours": 0.63}), interval("ours", -0.1, 0.2, "zero")]
    left = ",".join(name for name in recommended("single") if name != "fedlora")
    assert f"--method {left} --minutes" in said(tmp_path, lines)
    lines[0]["data"]["kind"] = "multi"
    left = ",".join(name for name in recommended("multi") if name != "fedlora")
    assert f"--method {left} --minutes" in said(tmp_path, lines)
    every = dict.fromkeys(("zero", *recommended("multi"), "ours"), 0.6)
    lines = [*events(every), interval("ours", -0.1, 0.2, "zero")]
    lines[0]["data"]["kind"] = "multi"
    assert (
        "Search learning rates" in (text := said(tmp_path, lines))
        and f"--method {','.join(recommended('multi'))},ours" in text
    )
    lines[0]["command"]["name"] = "tune"
    assert "held-out training images" not in said(tmp_path, lines)


def test_the_methods_to_try_first_are_those_with_the_largest_gains_on_small_sets() -> None:
    for kind in ("single", "multi"):
        gains = {name: one["gain"] for name, one in tuned_defaults()[own_defaults(kind)[0]].items()}
        best = recommended(kind)
        assert best, kind
        assert min(gains[name] for name in best) > 0
        assert min(gains[name] for name in best) >= max(gain for name, gain in gains.items() if name not in best)
        assert sorted(best, key=lambda name: -gains[name]) == list(best)


@pytest.mark.parametrize(("predicted", "collapsed"), [(38, True), (20, False)])
def test_predictions_that_collapse_to_one_class_are_said(predicted: int, collapsed: bool, tmp_path: Path) -> None:
    lines = events({"zero": 0.60, "ours": 0.63})
    classes = [{"name": "cat", "images": 13, "predicted": predicted, "right": 9}]
    classes += [{"name": "dog", "images": 79, "predicted": 92 - predicted, "right": 9}]
    lines.append({"event": "mistakes", "trial": "ours", "split": "base", "images": 92, "classes": classes})
    text = said(tmp_path, lines)
    sentence = "Ours predicts cat for 38 of 92 images (13 have it): its predictions collapse towards one class."
    assert (sentence in text) is collapsed and ("collapse" in text) is collapsed


def test_the_share_of_the_largest_class_always_stands_beside_chance(tmp_path: Path) -> None:
    lines = events({"zero": 0.60, "ours": 0.63})
    for most in (60, 30):
        counts = {"cat": most, "dog": 20, "car": 20, "bus": 100 - 40 - most if most == 60 else 30}
        classes = [{"name": name, "images": count, "predicted": count, "right": 9} for name, count in counts.items()]
        event = {"event": "mistakes", "trial": "ours", "split": "base", "images": 100, "classes": classes}
        text = said(tmp_path, [*lines, event])
        assert f"random guessing gives 25.0%, always answering cat {most}.0%)" in text


def test_labels_that_are_never_predicted_are_named_with_the_threshold(tmp_path: Path) -> None:
    lines = events({"zero": 0.60, "ours": 0.63})
    lines[0] |= {"metric": "mean_average_precision", "further": ["of1_tuned"]}
    for line in lines:
        if line["event"] == "score":
            line["figures"] = {"mean_average_precision": 0.6, "of1_tuned": 0.4}
    rows = [("round", 9, 4), ("bluish", 7, 0), ("absent", 0, 0), ("bright", 3, 0)]
    classes = [{"name": name, "images": images, "predicted": made, "right": 0} for name, images, made in rows]
    event = {"event": "mistakes", "trial": "ours", "split": "base", "images": 20, "classes": classes}
    text = said(tmp_path, [*lines, event | {"threshold": 0.19}])
    assert (
        "At the threshold 0.19, fitted on training images, 2 of 3 labels are never predicted on the test images: "
        "bluish, bright (see" in text
    )
    assert "At the threshold" not in said(tmp_path, [*lines, event]), "with one label there is no threshold"


@pytest.mark.parametrize(
    ("rights", "text"),
    [
        ([9, 0, 0, 3], "Ours never predicts 2 of 4 classes rightly: dog, car (1 of them not at all: car); see"),
        ([9, 2, 0, 3], "Ours never predicts 1 of 4 classes rightly: car; see"),
        ([9, 2, 1, 3], ""),
    ],
)
def test_classes_that_are_never_recognised_are_named(rights: list[int], text: str, tmp_path: Path) -> None:
    lines = events({"zero": 0.5, "ours": 0.6})
    classes = [
        {"name": name, "images": 10, "predicted": right + (name == "dog"), "right": right}
        for name, right in zip(FOUR, rights, strict=True)
    ]
    lines.append({"event": "mistakes", "trial": "ours", "split": "base", "name": "all", "classes": classes})
    found = said(tmp_path, lines)
    assert text in found if text else "never predicts" not in found


@pytest.mark.parametrize("named", [0, 60])
def test_test_images_that_look_like_training_images_are_said_with_what_to_do(named: int, tmp_path: Path) -> None:
    lines = events({"zero": 0.5, "ours": 0.6})
    assert "almost like a training image" not in said(tmp_path, lines)
    lines[0]["data"] |= {"images": {"test": 104}, "near_duplicates": 67, "near_of_same_name": named}
    lines[0]["data"]["origins"] = {"splits": "drawn"}
    lines[0]["recipe"]["data"]["names_together"] = False
    text = said(tmp_path, lines)
    assert "67 of 104 test images look almost like a training image" in text
    assert ("--set data.names_together=true" in text) == bool(named)
    assert ("what lists them: fedprompt check own_folder" in text) == (not named)
    lines[0]["data"]["origins"] = {"splits": "folders"}
    assert "Remove images that show the same" in said(tmp_path, lines)  # no option changes a split that is given
    lines[0]["data"]["origins"] = {"splits": "drawn"}
    lines[0]["recipe"]["data"]["names_together"] = True
    assert "the intervals take them together" in said(tmp_path, lines)


def test_the_seconds_of_a_resumed_trial_are_at_least_those_of_its_rounds(tmp_path: Path) -> None:
    lines = events({"zero": 0.5, "ours": 0.6}, losses=(1.0, 0.5))
    for line in lines:
        line |= {"seconds": 40.0} if line["event"] == "round" else {}
    next(line for line in lines if line.get("trial") == "ours")["seconds"] = 29.4
    said(tmp_path, lines)
    assert (main := read_run(tmp_path).main) is not None and main.seconds == 80.0


def test_candidate_classes_without_test_images_are_named(tmp_path: Path) -> None:
    lines = events({"zero": 0.60, "ours": 0.63})
    assert "no test image" not in said(tmp_path, lines)
    for line in lines:
        if line["event"] == "score":
            line["per_class"] = [0.5, 1.0, 0.4, None]
    assert "1 of 4 classes has no test image, so nothing is known about it: bus." in said(tmp_path, lines)


def test_clients_with_one_candidate_class_are_counted(tmp_path: Path) -> None:
    lines = events({"zero": 0.60, "ours": 0.63})
    lines += [
        {"event": "score", "trial": "ours", "round": 2, "split": "local", "client": client, "num_examples": 9}
        | {"figures": {"accuracy": 1.0}, "classes": FOUR[: client + 1]}
        for client in range(3)
    ]
    assert "1 of 3 clients hold images of one class only; their Local figure is 100%" in said(tmp_path, lines)


def test_a_run_that_was_ended_before_its_last_round_says_so(tmp_path: Path) -> None:
    lines = events({"zero": 0.60, "ours": 0.63})
    lines.append({"event": "trial", "trial": "ours", "status": "done", "rounds": 6})
    assert "Ours trained 2 of 6 rounds: a callback ended it." in said(tmp_path, lines)
    lines[-1]["rounds"] = 2
    assert "of 2 rounds" not in said(tmp_path, lines)
    lines[-1] |= {"rounds": 6, "status": "interrupted"}
    assert "a callback" not in said(tmp_path, lines)


def test_clients_without_a_gain_are_named_worst_first(tmp_path: Path) -> None:
    lines = events({"zero": 0.60, "ours": 0.63})
    after = {"zero": (0.5, 0.6, 0.7, 0.9, 0.8), "ours": (0.6, 0.5, 0.7, 0.4, 0.79)}
    local = [
        {"event": "score", "trial": name, "round": 2, "split": "local", "client": client, "num_examples": 9 + client}
        | {"figures": {"accuracy": value}, "classes": FOUR, "name": f"site_{client}"}
        for name, values in after.items()
        for client, value in enumerate(values)
    ]
    text = said(tmp_path, [*lines, *local])
    worst = "site_3 40.0% (90.0%, 12 images), site_1 50.0% (60.0%, 10 images), site_4 79.0% (80.0%, 13 images)."
    assert f"Local of Ours is below Zero at 3 of 5 clients: {worst}" in text
    assert "Local of Ours is below Zero at none of the 1" not in said(tmp_path, [*lines, local[0], local[5]]), (
        "one client"
    )
    assert "Local of Ours is below Zero at none of the 2 clients." in said(
        tmp_path, [*lines, local[0], local[2], local[5], local[7]]
    )
    local[6]["figures"] = {"accuracy": None}
    assert "at 2 of 4 clients" in said(tmp_path, [*lines, *local])


def test_few_test_images_are_said(tmp_path: Path) -> None:
    lines = [*events({"zero": 0.60, "ours": 0.63}), interval("ours", -0.1, 0.2, "zero", images=20)]
    assert "20 test images say little about small differences; add images" in said(tmp_path, lines)
    lines[0]["data"]["origins"] = {"splits": "drawn with the seed 1, 25% for testing"}
    assert f"hold more back: fedprompt run {OWN} --set data.test_fraction=0.4" in said(tmp_path, lines)


def test_a_run_without_scores_has_no_verdict(tmp_path: Path) -> None:
    assert said(tmp_path, events({})) == ""


def test_the_chance_level_of_many_labels_is_the_expected_precision_of_random_orders(tmp_path: Path) -> None:
    lines = events({"zero": 0.60, "ours": 0.63}, classes=2)
    lines[0]["metric"] = "mean_average_precision"
    for line in lines:
        if line["event"] == "score":
            line["figures"] = {"mean_average_precision": 0.6}
    lines.append({"event": "cooccurrence", "split": "base", "classes": FOUR[:2], "counts": [[100, 10], [10, 20]]})
    said(tmp_path, lines)
    assert chance(read_run(tmp_path), "base") == pytest.approx(
        (chance_average_precision(100, 200) + chance_average_precision(20, 200)) / 2
    )


def test_the_report_shows_verdict_and_intervals(tmp_path: Path) -> None:
    lines = [*events({"zero": 0.60, "ours": 0.63}), interval("ours", 0.58, 0.68), interval("ours", 0.01, 0.05, "zero")]
    said(tmp_path, lines)
    html = render(tmp_path).read_text(encoding="utf-8")
    assert "It is better than Zero" in html and html.index("It is better") < html.index("<nav")
    assert "58.0 to 68.0" in html
