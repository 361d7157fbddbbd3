"""Sample images for the report: drawn at random from the test sets, the same for every trial, with predictions."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.experiments.test_sets import TestSet, class_probabilities
from fedprompt.federated.evaluate import predict
from fedprompt.methods.base import Attention, Explanation, Method
from fedprompt.seeding import stream

LARGEST_SIDE = 128  # pixels of an image in the record
TOP = 5  # predictions recorded per image
ATTRIBUTES = 5  # attention maps recorded per image
LABELS = 4  # labels per image, true or probable, whose locations are recorded

Line = dict[str, Any]


def draw_samples(test_sets: Sequence[TestSet], *, count: int, seed: int) -> list[tuple[TestSet, int]]:
    """Draw images as (test set, position in its examples), from the columns of the results table in turn."""
    draws = stream(seed, "sample")
    splits = dict.fromkeys(test_set.split for test_set in test_sets)
    columns = [[test_set for test_set in test_sets if test_set.split == split] for split in splits]
    chosen = []
    for number in range(count if columns else 0):
        column = columns[number % len(columns)]
        test_set = column[int(torch.randint(len(column), (), generator=draws))]
        chosen.append((test_set, int(torch.randint(len(test_set.examples), (), generator=draws))))
    return chosen


def sample_lines(
    method: Method, clip: Clip, chosen: Sequence[tuple[TestSet, int]], *, trial: str, pixels: bool
) -> Iterator[Line]:
    """One record per image: true labels, top predictions and, if the method has them, attention maps.

    `pixels` also records the image itself; one trial of a run is enough for that.
    """
    for number, (test_set, position) in enumerate(chosen):
        target = test_set.examples.targets[position]
        truth = [int(target)] if target.ndim == 0 else (target == 1).nonzero().flatten().tolist()
        yield {
            "event": "sample",
            "trial": trial,
            "sample": str(number),
            "split": test_set.split,
            **({"picture": png(test_set.examples.images.decode(position))} if pixels else {}),
            **prediction_fields(
                method, clip, test_set.examples.images.take([position]), test_set.examples.space, truth=truth
            ),
        }


def png(image: Image.Image) -> str:
    """A small copy of an image as base64-encoded PNG."""
    small = image.copy()
    small.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    file = io.BytesIO()
    small.save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def prediction_fields(
    method: Method, clip: Clip, images: Images, space: LabelSpace, *, truth: Sequence[int] = ()
) -> Line:
    """A method's predictions for one image with its attention maps, or with its explanation by conditions."""
    probabilities = class_probabilities(predict(method, clip, images, space)[0], space.kind)  # [C]
    top = probabilities.topk(min(TOP, len(space)))
    line: Line = {
        "name": images.describe(0),
        "truth": [space.names[label] for label in truth],
        "top": [
            [space.names[label], round(probability, 4)]
            for probability, label in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ],
    }
    with torch.no_grad():
        attention = method.attention(clip, images, space)
        explanation = method.explain(clip, images, space)
    if attention is not None:
        line["attention"] = _maps(attention, clip)
    if explanation is not None:
        labels = list(dict.fromkeys([*truth, *top.indices.tolist()]))[: max(LABELS, len(truth))]
        line["explanation"] = _reasons(explanation, labels, space, clip)
    return line


def _grid(clip: Clip) -> list[int]:
    side = round(clip.patches**0.5)
    return [side, clip.patches // side]


def _reasons(explanation: Explanation, labels: Sequence[int], space: LabelSpace, clip: Clip) -> Line:
    """Per label and condition, the probability and the map of patches, in multiples of uniform mass."""
    lifts = explanation.plans[0] * len(space) * clip.patches  # [K, P, C]
    return {
        "grid": _grid(clip),
        "conditions": list(explanation.conditions),
        "gate": [round(weight, 4) for weight in explanation.gate[0].tolist()],
        "labels": [
            {
                "name": space.names[label],
                "found": [round(probability, 4) for probability in explanation.evidence[0, :, label].tolist()],
                "lifts": [[round(lift, 2) for lift in lifts[k, :, label].tolist()] for k in range(len(lifts))],
            }
            for label in labels
        ],
    }


def _maps(attention: Attention, clip: Clip) -> Line:
    """The maps of the attributes with the highest weight at their best patch, at most one per text."""
    weights = attention.weights[0]  # [P, N]
    strongest = weights.max(dim=0).values.argsort(descending=True, stable=True).tolist()
    kept: dict[str, int] = {}
    for column in strongest:
        kept.setdefault(attention.attributes[column][0], column)
    columns = list(kept.values())[:ATTRIBUTES]
    return {
        "grid": _grid(clip),
        "total": len(attention.attributes),
        "attributes": [
            {
                "name": attention.attributes[column][0],
                "class": attention.attributes[column][1],
                "weights": [round(weight, 5) for weight in weights[:, column].tolist()],
            }
            for column in columns
        ],
    }
