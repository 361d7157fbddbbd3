"""The page of all recipe keys, docs/recipes.md: from the pydantic models and the signatures of what they name."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fedprompt import methods
from fedprompt.config.blocks import options_model
from fedprompt.config.recipe import Recipe
from fedprompt.config.registry import AGGREGATION_RULES, ATTACKS, PARTITION_RULES, PRIVACY, SERVER_OPTIMIZERS, SOURCES
from fedprompt.methods.base import Method
from tools.markdown import cell, wrapped

HEAD = """<!-- Made by `python -m tools.collect` from the recipe models and the signatures; edit those. -->
# Recipe keys

A recipe is a TOML file. The tables below hold every key it may have. Some tables name a part (a data source, a
partition rule, a method, ...); the other keys of such a table are the options of that part, which are listed further
down. A part of your own is named `package.module:function` (a method: `package.module`). An unknown key is an error
that suggests the right one.

`fedprompt config show RECIPE` prints a recipe with every default written out, `fedprompt config validate RECIPE`
checks one, and `fedprompt config schema` prints all this as a JSON schema for editors. `--set train.rounds=5`
overrides one key on the command line. Entries of `[[compare]]` are further methods of the run, with the keys of
`[method]`.
"""

NAMES = {int: "integer", float: "number", bool: "boolean", str: "string", Path: "path", type(None): "none"}
BOUNDS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}", "pattern": "matches `{}`"}


@dataclass(frozen=True)
class Kind:
    """One kind of named part: where a recipe names it, and the parts there are."""

    title: str
    place: str  # the key that names the part
    table: str  # the table that takes its options
    parts: Mapping[str, Callable[..., object]]


def kinds() -> Sequence[Kind]:
    """Every kind of part that a recipe can name."""
    found = {name: methods.load(name) for name in methods.names()}
    return (
        Kind("Data sources", "data.source", "[data]", SOURCES.builders),
        Kind("Partition rules", "partition.rule", "[partition]", PARTITION_RULES.builders),
        Kind("Methods", "method.name", "[method]", found),
        Kind(
            "Aggregation rules", "train.server.aggregate.name", "[train.server.aggregate]", AGGREGATION_RULES.builders
        ),
        Kind(
            "Server optimisers", "train.server.optimizer.name", "[train.server.optimizer]", SERVER_OPTIMIZERS.builders
        ),
        Kind("Differential privacy", "train.server.privacy.name", "[train.server.privacy]", PRIVACY.builders),
        Kind("Attacks", "train.server.attack.name", "[train.server.attack]", ATTACKS.builders),
    )


def page() -> str:
    """The text of docs/recipes.md."""
    parts = [HEAD]
    choices = {kind.place: kind.title for kind in kinds()}
    for title, about, model, prefix in tables(Recipe):
        parts.append(f"\n## {title}\n\n{wrapped(about)}\n\n")
        fields = {f"{prefix}{key}": field for key, field in model.model_fields.items() if not _nested(field)}
        rows = [_row(key, field, choice=choices.get(key, "")) for key, field in fields.items()]
        parts.append("| key | type | default | range | meaning |\n| --- | --- | --- | --- | --- |\n" + "".join(rows))
    for kind in kinds():
        listed = ", ".join(f"[`{name}`](#{name})" for name in kind.parts)
        parts.append(
            f"\n## {kind.title}\n\nNamed by `{kind.place}`; options stand in `{kind.table}`.\n\n{wrapped(listed)}\n"
        )
        parts += [_part(name, builder) for name, builder in kind.parts.items()]
    return "".join(parts)


def dotted_keys() -> frozenset[str]:
    """Every key that `--set` may name, with dots between tables."""
    found = {f"{prefix}{key}" for _, _, model, prefix in tables(Recipe) for key in model.model_fields}
    for kind in kinds():
        table = kind.place.rpartition(".")[0]
        for builder in kind.parts.values():
            found |= {f"{table}.{option}" for option in _options(builder)}
    return frozenset(found)


def tables(
    model: type[BaseModel], prefix: str = "", about: str = ""
) -> Iterator[tuple[str, str, type[BaseModel], str]]:
    """(title, what it is for, model, prefix of its keys) of a model and of all models in it."""
    yield (f"[{prefix[:-1]}]" if prefix else "Top level", about or _paragraphs(model)[0], model, prefix)
    for key, field in model.model_fields.items():
        nested = _nested(field)
        if nested is not None and key != "compare":  # entries of [[compare]] have the keys of [method]
            said = field.description or ""
            yield from tables(nested, f"{prefix}{key}.", f"{said[:1].upper()}{said[1:]}." if said else "")


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    found = [part for part in (field.annotation, *get_args(field.annotation)) if inspect.isclass(part)]
    return next((part for part in found if issubclass(part, BaseModel)), None)


def _row(key: str, field: FieldInfo, *, choice: str) -> str:
    default = "required" if field.is_required() else _value(field.get_default(call_default_factory=True))
    meaning = cell(field.description or "")
    if choice:
        link = f"[{choice.lower()}](#{choice.lower().replace(' ', '-')})"
        meaning = f"{meaning}: {link}" if meaning else f"one of the {link}, or package.module:function"
    return f"| {' | '.join((f'`{key}`', _type(field.annotation), default, _range(field), meaning))} |\n"


def _range(field: FieldInfo) -> str:
    bounds = [
        text.format(getattr(limit, name))
        for limit in field.metadata
        for name, text in BOUNDS.items()
        if getattr(limit, name, None) is not None
    ]
    return cell(", ".join(bounds))


def _part(name: str, builder: Callable[..., object]) -> str:
    options, meanings = _options(builder), _meanings(builder)
    text = f"\n### {name}\n\n{_about(name, builder)}\n"
    if not options:
        return f"{text}\nNo options.\n"
    said = any(option in meanings for option in options)
    head = ["option", "type", "default", *["meaning"] * said]
    rows = [head, ["---"] * len(head)]
    for option, field in options.items():
        default = "required" if field.is_required() else _value(field.default)
        rows.append([f"`{option}`", _type(field.annotation), default, *[cell(meanings.get(option, ""))] * said])
    return text + "\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _options(builder: Callable[..., object]) -> Mapping[str, FieldInfo]:
    return options_model(builder).model_fields


def _meanings(builder: Callable[..., object]) -> dict[str, str]:
    """What a docstring says of each option in a line `option: meaning` of its own."""
    body = inspect.getdoc(builder) or ""
    return {name: " ".join(text.split()) for name, text in re.findall(r"^(\w+): ((?:.|\n(?= ))+)", body, re.MULTILINE)}


def _paragraphs(thing: object) -> list[str]:
    return [" ".join(part.split()) for part in (inspect.getdoc(thing) or "").split("\n\n")]


def _about(name: str, builder: Callable[..., object]) -> str:
    """What a part is: of a method the first line of its file and a link, of others the whole docstring."""
    if not (inspect.isclass(builder) and issubclass(builder, Method)):
        return "\n\n".join(wrapped(paragraph) for paragraph in _paragraphs(builder))
    first = (inspect.getdoc(inspect.getmodule(builder)) or "").split("\n")[0]
    return wrapped(f"{first} [More](methods/{name}.md).")


def _type(annotation: Any) -> str:
    """An annotation in words; code for the words that a choice allows."""
    if annotation in NAMES:
        return NAMES[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(_value(one) for one in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(one) for one in arguments if one is not type(None)))
    if origin is tuple and Ellipsis not in arguments:
        return f"list of {len(arguments)}: {', '.join(_type(one) for one in arguments)}"
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return "table"
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return f"list of {_type(arguments[0])}s"
    return "table" if inspect.isclass(annotation) and issubclass(annotation, BaseModel) else "any"


def _value(value: object) -> str:
    """A default as a recipe writes it."""
    if value is None or value is PydanticUndefined:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, Mapping):
        return "`{}`" if not value else f"`{dict(value)}`"
    if isinstance(value, tuple | list):
        return f"`[{', '.join(_value(one).strip('`') for one in value)}]`"
    return f"`{value:.4g}`" if isinstance(value, float) else f"`{value}`"
