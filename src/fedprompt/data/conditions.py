"""The file of conditions under which labels occur together (FedMPT, 2026), by hand or from a language model."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fedprompt.errors import UserError

FORMAT = 1
LARGEST = 16 << 20  # bytes; sentences are kept for audit, and there may be many


class ConditionsFile(BaseModel):
    """`conditions.json`: what is used, and how it came about."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format_version: int
    conditions: list[str]  # in order of importance: a method that uses fewer takes the first
    model: str  # who wrote them: a language model's name, or a person
    prompts: list[str]
    sentences: list[str]  # scenes that were described on the way


def read_conditions(path: Path) -> tuple[str, ...]:
    """The conditions of a file; UserError naming it if it is of another form, or if one is empty or repeated."""
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than {LARGEST >> 20} MiB, which no conditions need; give another file.")
        found = ConditionsFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"The conditions {path} cannot be read ({error.strerror}); give another file.") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"The conditions {path} have another form ({place}: {first['msg']}); correct it.") from error
    if found.format_version != FORMAT:
        raise UserError(f"The conditions {path} are of format {found.format_version}, and {FORMAT} is read here.")
    return checked_conditions(found.conditions, place=str(path))


def checked_conditions(conditions: list[str], *, place: str) -> tuple[str, ...]:
    """The conditions without space around them; UserError naming `place` if one is empty or stands there twice."""
    known: dict[str, int] = {}
    for number, condition in enumerate(map(str.strip, conditions), start=1):
        if not condition:
            raise UserError(f"Condition {number} of {place} is empty; write a few words, or remove it.")
        if (before := known.setdefault(condition.lower(), number)) != number:
            raise UserError(f"Condition {number} of {place} repeats condition {before}, {condition!r}; remove one.")
    if not known:
        raise UserError(f"There are no conditions in {place}; write some, or remove the file.")
    return tuple(map(str.strip, conditions))
