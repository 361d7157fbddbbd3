"""Sample images of the report: drawn at random from the test sets, the same for every trial."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import TypedDict

import torch
from PIL import Image

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.experiments.test_sets import TestSet, class_probabilities
from fedprompt.federated.evaluate import predict
from fedprompt.methods.base import Attention, Explanation, Method
from fedprompt.records.event_fields import AttentionRecord, AttributeAttention, ExplanationRecord, LabelEvidence
from fedprompt.records.events import SampleEvent
from fedprompt.seeding import stream

LARGEST_SIDE = 128  # pixels of an image in the record
TOP = 5  # predictions recorded per image
ATTRIBUTES = 5  # attention maps recorded per image
LABELS = 4  # labels per image, true or predicted, whose explanation is recorded
MOST_LABELS = 20  # of an image with many true labels


def draw_samples(test_sets: Sequence[TestSet], *, count: int, seed: int) -> list[tuple[TestSet, int]]:
    """Draw images as (test set, position in its examples), from the columns of the results table in turn.

    No image is drawn twice: of one that is drawn again the next in its column is taken, as long as there are others.
    """
    draws = stream(seed, "sample")
    splits = dict.fromkeys(test_set.split for test_set in test_sets)
    columns = [[test_set for test_set in test_sets if test_set.split == split] for split in splits]
    chosen: list[tuple[TestSet, int]] = []
    taken: set[tuple[int, int]] = set()
    for number in range(count if columns else 0):
        column = columns[number % len(columns)]
        place = int(torch.randint(len(column), (), generator=draws))
        position = int(torch.randint(len(column[place].examples), (), generator=draws))
        for one in _from(column, place, position):
            if (key := _key(*one)) not in taken:
                taken.add(key)
                chosen.append(one)
                break
    return chosen


def _from(column: Sequence[TestSet], place: int, position: int) -> Iterator[tuple[TestSet, int]]:
    """All images of a column, beginning with one of them."""
    first, *others = (*column[place:], *column[:place])
    size = len(first.examples)
    yield from ((first, (position + step) % size) for step in range(size))
    yield from ((other, step) for other in others for step in range(len(other.examples)))


def _key(test_set: TestSet, position: int) -> tuple[int, int]:
    """What tells an image from all others of the run: columns may share images."""
    images = test_set.examples.images
    return id(images.source), images.rows[position]


def sample_events(
    method: Method, clip: Clip, chosen: Sequence[tuple[TestSet, int]], *, trial: str, pixels: bool
) -> Iterator[SampleEvent]:
    """One event per image: truth, strongest predictions and, where the method has any, attention maps.

    `pixels` also records the image itself; one trial of a run is enough for that.
    """
    for number, (test_set, position) in enumerate(chosen):
        target = test_set.examples.targets[position]
        truth = [int(target)] if target.ndim == 0 else (target == 1).nonzero().flatten().tolist()
        image = test_set.examples.images.take([position])
        found = recognise(method, clip, image, test_set.examples.space, truth=truth)
        picture = {"picture": png(test_set.examples.images.decode(position))} if pixels else {}
        yield SampleEvent(trial=trial, sample=str(number), split=test_set.split, **picture, **found)


def png(image: Image.Image) -> str:
    """A small copy of an image, PNG in base64."""
    small = image.copy()
    small.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    file = io.BytesIO()
    small.save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


class Recognised(TypedDict, total=False):
    """The fields of a sample event that say what a method recognises in one image."""

    name: str
    truth: tuple[str, ...]
    top: tuple[tuple[str, float], ...]
    attention: AttentionRecord
    explanation: ExplanationRecord


def recognise(
    method: Method, clip: Clip, images: Images, space: LabelSpace, *, truth: Sequence[int] = ()
) -> Recognised:
    """The labels a method predicts for one image, with attention maps or labels under conditions if it has them.

    Maps with values that are not finite are left out.
    """
    probabilities = class_probabilities(predict(method, clip, images, space)[0], space.kind)  # [C]
    top = probabilities.topk(min(TOP, len(space)))
    pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
    found: Recognised = {
        "name": images.describe(0),
        "truth": tuple(space.names[label] for label in truth),
        "top": tuple((space.names[label], round(value, 6)) for value, label in pairs),
    }
    with torch.no_grad():
        attention = method.attention(clip, images, space)
        explanation = method.explain(clip, images, space)
    if attention is not None and attention.weights.isfinite().all():
        found["attention"] = _attention_record(attention, clip)
    if explanation is not None and all(
        values.isfinite().all() for values in (explanation.plans, explanation.evidence, explanation.gate)
    ):
        labels = list(dict.fromkeys([*truth, *top.indices.tolist()]))[: min(max(LABELS, len(truth)), MOST_LABELS)]
        found["explanation"] = _explanation_record(explanation, labels, space, clip)
    return found


def _grid(clip: Clip) -> list[int]:
    side = round(clip.patches**0.5)
    return [side, clip.patches // side]


def _explanation_record(
    explanation: Explanation, labels: Sequence[int], space: LabelSpace, clip: Clip
) -> ExplanationRecord:
    """For these labels, per condition: the probability, and the transport mass in multiples of uniform mass."""
    lifts = explanation.plans[0] * len(space) * clip.patches  # [K, P, C]
    return ExplanationRecord(
        grid=_grid(clip),
        conditions=explanation.conditions,
        gate=[round(weight, 4) for weight in explanation.gate[0].tolist()],
        labels=[
            LabelEvidence(
                name=space.names[label],
                found=[round(value, 6) for value in explanation.evidence[0, :, label].tolist()],
                lifts=[[round(lift, 2) for lift in lifts[k, :, label].tolist()] for k in range(len(lifts))],
            )
            for label in labels
        ],
    )


def _attention_record(attention: Attention, clip: Clip) -> AttentionRecord:
    """The attributes with the highest weight at their best patch, at most one map per text."""
    weights = attention.weights.mean(dim=0)[0]  # [P, N]
    strongest = weights.max(dim=0).values.argsort(descending=True, stable=True).tolist()
    kept: dict[str, int] = {}
    for column in strongest:
        kept.setdefault(attention.attributes[column][0], column)
    columns = list(kept.values())[:ATTRIBUTES]
    return AttentionRecord(
        grid=_grid(clip),
        total=len(attention.attributes),
        attributes=[
            AttributeAttention(
                name=attention.attributes[column][0],
                class_name=attention.attributes[column][1],
                weights=[round(weight, 5) for weight in weights[:, column].tolist()],
            )
            for column in columns
        ],
    )
