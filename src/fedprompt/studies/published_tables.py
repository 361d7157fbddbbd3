"""Published tables as cells, each with its source and its certainty."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from fedprompt.errors import UserError, did_you_mean

ABSENT = "-"


@dataclass(frozen=True)
class PublishedCell:
    """One published figure, in percent unless its table says otherwise."""

    table: str
    row: str
    column: str
    measure: str
    value: float
    source: str
    certainty: str


@cache
def _printed() -> tuple[Mapping[str, Any], ...]:
    text = (files("fedprompt.studies") / "tables.toml").read_text(encoding="utf-8")
    return tuple(tomllib.loads(text)["printed"])


@cache
def cells() -> Mapping[str, tuple[PublishedCell, ...]]:
    """Every published figure, by table."""
    found: dict[str, tuple[PublishedCell, ...]] = {}
    for table in _printed():
        found[table["name"]] = tuple(
            PublishedCell(
                table=table["name"],
                row=row,
                column=column,
                measure=measure,
                value=float(value),
                source=table["source"],
                certainty=table.get("certainty_of", {}).get(row, table["certainty"]),
            )
            for row, values in table["rows"].items()
            for column, joined in zip(table["columns"], values.split(), strict=True)
            for measure, value in zip(table.get("measures", [""]), joined.split("/"), strict=True)
            if value != ABSENT
        )
    return found


@cache
def remarks() -> Mapping[str, str]:
    """Caveats of each table, for comparisons with it."""
    return {table["name"]: table.get("note", "") for table in _printed()}


def table(name: str) -> tuple[PublishedCell, ...]:
    """The cells of a table; UserError if there is no such table."""
    if name not in cells():
        raise UserError(
            f"There is no published table {name!r}{did_you_mean(name, cells())} (known: {', '.join(cells())})."
        )
    return cells()[name]
