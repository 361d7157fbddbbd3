"""Pages of runs with many labels: further metrics, the gap, labels under conditions, co-occurrence, predictions."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from fedprompt.records.events import CooccurrenceEvent, SampleEvent, TrialEvent
from fedprompt.report import predictions_page, read_run, render
from fedprompt.report.cooccurrence import bias_position, shares
from fedprompt.report.sample_images import sample_images
from test_report import picture, write

SPLITS = {"natural": "usual co-occurrence", "broken": "any co-occurrence"}
CLASSES = ["cat", "dog", "sea"]
COUNTS = {"natural": [[4, 4, 0], [4, 4, 0], [0, 0, 4]], "broken": [[4, 2, 2], [2, 4, 2], [2, 2, 4]]}
FIGURES = {"ours": (0.8, 0.75), "zero": (0.6, 0.5)}
EXPLANATION = {
    "grid": [2, 2],
    "conditions": ["light", "<place>"],
    "gate": [0.75, 0.25],
    "labels": [{"name": "cat", "found": [0.9, 0.1], "lifts": [[4, 0, 0, 0], [1, 1, 1, 1]]}],
}


def cooccurrence(split: str, counts: list[list[int]], trial: str = "") -> dict[str, Any]:
    return {"event": "cooccurrence", "trial": trial, "split": split, "classes": CLASSES, "counts": counts}


def trial(name: str, *, tuned: str) -> list[dict[str, Any]]:
    figures = {"cf1_macro" + tuned: 0.41, "of1" + tuned: 0.42}
    pulled = COUNTS["natural" if name == "ours" else "broken"]
    sample = {"event": "sample", "trial": name, "sample": "0", "truth": ["cat"], "top": [["cat", 0.9], ["dog", 0.2]]}
    own = {"picture": picture(), "explanation": EXPLANATION} if name == "ours" else {}
    return [
        {"event": "trial", "trial": name, "method": name, "trainable": 3 if name == "ours" else 0, "rounds": 1},
        *([{"event": "round", "trial": name, "round": 1, "clients": [0]}] if name == "ours" else []),
        *(
            {"event": "score", "trial": name, "round": 1, "split": split}
            | {"figures": {"mean_average_precision": value, **figures}}
            for split, value in zip(SPLITS, FIGURES[name], strict=True)
        ),
        {"event": "score", "trial": name, "round": 1, "split": "local", "client": 0}
        | {"figures": {"mean_average_precision": 0.9, **figures}},
        cooccurrence("broken", pulled, name),
        sample | own,
    ]


def events(*, tuned: str = "") -> list[dict[str, Any]]:
    header = {
        "event": "header",
        "main": "ours",
        "metric": "mean_average_precision",
        "further": ["cf1_macro" + tuned, "of1" + tuned],
        "splits": {"local": "each client", **SPLITS},
    }
    truths = [cooccurrence(split, counts) for split, counts in COUNTS.items()]
    return [header, *truths, *trial("ours", tuned=tuned), *trial("zero", tuned=tuned)]


@pytest.mark.parametrize("tuned", ["", "_tuned"])
def test_further_figures_stand_beside_the_headline_and_the_gap_comes_last(tmp_path: Path, tuned: str) -> None:
    run = read_run(write(tmp_path, events(tuned=tuned)))
    titles = [run.title(column) for column in run.columns]
    figures = ["Natural mAP", "Natural CF1", "Natural OF1", "Broken mAP", "Broken CF1", "Broken OF1"]
    assert titles == ["Local mAP", *figures, "Gap"]
    assert run.headlines == ("local", "natural", "broken")
    assert run.main and run.main.figures["gap"] == pytest.approx(0.05)
    assert run.main.figures["natural:of1" + tuned] == 0.42
    assert ("held-out" in run.threshold) == bool(tuned)


def test_the_page_shows_labels_under_conditions_and_cooccurrence(tmp_path: Path) -> None:
    html = render(write(tmp_path, events())).read_text(encoding="utf-8")
    assert 'id="explanations"' in html and 'id="cooccurrence"' in html
    assert "&lt;place&gt;" in html and "<place>" not in html, "conditions are escaped"
    assert "75%" in html and "90%" in html and "≤ 4\u00a0\u00d7" in html
    assert "pull 100%" in html and "pull 0%" in html
    assert "reaches Natural mAP 80.0%" in html and "That is +20.0 points against" in html
    best = [part for part in html.split("<td>") if 'class="best"' in part and ">5.0<" in part]
    assert best, "the smallest gap is the best"


def test_diagnostics_are_a_table_with_how_to_read_them(tmp_path: Path) -> None:
    assert 'id="diagnostics"' not in render(write(tmp_path, events())).read_text(encoding="utf-8")
    alike = [{"name": f"evidence under {one}", "value": 0.5, "meaning": "Half each."} for one in ("<light>", "place")]
    figures = [{"name": "gate entropy", "value": 0.98765, "meaning": "At 1 no <gate>."}, *alike]
    lines = [{"event": "diagnostics", "trial": "ours", "split": "natural", "images": 64, "diagnostics": figures}]
    lines += [lines[0] | {"trial": "zero", "diagnostics": [figures[0] | {"value": None}]}]
    html = render(write(tmp_path, [*events(), *lines])).read_text(encoding="utf-8")
    section = html[html.index('id="diagnostics"') :].partition("</section>")[0]
    assert "with 64 images of the test set Natural," in section
    assert section.count(">0.988<") == 1 and section.count(">0.500<") == 2
    assert section.count(">–<") == 3, "a figure that is undefined, and two that the method does not have"  # noqa: RUF001
    assert section.count("Half each.") == 1 and "evidence under &lt;light&gt;, ..." in section
    assert "At 1 no &lt;gate&gt;." in section and "<gate>" not in html


def test_small_shares_are_written_alike_everywhere(tmp_path: Path) -> None:
    lines = copy.deepcopy(events())
    explained = next(line for line in lines if "explanation" in line)
    explained["explanation"]["gate"] = [0.9999, 0.0001]
    explained["explanation"]["labels"][0]["found"] = [0.0001, 0.5]
    explained["top"] = [["cat", 0.9], ["dog", 0.001]]
    html = render(write(tmp_path, lines)).read_text(encoding="utf-8")
    assert html.count("&lt;1%") + html.count("<1%") == 3 and ">0%" not in html


def test_an_explanation_of_the_wrong_shape_is_left_out(tmp_path: Path) -> None:
    for change in ({"gate": [1.0]}, {"grid": [3, 3]}, {"conditions": ["light"]}):
        lines = copy.deepcopy(events())
        next(line for line in lines if "explanation" in line)["explanation"] |= change
        assert 'id="explanations"' not in render(write(tmp_path, lines)).read_text(encoding="utf-8")
    lines = [line for line in events() if line["event"] != "cooccurrence"] + [cooccurrence("broken", [[1]])]
    assert 'id="cooccurrence"' not in render(write(tmp_path, lines)).read_text(encoding="utf-8")


def test_pull_is_the_position_of_predicted_cooccurrence_between_true_and_natural() -> None:
    natural, true = (CooccurrenceEvent.model_validate(cooccurrence(split, counts)) for split, counts in COUNTS.items())
    assert shares(natural.counts)[0] == [1, 1, 0] and shares([[0, 0], [0, 2]])[0] == [0, 0]
    halfway = [[4, 3, 1], [3, 4, 1], [1, 1, 4]]
    for counts, expected in ((COUNTS["natural"], 1), (COUNTS["broken"], 0), (halfway, 0.5)):
        predicted = CooccurrenceEvent.model_validate(cooccurrence("broken", counts))
        assert bias_position(predicted, true, natural) == pytest.approx(expected)
    assert bias_position(natural, true, true) is None


def test_predictions_have_no_truth_to_be_right_about() -> None:
    top = [["cat", 0.9], ["dog", 0.2]]
    sample = SampleEvent(trial="ours", sample="0", name="my <own>.jpg", picture=picture(), top=top)
    html = predictions_page(TrialEvent(trial="ours"), [sample], total=1)
    assert "my &lt;own&gt;.jpg" in html and "✓" not in html and "✗" not in html
    explained = SampleEvent(trial="ours", sample="0", picture=picture(), top=top, explanation=EXPLANATION)
    assert "Labels under conditions" in predictions_page(TrialEvent(trial="ours"), [explained], total=1)


def test_an_image_without_any_label_says_so_and_no_label_is_right(tmp_path: Path) -> None:
    lines = events()
    for event in lines:
        if event["event"] == "sample":
            event.update(truth=[], split="test", decided=[] if event["trial"] == "ours" else ["cat"])
    (shown, *_) = sample_images(read_run(write(tmp_path, lines)))
    assert shown.truth_text == "none of the labels"
    assert {one.trial: shown.is_right(one) for one in shown.predictions} == {"zero": False, "ours": True}
