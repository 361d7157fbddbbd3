"""The schema of run.jsonl: what is written is what is read, and nothing else is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from fedprompt.records.event_fields import (
    AttentionRecord,
    AttributeAttention,
    ClassDecisions,
    ExplanationRecord,
    LabelEvidence,
    MistakeRecord,
    PartitionCounts,
)
from fedprompt.records.events import (
    EVENTS,
    ClientScoresEvent,
    CooccurrenceEvent,
    LocalImagesEvent,
    MistakesEvent,
    RoundEvent,
    parse_event,
)

NUMBERS = st.floats(-1e6, 1e6)
NAMES = st.lists(st.text(max_size=5), min_size=1, max_size=3)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | NUMBERS | st.text(max_size=5), st.lists, max_leaves=5)
PLAIN = {str: st.text(max_size=8), int: st.integers(-9, 9), float: NUMBERS, bool: st.booleans(), type(None): st.none()}


def counts(rows: int, columns: int) -> list[list[int]]:
    return [[row * column for column in range(columns)] for row in range(rows)]


# Models whose fields depend on each other.
SHAPED: Mapping[type[BaseModel], st.SearchStrategy[Any]] = {
    PartitionCounts: st.builds(
        lambda a, b: PartitionCounts(clients=a, classes=b, counts=counts(len(a), len(b))), NAMES, NAMES
    ),
    CooccurrenceEvent: st.builds(
        lambda a: CooccurrenceEvent(split="natural", classes=a, counts=counts(len(a), len(a))), NAMES
    ),
    ClientScoresEvent: st.builds(
        lambda names, value: ClientScoresEvent(
            trial="a",
            round=1,
            split="local",
            names=names,
            clients=range(len(names)),
            parts=names,
            num_examples=[7] * len(names),
            figures={"accuracy": [value] * len(names)},
            classes=["x", "y"],
            candidates=[[1, 0]] * len(names),
            per_class=[[value, None]] * len(names),
        ),
        NAMES,
        NUMBERS,
    ),
    LocalImagesEvent: st.builds(
        lambda rows, value: LocalImagesEvent(trial="a", round=1, rows=rows, influence=[value] * len(rows)),
        st.lists(st.integers(0, 9), max_size=3),
        NUMBERS,
    ),
    MistakesEvent: st.builds(
        lambda a, wrong: MistakesEvent(
            trial="x",
            classes=[ClassDecisions(name=name, images=2, predicted=1, right=1) for name in a],
            counts=counts(len(a), len(a)),
            confused=[(a[0], a[-1], 1)],
            worst=[MistakeRecord(name="1.jpg", truth=a[:1], predicted=a[1:], wrong=a[0], probability=wrong)],
        ),
        NAMES,
        NUMBERS,
    ),
    AttentionRecord: st.builds(
        lambda name, weight: AttentionRecord(
            grid=(1, 2), attributes=[AttributeAttention(name=name, weights=[weight, 0.5])]
        ),
        st.text(),
        NUMBERS,
    ),
    ExplanationRecord: st.builds(
        lambda name, lift: ExplanationRecord(
            grid=(1, 2), conditions=["x"], gate=[1], labels=[LabelEvidence(name=name, found=[1], lifts=[[lift, 1]])]
        ),
        st.text(),
        NUMBERS,
    ),
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return SHAPED.get(kind) or models(kind)
    if origin in (Union, UnionType):
        return st.one_of(*map(values, arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return st.lists(values(arguments[0]), max_size=3)
        return st.tuples(*map(values, arguments))
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    if hasattr(kind, "__metadata__"):  # Annotated
        return values(kind.__origin__)
    return PLAIN.get(kind, JSON)


def models(kind: type[BaseModel]) -> st.SearchStrategy[Any]:
    """Models with any of their optional fields."""
    fields = {name: values(field.annotation) for name, field in kind.model_fields.items()}
    required = {name: field for name, field in fields.items() if kind.model_fields[name].is_required()}
    optional = {name: field for name, field in fields.items() if name not in required}
    return st.fixed_dictionaries(required, optional=optional).map(lambda given: kind(**given))


@pytest.mark.parametrize("name", EVENTS)
@settings(max_examples=25)
@given(st.data())
def test_every_event_is_read_as_it_was_written(name: str, data: st.DataObject) -> None:
    kind = EVENTS[name]
    event = data.draw(SHAPED.get(kind) or models(kind))
    line = event.to_json()
    assert "\n" not in line and json.loads(line)["event"] == name
    assert parse_event(json.loads(line)) == event
    assert parse_event(json.loads(line)).to_json() == line


@pytest.mark.parametrize("name", EVENTS)
def test_an_unknown_field_is_refused_in_writing_and_ignored_in_reading(name: str) -> None:
    kind = EVENTS[name]
    known = {
        "trial": "a",
        "round": 1,
        "split": "s",
        "ledger": "a",
        "number": 1,
        "name": "a",
        "epsilon": 1.0,
        "sample": "0",
        "column": "hm",
        "metric": "hm",
        "last": 2,
        "rounds": 1,
        "seconds": 1.0,
        "first_round": 1.0,
        "scoring": 1.0,
    }
    lists: dict[str, Any] = {
        "classes": [],
        "counts": [],
        "clients": [],
        "sites": {},
        "changes": [],
        "rows": [],
        "influence": [],
    }
    fields = {key: value for key, value in (known | lists).items() if key in kind.model_fields}
    if name == "cooccurrence":
        fields |= {"classes": ["x"], "counts": [[1]]}
    if name == "client_scores":
        fields |= {"names": [], "parts": [], "num_examples": [], "figures": {}, "candidates": [], "per_class": []}
    event = kind(**fields)
    with pytest.raises(ValidationError, match="news"):
        kind(**fields, news=1)
    assert parse_event({"event": name, **fields, "news": 1}) == event


def test_nested_fields_are_refused_and_ignored_alike() -> None:
    fields = {"clients": ["a"], "classes": ["x"], "counts": [[1]], "news": 1}
    with pytest.raises(ValidationError, match="news"):
        EVENTS["header"](partition=fields)
    assert parse_event({"event": "header", "partition": fields}).partition.counts == ((1,),)


def test_an_unknown_event_is_ignored() -> None:
    assert parse_event({"event": "news"}) is None and parse_event({"trial": "a"}) is None


def test_numbers_that_json_lacks_are_null() -> None:
    event = RoundEvent(trial="a", round=1, loss=float("nan"), losses={0: float("inf"), 1: 0.5}, epsilon=float("inf"))
    assert json.loads(event.to_json()) == {
        "event": "round",
        "trial": "a",
        "round": 1,
        "loss": None,
        "losses": {"0": None, "1": 0.5},
        "epsilon": None,
    }


def test_every_field_is_described() -> None:
    for kind in EVENTS.values():
        assert kind.__doc__
        assert all(field.description for name, field in kind.model_fields.items() if name != "event"), kind
