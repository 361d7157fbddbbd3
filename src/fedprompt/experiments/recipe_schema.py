"""The JSON schema of recipes: the tables, and for every building block the options of its signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from fedprompt import methods
from fedprompt.config.blocks import options_model
from fedprompt.config.recipe import Recipe
from fedprompt.config.registry import PARTITION_RULES, SOURCES


def recipe_schema() -> Mapping[str, Any]:
    """A schema with which editors complete and check recipes."""
    schema = Recipe.model_json_schema()
    tables = schema["$defs"]
    _add(tables["DataTable"], "source", SOURCES.builders)
    _add(tables["PartitionTable"], "rule", PARTITION_RULES.builders)
    _add(tables["MethodTable"], "name", {name: methods.load(name) for name in methods.names()})
    return schema


def _add(table: MutableMapping[str, Any], key: str, builders: Mapping[str, Callable[..., object]]) -> None:
    """For each name that `key` may have, allow and describe the options of its block."""
    table["allOf"] = [
        {"if": {"properties": {key: {"const": name}}}, "then": {"properties": _properties(builder)}}
        for name, builder in builders.items()
    ]


def _properties(builder: Callable[..., object]) -> Mapping[str, Any]:
    properties: Mapping[str, Any] = options_model(builder).model_json_schema()["properties"]
    return properties
