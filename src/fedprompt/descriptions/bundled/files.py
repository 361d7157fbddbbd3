"""The bundled descriptions files by name, read on first use, and the rules by which they are searched and checked."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from fedprompt.data.descriptions import Descriptions, read_descriptions
from fedprompt.errors import UserError, did_you_mean

FOLDER = Path(str(files("fedprompt") / "descriptions" / "bundled"))


class Rules(BaseModel):
    """The content of rules.toml: the order of preference, and class names that phrases may contain, with reasons."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    order: tuple[str, ...]
    exceptions: Mapping[str, Mapping[str, str]]  # file -> class name -> reason


@cache
def rules() -> Rules:
    """The rules of the bundled files."""
    return Rules.model_validate(tomllib.loads((FOLDER / "rules.toml").read_text(encoding="utf-8")))


def names() -> tuple[str, ...]:
    """The names of all bundled files, in their order of preference."""
    return rules().order


def path(name: str) -> Path:
    """Where a bundled file is."""
    return FOLDER / f"{name}.json"


@cache
def read(name: str) -> Descriptions:
    """A bundled file, read once; UserError if there is none of this name."""
    if name not in names():
        raise UserError(
            f"There are no bundled descriptions {name!r}{did_you_mean(name, names())} (known: {', '.join(names())})."
        )
    return read_descriptions(path(name))
