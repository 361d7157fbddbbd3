from __future__ import annotations

from fedprompt.records.event_fields import ClassDecisions
from fedprompt.records.events import MistakesEvent
from fedprompt.report.collapse import collapse


def event(threshold: float | None, **predicted: int) -> MistakesEvent:
    classes = [ClassDecisions(name=name, images=10, predicted=count, right=5) for name, count in predicted.items()]
    return MistakesEvent(trial="a", split="test", images=40, threshold=threshold, classes=classes)


def test_a_threshold_that_is_too_low_is_no_collapse_towards_few_classes() -> None:
    said = collapse(event(0.086, fish=39, hat=30, bird=30, house=12))
    assert said.startswith("predicts 2.8 labels per image, where 1.0 are there: the threshold of 8.6% is too low")
    assert "collapse" not in said


def test_clearly_too_many_labels_are_said_with_both_figures_also_on_few_images() -> None:
    counts = {"a": 9, "b": 8, "c": 8, "d": 5}
    classes = [ClassDecisions(name=name, images=5, predicted=count, right=3) for name, count in counts.items()]
    few = MistakesEvent(trial="a", split="test", images=10, threshold=0.2, classes=classes)
    assert collapse(few).startswith("predicts 3.0 labels per image, where 2.0 are there")


def test_one_label_that_is_always_predicted_is_a_collapse() -> None:
    said = collapse(event(0.5, fish=39, hat=10, bird=9, house=8))
    assert said == "predicts fish for 39 of 40 images (10 have it): its predictions collapse towards one class."


def test_a_label_predicted_too_often_beside_many_others_is_no_collapse() -> None:
    classes = [ClassDecisions(name=name, images=10, predicted=10, right=5) for name in ("hat", "fish", "owl")]
    birds = ClassDecisions(name="bird", images=1, predicted=12, right=1)
    said = collapse(MistakesEvent(trial="a", split="test", images=40, threshold=0.5, classes=[*classes, birds]))
    assert said == "predicts bird for 12 of 40 images (1 has it), much more often than it is there."


def test_usual_predictions_are_no_collapse() -> None:
    assert not collapse(event(0.5, fish=12, hat=10, bird=9, house=8))
