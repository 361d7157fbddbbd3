"""Collapse of predictions: one class, or a few labels, that take far more images than have them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fedprompt.errors import series
from fedprompt.records.event_fields import ClassDecisions
from fedprompt.records.events import MistakesEvent

EXCESS = 0.2  # share of the images by which a label is predicted more often than it is there
TIMES = 2.0  # and how many times as often
COLLAPSED = 0.4  # share of all predictions that fall on such labels, from which they are said to collapse
FEWEST = 20  # images, below which nothing is said
FEWEST_DECIDED = 10  # and of several labels together, of which there are more decisions
MANY = 1.5  # times as many labels predicted as there are
ALIKE = 0.6  # share of images without known labels that get the same ones


def collapse(event: MistakesEvent) -> str:
    """ "predicts mammal for 38 of 92 images, of which 13 have it ...": labels that take far more than their share."""
    if too_many_labels(event):
        predicted, there = labels_per_image(event)
        return (
            f"predicts {predicted:.1f} labels per image, where {there:.1f} are there: "
            f"the threshold of {event.threshold:.1%} is too low for these images. Rely on the probabilities."
        )
    taken = [one for one in event.classes if _takes_too_many(one, event.images)]
    if not taken or event.images < FEWEST:
        return ""
    first, *others = sorted(taken, key=lambda one: -one.predicted)
    said = [f"{first.name} for {first.predicted:,} of {event.images:,} images ({_have(first)})"]
    said += [f"{one.name} for {one.predicted:,} ({_have(one)})" for one in others]
    share = sum(one.predicted for one in taken) / max(sum(one.predicted for one in event.classes), 1)
    one = len(said) == 1
    if share < COLLAPSED:
        return f"predicts {', '.join(said)}, much more often than {'it is' if one else 'they are'} there."
    return f"predicts {', '.join(said)}: its predictions collapse towards {'one class' if one else 'few classes'}."


def _have(one: ClassDecisions) -> str:
    return f"{one.images:,} {'has' if one.images == 1 else 'have'} it"


def too_many_labels(event: MistakesEvent) -> bool:
    """Whether clearly more labels are predicted than there are, for most of the labels."""
    predicted, there = labels_per_image(event)
    if event.threshold is None or event.images < FEWEST_DECIDED or predicted < MANY * there:
        return False
    return sum(one.predicted > one.images for one in event.classes) > len(event.classes) / 2


def labels_per_image(event: MistakesEvent) -> tuple[float, float]:
    """How many labels are predicted per image, and how many are there."""
    images = max(event.images, 1)
    return sum(one.predicted for one in event.classes) / images, sum(one.images for one in event.classes) / images


def _takes_too_many(found: ClassDecisions, images: int) -> bool:
    excess = found.predicted - found.images
    return excess >= EXCESS * images and found.predicted >= TIMES * found.images


def alike(decided: Sequence[tuple[str, ...]]) -> str:
    """A sentence if most of the images get the same labels, of images whose true labels are not known; else empty."""
    if len(decided) < FEWEST:
        return ""
    labels, count = Counter(decided).most_common(1)[0]
    if count < ALIKE * len(decided):
        return ""
    same = series(labels) or "none of the classes"
    return (
        f"{count:,} of {len(decided):,} images are predicted as {same}. Unless "
        "most of them are, the predictions have collapsed: check some by hand before you use them."
    )
