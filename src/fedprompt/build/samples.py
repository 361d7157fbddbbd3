"""A few test pictures for the report: drawn by address, the same for every trial, never picked for looks."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from fedprompt.build.evaluation import Question, chances
from fedprompt.clip.model import Clip
from fedprompt.federated.evaluate import predict
from fedprompt.methods.base import Attention, Method
from fedprompt.seeding import stream

LARGEST_SIDE = 128  # pixels of a picture kept in the record
TOP = 5  # predictions kept of a picture
ATTRIBUTES = 5  # attention maps kept of a picture

Line = dict[str, Any]


def choose(asked: Sequence[Question], *, count: int, seed: int) -> list[tuple[Question, int]]:
    """Draw pictures as (question, position in its examples); the columns of the table take turns."""
    draws = stream(seed, "sample")
    splits = dict.fromkeys(question.split for question in asked)
    columns = [[question for question in asked if question.split == split] for split in splits]
    chosen = []
    for number in range(count if columns else 0):
        column = columns[number % len(columns)]
        question = column[int(torch.randint(len(column), (), generator=draws))]
        chosen.append((question, int(torch.randint(len(question.examples), (), generator=draws))))
    return chosen


def sample_lines(
    method: Method, clip: Clip, chosen: Sequence[tuple[Question, int]], *, trial: str, pictures: bool
) -> Iterator[Line]:
    """One line a picture: truth, strongest predictions and, where the method has any, attention maps.

    `pictures` also keeps the pixels; one trial of a run is enough for that.
    """
    for number, (question, position) in enumerate(chosen):
        yield {
            "event": "sample",
            "trial": trial,
            "sample": str(number),
            "split": question.split,
            **({"picture": _png(question.examples.images.decode(position))} if pictures else {}),
            **_recognised(method, clip, question, position),
        }


def _png(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    file = io.BytesIO()
    small.save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _recognised(method: Method, clip: Clip, question: Question, position: int) -> Line:
    images, space = question.examples.images.take([position]), question.examples.space
    target = question.examples.targets[position]
    truth = [int(target)] if target.ndim == 0 else (target == 1).nonzero().flatten().tolist()
    top = chances(predict(method, clip, images, space)[0], space.kind).topk(min(TOP, len(space)))
    line: Line = {
        "name": images.describe(0),
        "truth": [space.names[label] for label in truth],
        "top": [
            [space.names[label], round(chance, 4)]
            for chance, label in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ],
    }
    with torch.no_grad():
        attention = method.attention(clip, images, space)
    return line if attention is None else line | {"attention": _maps(attention, clip)}


def _maps(attention: Attention, clip: Clip) -> Line:
    """The attributes with the highest weight at their best patch, at most one map a text."""
    weights = attention.weights[0]  # [P, N]
    strongest = weights.max(dim=0).values.argsort(descending=True, stable=True).tolist()
    kept: dict[str, int] = {}
    for column in strongest:
        kept.setdefault(attention.attributes[column][0], column)
    columns = list(kept.values())[:ATTRIBUTES]
    side = round(clip.patches**0.5)
    return {
        "grid": [side, clip.patches // side],
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
