"""The JSON schema of a recipe: its own tables, and for every named piece the options its signature has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

from fedprompt import methods
from fedprompt.config.recipe import Recipe, options_model
from fedprompt.config.registry import RULES, SOURCES, SUPPLIED, find


def recipe_schema() -> Mapping[str, Any]:
    """A schema that editors complete and check recipes with."""
    schema = Recipe.model_json_schema()
    tables = schema["$defs"]
    _add(tables["DataTable"], "source", ((word, find(SOURCES, word, place="[data]")) for word in SOURCES))
    _add(tables["PartitionTable"], "rule", ((word, find(RULES, word, place="[partition]")) for word in RULES))
    _add(tables["MethodTable"], "name", ((name, methods.load(name)) for name in methods.names()))
    return schema


def _add(table: MutableMapping[str, Any], key: str, pieces: Iterable[tuple[str, Callable[..., object]]]) -> None:
    """For each word that `key` may have, allow and describe the options of the piece it names."""
    table["allOf"] = [
        {"if": {"properties": {key: {"const": word}}}, "then": {"properties": _properties(piece)}}
        for word, piece in pieces
    ]


def _properties(piece: Callable[..., object]) -> Mapping[str, Any]:
    properties: Mapping[str, Any] = options_model(piece, supplied=SUPPLIED).model_json_schema()["properties"]
    return properties
