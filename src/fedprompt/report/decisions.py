"""Decisions of the main method per class: labels that are never predicted, untested classes, the majority baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedprompt.errors import first_names, plural, untested
from fedprompt.records.event_fields import ClassDecisions
from fedprompt.records.events import MistakesEvent
from fedprompt.records.run_record import AVERAGED, TUNED, Run, TrialRecord


def never_predicted(run: Run, main: TrialRecord, column: str) -> Iterator[str]:
    """Which classes or labels that test images have are never predicted."""
    event = decisions(run, main, column)
    if event is None:
        return
    present = [one for one in event.classes if one.images]
    if event.threshold is None:
        yield from _never_right(main, present)
        return
    missed = [one.name for one in present if not one.predicted]
    if missed:
        fitted = ", fitted on training images," if any(one.endswith(TUNED) for one in run.header.further) else ","
        are = "is" if len(missed) == 1 else "are"
        yield (
            f"At the threshold {event.threshold:.2g}{fitted} {len(missed):,} of {plural(len(present), 'label')} {are} "
            f"never predicted on the test images: {first_names(missed)} (see the decisions per class in the report)."
        )


def _never_right(main: TrialRecord, present: Sequence[ClassDecisions]) -> Iterator[str]:
    missed = [one.name for one in present if not one.right]
    never = [one for one in present if not one.predicted]
    if missed:
        of_them = (
            f" ({len(never):,} of them not at all: {first_names([one.name for one in never])})"
            if 0 < len(never) < len(missed)
            else ""
        )
        yield (
            f"{main.label} never predicts {len(missed):,} of {plural(len(present), 'class')} rightly: "
            f"{first_names(missed)}{of_them}; see the decisions per class in the report."
        )


def drawn_together(run: Run) -> Iterator[str]:
    """That the intervals count images of one name together."""
    table = run.header.recipe.get("data")
    if isinstance(table, dict) and table.get("names_together"):
        yield (
            "Files of one name are in the same split, and the intervals take them together, as they may show the same."
        )


def near_duplicates(run: Run) -> Iterator[str]:
    """How many test images look almost like a training image."""
    data = run.header.data
    if data.near_duplicates:
        looks = "image looks" if data.near_duplicates == 1 else "images look"
        yield (
            f"{data.near_duplicates:,} of {data.images.get('test', 0):,} test {looks} almost like a training image. If "
            "they show the same, the figures of trained methods are too high and the intervals too narrow."
        )


def untested_classes(run: Run, main: TrialRecord, column: str) -> Iterator[str]:
    """Which candidate classes have no test image, so that no figure says anything about them."""
    columns = [one for one in AVERAGED if one != "local"] if column == "hm" else [column]
    known: dict[str, bool] = {}
    for score in (score for one in columns for score in main.final(one) if score.per_class):
        for name, value in zip(score.classes, score.per_class, strict=False):
            known[name] = known.get(name, False) or value is not None
    missing = [name for name, tested in known.items() if not tested]
    if missing:
        yield untested(missing, len(known))


def majority(run: Run, main: TrialRecord, column: str) -> tuple[str, float] | None:
    """The class with most test images and its share of them; None with several labels, or where it is not recorded."""
    event = decisions(run, main, column)
    total = sum(one.images for one in event.classes) if event is not None else 0
    if event is None or run.header.metric != "accuracy" or not total or event.name != "all" or event.part:
        return None
    most = max(event.classes, key=lambda one: one.images)
    return most.name, most.images / total


def decisions(run: Run, main: TrialRecord, column: str) -> MistakesEvent | None:
    """The recorded decisions of the main trial on the test set of a column."""
    return next((event for event in run.mistakes if (event.trial, event.split) == (main.name, column)), None)
