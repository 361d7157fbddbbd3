"""Decoding of a site's answer: every field has a type and a range, and any other value refuses the answer.

JSON itself is read by `text_files.load_json`, which bounds its depth and its numbers. Nothing here raises anything
but RefusedUpdateError on values that come from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedprompt.federated.evaluate import Score
from fedprompt.federated.screening import LARGEST_LOSS, MOST_EXAMPLES, RefusedUpdateError, check_raw
from fedprompt.runtimes.payload import Fields, Payload
from fedprompt.runtimes.tensor_codec import Upload, decode_change
from fedprompt.updates import State, Update

LARGEST = 1e12  # of a number that has no other limit
LONGEST_TIME = 366 * 86_400.0  # seconds
MOST_FIGURES, MOST_CLASSES = 64, 100_000
LONGEST_TEXT = 200  # characters
FIGURE = re.compile(r"[a-z0-9_]{1,40}")


@dataclass(frozen=True)
class TrainAnswer:
    """An update with what a site reports beside it; `validation` is NaN where the site gives no score."""

    update: Update
    validation: float
    size: int  # bytes of the tensors in transit


def train_answer(client: int, answer: Payload, shared: State, upload: Upload) -> TrainAnswer:
    """The answer to a request to train; RefusedUpdateError for a field or tensor that is not as it must be."""
    fields = answer.fields
    check_raw(answer.tensors, shared, dtype=None if upload == "float32" else upload)
    update = Update(
        client=client,
        num_examples=whole(fields, "num_examples", low=1, high=MOST_EXAMPLES),
        shared=decode_change(answer.tensors, shared, upload),
        personal={},
        loss=number_or_nan(fields, "loss", low=-LARGEST_LOSS, high=LARGEST_LOSS),
        seconds=number(fields, "seconds", low=0.0, high=LONGEST_TIME),
    )
    return TrainAnswer(update, number_or_nan(fields, "validation"), answer.size)


def score_answer(name: str, answer: Payload) -> Score | None:
    """The answer to a request to evaluate; None from a site that has no test images, or withholds scores."""
    fields = answer.fields.get("score")
    if fields is None:
        return None
    if not isinstance(fields, dict):
        raise _refused("score", "a table")
    figures, per_class = fields.get("figures"), fields.get("per_class")
    if not isinstance(figures, dict) or len(figures) > MOST_FIGURES or not all(map(FIGURE.fullmatch, figures)):
        raise _refused("figures", f"a table of at most {MOST_FIGURES} figures")
    if not isinstance(per_class, list) or len(per_class) > MOST_CLASSES:
        raise _refused("per_class", f"a list of at most {MOST_CLASSES:,} numbers")
    return Score(
        name,
        whole(fields, "num_examples", low=0, high=MOST_EXAMPLES),
        # Most figures are shares; `classes_without_positive` is a count.
        {key: number_or_nan(figures, key, high=MOST_CLASSES) for key in figures},
        tuple(number_or_nan({"per_class": value}, "per_class") for value in per_class),
    )


def number(fields: Fields, name: str, *, low: float, high: float) -> float:
    """A number in [low, high]."""
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _refused(name, f"a number from {low:g} to {high:g}")
    return float(value)


def number_or_nan(fields: Fields, name: str, *, low: float = 0.0, high: float = 1.0) -> float:
    """A number in [low, high], NaN for one that is withheld."""
    return math.nan if fields.get(name) is None else number(fields, name, low=low, high=high)


def whole(fields: Fields, name: str, *, low: int, high: int) -> int:
    """A whole number in [low, high]."""
    value = fields.get(name)
    if type(value) is not int or not low <= value <= high:
        raise _refused(name, f"a whole number from {low} to {high}")
    return value


def text(fields: Fields, name: str) -> str:
    """A text of at most `LONGEST_TEXT` characters."""
    value = fields.get(name)
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise _refused(name, f"a text of at most {LONGEST_TEXT} characters")
    return value


def texts(fields: Fields, name: str, *, most: int = 32) -> Mapping[str, str]:
    """A table of at most `most` short texts."""
    value = fields.get(name)
    if not isinstance(value, dict) or len(value) > most or any(len(key) > LONGEST_TEXT for key in value):
        raise _refused(name, f"a table of at most {most} texts")
    return {key: text(value, key) for key in value}


def counts(fields: Fields, name: str) -> Sequence[int | None]:
    """A list of whole numbers from 0 on, None for those that are withheld."""
    value = fields.get(name)
    if not isinstance(value, list) or len(value) > MOST_CLASSES:
        raise _refused(name, f"a list of at most {MOST_CLASSES:,} counts")
    return [None if one is None else whole({name: one}, name, low=0, high=MOST_EXAMPLES) for one in value]


def _refused(name: str, wanted: str) -> RefusedUpdateError:
    return RefusedUpdateError("number", f"its {name} is not {wanted}.")
