"""The verdict on a run: every sentence follows from the recorded figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedprompt.records.reading import read_run
from fedprompt.report import render
from fedprompt.report.verdict import chance, verdict

Event = dict[str, Any]
FOUR = ["cat", "dog", "car", "bus"]


def events(figures: dict[str, float], *, losses: tuple[float, ...] = (1.0, 0.5), classes: int = 4) -> list[Event]:
    """A run over four classes with one test set; `zero` is the reference and `ours` the main trial."""
    found: list[Event] = [
        {
            "event": "header",
            "main": "ours",
            "backbone": {"name": "demo"},
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
    assert ("fedprompt tune RECIPE --method" in text) is (low <= 0)


def test_without_intervals_the_difference_is_given_and_called_so(tmp_path: Path) -> None:
    text = said(tmp_path, events({"zero": 0.60, "ours": 0.63}))
    assert "That is +3.0 points against Zero (60.0%); no interval is recorded." in text


def test_other_methods_are_grouped_by_the_sign_of_the_difference(tmp_path: Path) -> None:
    lines = events({"zero": 0.60, "rival": 0.5, "twin": 0.62, "ours": 0.63})
    lines += [interval("ours", 0.1, 0.16, "rival"), interval("ours", -0.01, 0.03, "twin")]
    text = said(tmp_path, lines)
    assert "It is better than Rival (+13.0 points" in text
    assert "It is not distinguishable from Twin (+1.0 points" in text


def test_identical_rows_are_called_identical(tmp_path: Path) -> None:
    text = said(tmp_path, events({"zero": 0.60, "rival": 0.60, "ours": 0.63}))
    assert "The figures of Zero and Rival are identical: training changed no prediction." in text


@pytest.mark.parametrize(("losses", "moved"), [((1.0, 0.995), False), ((1.0, 0.9), True), ((1.0, 1.3), True)])
def test_a_loss_that_hardly_moved_is_said_with_what_to_do(
    losses: tuple[float, ...], moved: bool, tmp_path: Path
) -> None:
    text = said(tmp_path, events({"zero": 0.60, "ours": 0.63}, losses=losses))
    assert ("hardly moved" in text) is not moved and ("Raise the learning rate" in text) is not moved


def test_a_backbone_at_chance_level_is_named(tmp_path: Path) -> None:
    lines = [*events({"zero": 0.26, "ours": 0.30}), interval("zero", 0.2, 0.32), interval("ours", 0.24, 0.36)]
    text = said(tmp_path, lines)
    assert "the backbone demo is no better than random guessing here" in text
    assert "trained on drawings" in text.split("Next: ")[1]
    lines[0]["backbone"] = {"name": "some/clip"}
    text = said(tmp_path, lines)
    assert "trained on drawings" not in text and "class names in plain English" in text


def test_clients_with_one_candidate_class_are_counted(tmp_path: Path) -> None:
    lines = events({"zero": 0.60, "ours": 0.63})
    lines += [
        {"event": "score", "trial": "ours", "round": 2, "split": "local", "client": client, "num_examples": 9}
        | {"figures": {"accuracy": 1.0}, "classes": FOUR[: client + 1]}
        for client in range(3)
    ]
    assert "1 of 3 clients hold images of one class only; their Local figure is 100%" in said(tmp_path, lines)


def test_few_test_images_are_said(tmp_path: Path) -> None:
    lines = [*events({"zero": 0.60, "ours": 0.63}), interval("ours", -0.1, 0.2, "zero", images=20)]
    assert "Hold more images back for testing: 20 say little" in said(tmp_path, lines)


def test_a_run_without_scores_has_no_verdict(tmp_path: Path) -> None:
    assert said(tmp_path, events({})) == ""


def test_the_chance_level_of_many_labels_is_their_mean_prevalence(tmp_path: Path) -> None:
    lines = events({"zero": 0.60, "ours": 0.63}, classes=2)
    lines[0]["metric"] = "mean_average_precision"
    for line in lines:
        if line["event"] == "score":
            line["figures"] = {"mean_average_precision": 0.6}
    lines.append({"event": "cooccurrence", "split": "base", "classes": FOUR[:2], "counts": [[100, 10], [10, 20]]})
    said(tmp_path, lines)
    assert chance(read_run(tmp_path), "base") == pytest.approx((100 / 200 + 20 / 200) / 2)


def test_the_report_shows_verdict_and_intervals(tmp_path: Path) -> None:
    lines = [*events({"zero": 0.60, "ours": 0.63}), interval("ours", 0.58, 0.68), interval("ours", 0.01, 0.05, "zero")]
    said(tmp_path, lines)
    html = render(tmp_path).read_text(encoding="utf-8")
    assert "It is better than Zero" in html and html.index("It is better") < html.index("<nav")
    assert "58.0 to 68.0" in html
