"""Settings of the command line, such as `train.rounds=3`, applied to the tables of a recipe before they are checked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tomli_w

from fedprompt.config.recipe_tables import DataTable, MethodTable, PartitionTable, ServerBlock, Toml
from fedprompt.errors import UserError, did_you_mean, plural, wording
from fedprompt.text_files import load_toml

# Tables that name a building block: their path, the key of the name, and the keys that are no options of the block.
BLOCKS = (
    ("data", "source", frozenset(DataTable.model_fields)),
    ("partition", "rule", frozenset(PartitionTable.model_fields)),
    ("method", "name", frozenset(MethodTable.model_fields)),
    *(
        (f"train.server.{part}", "name", frozenset((*ServerBlock.model_fields, "adversaries")))
        for part in ("aggregate", "optimizer", "privacy", "attack")
    ),
)


@dataclass(frozen=True)
class Fit:
    """Fits a recipe to settings that choose another building block: options of the earlier one are left out.

    `options_of(table, name, values)` are the options of a block, without those that cannot have their value among
    `values`; None for a block that is unknown. `note` gets a sentence on what was left out.
    """

    options_of: Callable[[str, str, Toml], Collection[str] | None]
    note: Callable[[str], None]


def apply_settings(tables: Toml, settings: Sequence[str], *, keys: Collection[str], fit: Fit | None = None) -> None:
    """Write `key=value` settings into the tables; a value that is not TOML is taken as text.

    `keys` are all dotted keys of a recipe, for suggestions. Raises UserError for a setting that is no key of a table.
    """
    before = copy.deepcopy(tables)
    for setting in settings:
        _apply(tables, setting, keys)
    if fit is not None:
        given = frozenset(setting.partition("=")[0].strip() for setting in settings)
        if "about" not in given and _table(before, "method").get("name") != _table(tables, "method").get("name"):
            tables.pop("about", None)  # it is about the earlier method
        for note in _fitted(before, tables, given, fit):
            fit.note(note)


def setting(key: str, value: object) -> str:
    """The setting `key=value` with the value as TOML on one line; UserError for a value that TOML does not have."""
    try:
        return f"{key}={_inline(value)}"
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{key} = {value!r} is no value of a recipe; give text, a number, true or false, or a list or table."
        ) from error


def _inline(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_inline(str(key))} = {_inline(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return tomli_w.dumps({"value": value}).partition("=")[2].strip()


def dotted(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of a table and of the tables in it, with their values."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def suggestion(key: str, known: Collection[str], keys: Collection[str]) -> str:
    """`"; did you mean 'train.lr'?"`: a close one of the table's known keys, or a key of the same name elsewhere."""
    same = [one for one in keys if one.rpartition(".")[2] == key]
    if same:
        return f"; did you mean {' or '.join(map(repr, same))}?"
    return did_you_mean(key, known) or did_you_mean(key, keys)


def _apply(tables: Toml, setting: str, keys: Collection[str]) -> None:
    key, equals, value = setting.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{_named(setting)} is not of the form key=value; write e.g. {_example()}.")
    *parents, last = key.strip().split(".")
    place: Any = tables
    for parent in parents:
        place = _enter(place, parent, setting)
    if not isinstance(place, dict):
        hint = suggestion(last, (), keys) or f"; write e.g. {_example()}."
        raise UserError(f"{_named(setting)} does not name a key of a table{hint}")
    place[last] = parsed_value(value.strip())


def _named(setting: str) -> str:
    return f"--set {setting!r}" if wording() == "shell" else f"The setting {setting!r}"


def _example() -> str:
    return "--set train.rounds=3" if wording() == "shell" else '{"train.rounds": 3}'


def _enter(place: Any, key: str, setting: str) -> Any:
    if isinstance(place, dict):
        return place.setdefault(key, {})
    if isinstance(place, list) and key.isdigit() and int(key) < len(place):
        return place[int(key)]
    raise UserError(
        f"{_named(setting)} names {key!r}, which is not a table of the recipe; tables in a list are counted from 0."
    )


def parsed_value(text: str) -> Any:
    """The value of a setting: TOML, or else the text itself."""
    try:
        return load_toml(f"value = {text}")["value"]
    except ValueError:
        return text


def _fitted(before: Toml, tables: Toml, given: Collection[str], fit: Fit) -> Iterator[str]:
    """Remove what belongs to blocks that settings have replaced; yields a sentence for each that had something."""
    for path, key, own in BLOCKS:
        if f"{path}.{key}" not in given:
            continue
        old, table = _table(before, path), _table(tables, path)
        if old.get(key) in (None, table[key]):
            continue
        if path == "method" and (compared := _compared(tables, table[key])):
            yield _take_compared(tables, compared, given)
            continue
        options = fit.options_of(path, table[key], table)
        if options is None:  # an unknown name, of which the check of the recipe says more
            continue
        foreign = [one for one in table if one not in own and one not in options and f"{path}.{one}" not in given]
        for one in foreign:
            del table[one]
        if foreign:
            kept = [one for one in table if one in options and one in old and f"{path}.{one}" not in given]
            also = f" It keeps {', '.join(kept)}." if kept else ""
            what = plural(len(foreign), "option").partition(" ")[2]
            yield f"{path}.{key} = {table[key]} leaves out the {what} {', '.join(foreign)} of {old[key]}.{also}"


def _table(tables: Toml, path: str) -> Toml:
    """The table at a dotted path; empty if there is none."""
    place: Any = tables
    for step in path.split("."):
        place = place.get(step, {}) if isinstance(place, dict) else {}
    return place if isinstance(place, dict) else {}


def _compared(tables: Toml, name: str) -> Toml | None:
    """The table in `compare` of a method without a label of its own."""
    others = tables.get("compare", [])
    named = (one for one in others if isinstance(one, dict) and one.get("name") == name and not one.get("label"))
    return next(named, None) if isinstance(others, list) else None


def _take_compared(tables: Toml, compared: Toml, given: Collection[str]) -> str:
    """Make a compared method the main one, with its own options and those of settings."""
    settings = {key: value for key, value in tables["method"].items() if f"method.{key}" in given}
    tables["compare"] = [one for one in tables["compare"] if one is not compared]
    tables["method"] = compared | settings
    return f"method.name = {compared['name']} takes the table of {compared['name']} in compare, with its options."
