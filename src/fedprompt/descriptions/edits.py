"""Write descriptions files, and tell a person's edits from what a model wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from fedprompt.data.descriptions import FORMAT, Descriptions, fingerprint
from fedprompt.errors import UserError
from fedprompt.records.atomic_files import write_atomic
from fedprompt.text_files import json_text


def generated(descriptions: Descriptions) -> Descriptions:
    """The descriptions with a fingerprint of every list: a list that no longer matches was edited by hand."""
    written = {name: fingerprint(phrases) for name, phrases in descriptions.attributes.items()}
    conditions = fingerprint(descriptions.conditions) if descriptions.conditions else ""
    provenance = descriptions.provenance.model_copy(update={"written": written, "written_conditions": conditions})
    return descriptions.model_copy(update={"provenance": provenance})


def keep_edits(old: Descriptions, new: Descriptions) -> tuple[Descriptions, tuple[str, ...]]:
    """The new descriptions with the attributes that a person changed or added in the old ones, and those classes."""
    kept = old.edited()
    attributes = {**new.attributes, **{name: old.attributes[name] for name in kept}}
    return new.model_copy(update={"attributes": attributes}), kept


def check_path(path: Path) -> Path:
    """The path, if it ends in .json; UserError otherwise, because the review pages are NAME.md and NAME.html."""
    if path.suffix != ".json":
        raise UserError(f"A descriptions file ends in .json, which {path.name!r} does not; write to {path.stem}.json.")
    return path


def write_descriptions(path: Path, descriptions: Descriptions) -> None:
    """Write a descriptions file atomically, one line per class, so that it is easy to edit and to diff."""
    tables = descriptions.model_dump(mode="json", exclude_defaults=True) | {"fedprompt_descriptions": FORMAT}
    write_atomic(check_path(path), _layout(tables))


def _layout(tables: Mapping[str, JsonValue]) -> str:
    order = [name for name in Descriptions.model_fields if name in tables]
    return "{\n" + ",\n".join(f' "{name}": {_part(tables[name])}' for name in order) + "\n}\n"


def _part(value: JsonValue) -> str:
    if isinstance(value, dict) and value:
        rows = (f"  {_line(key)}: {_line(entry)}" for key, entry in value.items())
        return "{\n" + ",\n".join(rows) + "\n }"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(f"  {_line(entry)}" for entry in value) + "\n ]"
    return _line(value)


def _line(value: JsonValue) -> str:
    return json_text(value, ascii_only=False)
