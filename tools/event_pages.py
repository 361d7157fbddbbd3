"""The page of all events of run.jsonl, docs/events.md: from the pydantic models that write and read them."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, JsonValue

from fedprompt.records.events import EVENTS, RoundEvent
from tools.markdown import cell, wrapped

HEAD = """<!-- Made by `python -m tools.collect` from the models in src/fedprompt/records; edit those. -->
# What run.jsonl contains
"""
INTRODUCTION = (
    "Every run writes `run.jsonl` into its folder: one JSON object per line, in the order in which things happened. "
    "The report, the tables on the terminal and comparisons are made from this file and the Parquet files that it "
    "names. The field `event` says what a line is about; the other fields are listed below.",
    "A field with more than 256 entries, such as scores per class or losses per client, is not in its line: `vectors` "
    "names the Parquet files in the folder `vectors` that hold it, one column per field and one row per entry. A table "
    "has two columns, its keys in `key of FIELD`; a field of a nested record is called `RECORD/FIELD`. Whoever reads "
    "the events gets these fields as if they were in the line.",
    "A line is written at once and never changed. When a run is resumed, the lines of a trial after its checkpoint are "
    "removed first. Where two lines are about the same thing (the same trial, round, test set or sample), the later "
    "one counts. A field that does not apply is absent, and a reader takes the default. A number that is not finite "
    'or not defined is `null`; in tables of settings, an infinite one is `"inf"`. '
    "Clients are numbered from 0 in the order of `partition.clients`. In JSON the keys of "
    'tables are always strings, so client 3 is `"3"`.',
    "Readers ignore events and fields that they do not know. fedprompt itself refuses to write them, so this page "
    "lists them all. In Python, `fedprompt.records.run_folder.read_events(folder)` gives the lines as typed objects "
    "and `fedprompt.records.reading.read_run(folder)` the whole run with its figures.",
)
EXAMPLE = RoundEvent(
    trial="promptfl", round=1, clients=(0, 1), loss=2.31, losses={0: 2.4, 1: 2.22}, bytes_up={0: 2048, 1: 2048}
)
NAMES = {str: "string", int: "integer", float: "number", bool: "boolean"} | {
    type(None): "null",
    JsonValue: "any JSON value",
}


def page() -> str:
    """The text of docs/events.md."""
    parts = [
        HEAD,
        *(f"\n{wrapped(paragraph)}\n" for paragraph in INTRODUCTION),
        f"\n```json\n{EXAMPLE.to_json()}\n```\n",
    ]
    parts.append("\n| event | what it says |\n| --- | --- |\n")
    parts += [f"| [`{name}`](#{name}) | {cell(_first_line(model))} |\n" for name, model in EVENTS.items()]
    parts += [_section(name, model) for name, model in EVENTS.items()]
    parts.append("\n## Nested records\n")
    parts += [_section(model.__name__, model, level="###") for model in nested_models()]
    return "".join(parts)


def nested_models() -> list[type[BaseModel]]:
    """The models of fields, in the order in which events use them."""
    found: dict[type[BaseModel], None] = {}

    def visit(model: type[BaseModel]) -> None:
        for field in model.model_fields.values():
            for inner in _models_in(field.annotation):
                found[inner] = None
                visit(inner)

    for event in EVENTS.values():
        visit(event)
    return list(found)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _section(title: str, model: type[BaseModel], *, level: str = "##") -> str:
    rows = [f"\n{level} {title}\n\n{wrapped(_documentation(model))}\n\n"]
    rows.append("| field | type | default | meaning |\n| --- | --- | --- | --- |\n")
    for name, field in model.model_fields.items():
        if name != "event":
            default = "required" if field.is_required() else _default(field.default)
            columns = (f"`{name}`", type_text(field.annotation), default, cell(field.description or ""))
            rows.append(f"| {' | '.join(columns)} |\n")
    return "".join(rows)


def _documentation(model: type[BaseModel]) -> str:
    return " ".join((inspect.getdoc(model) or "").split())


def _first_line(model: type[BaseModel]) -> str:
    return (inspect.getdoc(model) or "").split("\n")[0]


def _default(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, BaseModel):
        return "no fields"
    if isinstance(value, tuple | dict | str) and not value:
        return "empty"
    return f"`{value}`"


def type_text(annotation: Any, *, plural: bool = False) -> str:
    """A type in words, with a link for a nested record."""
    origin, arguments, ending = get_origin(annotation), get_args(annotation), "s" * plural
    if annotation in NAMES:
        return NAMES[annotation] + ending
    if origin is Annotated:
        return type_text(arguments[0], plural=plural)
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(one, plural=plural and one is not type(None)) for one in arguments)
    if origin is tuple:
        return f"list{ending} of {_items(arguments)}"
    if origin is dict:
        return f"table{ending}: {type_text(arguments[0])} to {type_text(arguments[1])}"
    return f"[{annotation.__name__}](#{annotation.__name__.lower()})"


def _items(kinds: tuple[Any, ...]) -> str:
    if kinds[-1] is Ellipsis:
        return type_text(kinds[0], plural=True)
    if len(set(kinds)) == 1:
        return f"{len(kinds)} {type_text(kinds[0], plural=True)}"
    return " and ".join(map(type_text, kinds))
