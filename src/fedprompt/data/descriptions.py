"""Descriptions files: attributes of classes and conditions of a data set, written by a language model or a person."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError, field_validator

from fedprompt.data.intake.class_names import normal_name
from fedprompt.errors import UserError, did_you_mean
from fedprompt.text_files import json_text, load_json, read_unicode

FORMAT = 1
MAX_BYTES = 16 << 20  # a thousand classes with their scenes need a tenth of it
MOST_KEYS = 100_000  # colons count, which phrases may have too

Phrase = Annotated[str, StringConstraints(min_length=1, max_length=300, strip_whitespace=True)]
Phrases = Annotated[tuple[Phrase, ...], Field(max_length=200)]


class Section(BaseModel):
    """Base of all sections of a descriptions file; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Scene(Section):
    """How some labels come to be in one image: what conditions were derived from, stored for audit."""

    labels: tuple[str, ...]
    sentences: Phrases


class Provenance(Section):
    """Where the descriptions come from. `written` has the fingerprint of every list as the model wrote it."""

    model: str = ""
    prompts: str = ""  # fingerprint of the prompt templates
    parameters: dict[str, JsonValue] = {}
    source: str = ""  # of converted files: the name of the file
    authors: str = ""
    method: str = ""  # how the descriptions were made
    written: dict[str, str] = {}  # class name -> fingerprint
    written_conditions: str = ""

    @property
    def sentence(self) -> str:
        """Who or what wrote the descriptions, for pages; empty if that is not known."""
        if self.model:
            return f"Written by {self.model}."
        if self.authors:
            return f"By {self.authors}: {self.method}."
        return f"Converted from {self.source}." if self.source else ""


class Descriptions(Section):
    """The content of a descriptions file; attributes or conditions may be absent.

    `synonyms` are other names of classes, by which they are found too; `conditions_source` says whose conditions
    these are, and `licence` is the SPDX identifier of the file's licence.
    """

    fedprompt_descriptions: int = FORMAT
    attributes: dict[str, Phrases] = {}
    synonyms: dict[str, Phrases] = {}
    conditions: Phrases = ()
    conditions_source: str = ""
    scenes: tuple[Scene, ...] = ()
    licence: str = ""
    provenance: Provenance = Provenance()

    @field_validator("conditions")
    @classmethod
    def _reject_repeated(cls, conditions: Phrases) -> Phrases:
        known: dict[str, int] = {}
        for number, condition in enumerate(conditions, start=1):
            if (before := known.setdefault(condition.lower(), number)) != number:
                raise ValueError(f"condition {number} repeats condition {before}, {condition!r}")
        return conditions

    def edited(self) -> tuple[str, ...]:
        """Classes whose attributes are not exactly what a model wrote."""
        written = self.provenance.written
        return tuple(name for name, phrases in self.attributes.items() if written.get(name) != fingerprint(phrases))

    @property
    def conditions_edited(self) -> bool:
        """Whether the conditions are not exactly what a model wrote."""
        return bool(self.conditions) and self.provenance.written_conditions != fingerprint(self.conditions)


def fingerprint(phrases: Sequence[str]) -> str:
    """Sixteen hexadecimal digits of a list of phrases, order included."""
    return hashlib.sha256(json_text(list(phrases), ascii_only=False).encode()).hexdigest()[:16]


def load_description_json(path: Path) -> object:
    """The content of a JSON file; UserError if it cannot be read, is not JSON or too large."""
    text = read_unicode(path, most=MAX_BYTES)
    try:
        return load_json(text, most_keys=MOST_KEYS)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); correct that place.") from error


def read_descriptions(path: Path) -> Descriptions:
    """Read a descriptions file, or a plain object of class names with lists of phrases, written by hand.

    Raises UserError when it cannot be read, is neither, or is damaged.
    """
    tables = load_description_json(path)
    if not isinstance(tables, dict):
        raise UserError(f"{path} is not a descriptions file; convert it with: fedprompt describe convert {path} ...")
    if "fedprompt_descriptions" not in tables:
        tables = {"fedprompt_descriptions": FORMAT, "attributes": tables}
    if tables["fedprompt_descriptions"] != FORMAT:
        raise UserError(
            f"The descriptions file {path} has format {tables['fedprompt_descriptions']!r}, and this version reads "
            f"{FORMAT}."
        )
    try:
        return Descriptions.model_validate(tables)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"The descriptions file {path} is wrong at {place}: {problem}; correct it (fedprompt describe convert "
            "makes a descriptions file from other JSON)."
        ) from error


def read_conditions(path: Path) -> tuple[str, ...]:
    """The conditions of a descriptions file; UserError if it has none."""
    found = read_descriptions(path).conditions
    if not found:
        raise UserError(
            f"The descriptions file {path} has no conditions; make some with: fedprompt describe conditions."
        )
    return found


def read_attributes(root: Path, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Attributes from the `attributes.json` of a folder, if it has one; UserError for another form or unknown class."""
    file = root / "attributes.json"
    if not file.exists():
        return {}
    return {
        known_class(name, names, str(file)): phrases for name, phrases in read_descriptions(file).attributes.items()
    }


def known_class(name: str, names: Iterable[str], origin: str) -> str:
    """A class name in its normal form; UserError naming its `origin` if the data set has no such class."""
    own = normal_name(name)
    if own not in names:
        raise UserError(
            f"{origin} names the class {name!r}, which the data set does not have{did_you_mean(own, names)}."
        )
    return own
