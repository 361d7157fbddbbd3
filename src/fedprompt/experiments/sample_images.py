"""A few test pictures for the report: drawn by address, the same for every trial, never picked for looks."""

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

LARGEST_SIDE = 128  # pixels of a picture kept in the record
TOP = 5  # predictions kept of a picture
ATTRIBUTES = 5  # attention maps kept of a picture
LABELS = 4  # labels of a picture, true or likely, whose places are kept

Line = dict[str, Any]


def choose(asked: Sequence[TestSet], *, count: int, seed: int) -> list[tuple[TestSet, int]]:
    """Draw pictures as (test_set, position in its examples); the columns of the table take turns."""
    draws = stream(seed, "sample")
    splits = dict.fromkeys(test_set.split for test_set in asked)
    columns = [[test_set for test_set in asked if test_set.split == split] for split in splits]
    chosen = []
    for number in range(count if columns else 0):
        column = columns[number % len(columns)]
        test_set = column[int(torch.randint(len(column), (), generator=draws))]
        chosen.append((test_set, int(torch.randint(len(test_set.examples), (), generator=draws))))
    return chosen


def sample_lines(
    method: Method, clip: Clip, chosen: Sequence[tuple[TestSet, int]], *, trial: str, pictures: bool
) -> Iterator[Line]:
    """One line a picture: truth, strongest predictions and, where the method has any, attention maps.

    `pictures` also keeps the pixels; one trial of a run is enough for that.
    """
    for number, (test_set, position) in enumerate(chosen):
        target = test_set.examples.targets[position]
        truth = [int(target)] if target.ndim == 0 else (target == 1).nonzero().flatten().tolist()
        yield {
            "event": "sample",
            "trial": trial,
            "sample": str(number),
            "split": test_set.split,
            **({"picture": png(test_set.examples.images.decode(position))} if pictures else {}),
            **recognised(method, clip, test_set.examples.images.take([position]), test_set.examples.space, truth=truth),
        }


def png(image: Image.Image) -> str:
    """A small copy of a picture, PNG in base64."""
    small = image.copy()
    small.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    file = io.BytesIO()
    small.save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def recognised(method: Method, clip: Clip, images: Images, space: LabelSpace, *, truth: Sequence[int] = ()) -> Line:
    """What a method sees in one picture, and by what it goes: attention maps, or labels under conditions."""
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
    """For these labels and every condition, how sure the method is and where it looks, in multiples of even mass."""
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
    """The attributes with the highest weight at their best patch, at most one map a text."""
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
