"""The descriptions file: attributes of classes, conditions of a data set, and what a person changed after a model wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError, field_validator

from fedprompt.errors import UserError

FORMAT = 1
LARGEST = 16 << 20  # bytes; a thousand classes with their scenes need a tenth of it

Phrase = Annotated[str, StringConstraints(min_length=1, max_length=300, strip_whitespace=True)]
Phrases = Annotated[tuple[Phrase, ...], Field(max_length=200)]


class Part(BaseModel):
    """A piece of a descriptions file; an unknown key is a mistake, not a comment."""

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


class Descriptions(Part):
    """What a descriptions file holds; either part may be absent."""

    fedprompt_descriptions: int = FORMAT
    attributes: dict[str, Phrases] = {}
    conditions: Phrases = ()
    scenes: tuple[Scene, ...] = ()
    provenance: Provenance = Provenance()

    @field_validator("conditions")
    @classmethod
    def _differ(cls, conditions: Phrases) -> Phrases:
        known: dict[str, int] = {}
        for number, condition in enumerate(conditions, start=1):
            if (before := known.setdefault(condition.lower(), number)) != number:
                raise ValueError(f"condition {number} repeats condition {before}, {condition!r}")
        return conditions

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


def load_json(path: Path, *, called: str, needed: str) -> object:
    """The JSON in a file of words, which `called` names; UserError when it is unreadable, no JSON, or too large."""
    try:
        small = path.stat().st_size <= LARGEST
        found: object = json.loads(path.read_text(encoding="utf-8")) if small else None
    except OSError as error:
        raise UserError(f"{called} cannot be read ({error.strerror}); check the path.") from error
    except ValueError as error:
        raise UserError(f"{called} is not valid JSON ({error}); correct that place.") from error
    if not small:
        raise UserError(f"{path} is larger than {LARGEST >> 20} MiB, which no {needed}; check the path.")
    return found


def read_descriptions(path: Path) -> Descriptions:
    """Read a descriptions file, or a plain object of class names with lists of phrases, written by hand.

    Raises UserError when it cannot be read, is neither, or is damaged.
    """
    tables = load_json(path, called=f"The descriptions file {path}", needed="descriptions file needs")
    if not isinstance(tables, dict):
        raise UserError(
            f"{path} is not a descriptions file; make one of it with: fedprompt describe convert {path} ..."
        )
    if "fedprompt_descriptions" not in tables:
        tables = {"fedprompt_descriptions": FORMAT, "attributes": tables}
    if tables["fedprompt_descriptions"] != FORMAT:
        raise UserError(
            f"The descriptions file {path} has format {tables['fedprompt_descriptions']!r}, and this version reads {FORMAT}."
        )
    try:
        return Descriptions.model_validate(tables)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"The descriptions file {path} is wrong at {place}: {said}; correct it (fedprompt describe convert makes a words "
            "file of other JSON)."
        ) from error


def read_conditions(path: Path) -> tuple[str, ...]:
    """The conditions of a descriptions file; UserError if it has none."""
    found = read_descriptions(path).conditions
    if not found:
        raise UserError(
            f"The descriptions file {path} has no conditions; make some with: fedprompt describe conditions."
        )
    return found
