"""The words file: attributes of classes, conditions of a data set, and what a person changed after the model wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError

from fedprompt.errors import UserError
from fedprompt.records import write_atomic

FORMAT = 1
LARGEST = 16 << 20  # bytes; a thousand classes with their scenes need a tenth of it

Phrase = Annotated[str, StringConstraints(min_length=1, max_length=300, strip_whitespace=True)]
Phrases = Annotated[tuple[Phrase, ...], Field(max_length=200)]


class Part(BaseModel):
    """A piece of a words file; an unknown key is a mistake, not a comment."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Scene(Part):
    """How some labels come to be in one picture: what conditions were distilled from, kept for audit."""

    labels: tuple[str, ...]
    sentences: Phrases


class Provenance(Part):
    """Where the words come from. `written` has the fingerprint of every list as the model wrote it."""

    model: str = ""
    prompts: str = ""  # fingerprint of the questions' wording
    parameters: dict[str, JsonValue] = {}
    source: str = ""  # of converted files: the name of the file
    written: dict[str, str] = {}  # class name -> fingerprint
    written_conditions: str = ""


class Words(Part):
    """What a words file holds; either part may be absent."""

    fedprompt_words: int = FORMAT
    attributes: dict[str, Phrases] = {}
    conditions: Phrases = ()
    scenes: tuple[Scene, ...] = ()
    provenance: Provenance = Provenance()

    def edited(self) -> tuple[str, ...]:
        """Classes whose list is no longer, or never was, what a model wrote."""
        written = self.provenance.written
        return tuple(name for name, phrases in self.attributes.items() if written.get(name) != fingerprint(phrases))

    @property
    def conditions_edited(self) -> bool:
        """Whether the conditions are not, as they stand, a model's."""
        return bool(self.conditions) and self.provenance.written_conditions != fingerprint(self.conditions)


def fingerprint(phrases: Sequence[str]) -> str:
    """Sixteen hexadecimal digits of a list of phrases, order included."""
    return hashlib.sha256(json.dumps(list(phrases), ensure_ascii=False).encode()).hexdigest()[:16]


def generated(words: Words) -> Words:
    """The words with a fingerprint of every list: from here on, what differs from it was edited by hand."""
    written = {name: fingerprint(phrases) for name, phrases in words.attributes.items()}
    conditions = fingerprint(words.conditions) if words.conditions else ""
    provenance = words.provenance.model_copy(update={"written": written, "written_conditions": conditions})
    return words.model_copy(update={"provenance": provenance})


def keep_edits(old: Words, new: Words) -> tuple[Words, tuple[str, ...]]:
    """New words with the attributes that a person has changed, or added, in the old ones; and of which classes."""
    kept = old.edited()
    attributes = {**new.attributes, **{name: old.attributes[name] for name in kept}}
    return new.model_copy(update={"attributes": attributes}), kept


def check_path(path: Path) -> Path:
    """The path if a words file may be written there; its pages are NAME.md and NAME.html, so it is NAME.json."""
    if path.suffix != ".json":
        raise UserError(f"A words file ends in .json, which {path.name!r} does not; write to {path.stem}.json.")
    return path


def read_words(path: Path) -> Words:
    """Read a words file; UserError when it cannot be read, is none, or is damaged."""
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than {LARGEST >> 20} MiB, which no words file needs; check the path.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The words file {path} cannot be read ({error}); check the path.") from error
    try:
        tables = json.loads(text)
    except ValueError as error:
        raise UserError(f"The words file {path} is not valid JSON ({error}); correct that place.") from error
    if not isinstance(tables, dict) or "fedprompt_words" not in tables:
        raise UserError(f"{path} is not a words file; make one of it with: fedprompt describe convert {path} ...")
    if tables["fedprompt_words"] != FORMAT:
        raise UserError(
            f"The words file {path} has format {tables['fedprompt_words']!r}, and this version reads {FORMAT}."
        )
    try:
        return Words.model_validate(tables)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        raise UserError(f"The words file {path} is wrong at {place}: {first['msg']}; correct it.") from error


def write_words(path: Path, words: Words) -> None:
    """Write a words file, whole or not at all: one line a class, so that it is pleasant to edit and to compare."""
    tables = words.model_dump(mode="json", exclude_defaults=True) | {"fedprompt_words": FORMAT}
    write_atomic(check_path(path), _layout(tables))


def _layout(tables: Mapping[str, JsonValue]) -> str:
    order = [name for name in Words.model_fields if name in tables]
    return "{\n" + ",\n".join(f' "{name}": {_part(tables[name])}' for name in order) + "\n}\n"


def _part(value: JsonValue) -> str:
    if isinstance(value, dict) and value:
        rows = (f"  {_line(key)}: {_line(entry)}" for key, entry in value.items())
        return "{\n" + ",\n".join(rows) + "\n }"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(f"  {_line(entry)}" for entry in value) + "\n ]"
    return _line(value)


def _line(value: JsonValue) -> str:
    return json.dumps(value, ensure_ascii=False)
