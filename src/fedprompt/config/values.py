"""Values of settings: the base model that checks every number, and the sentence about a value that is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError, PydanticKnownError

from fedprompt.errors import wording

LARGEST = 1e30  # of a setting, in absolute value: squares of larger numbers, or sums of a few, leave float32
LARGEST_INTEGER = 2**63 - 1  # TOML promises no more, and PyTorch takes no more


@dataclass(frozen=True)
class Infinity:
    """Marks a number for which infinity has a meaning."""


OrInfinite = Annotated[float, Infinity()]  # a number that may be infinite; any other number of a setting is finite


@dataclass(frozen=True)
class Signed:
    """Marks a number that may be negative, such as a factor that turns a direction round."""


OrNegative = Annotated[float, Signed()]  # declares to the conformance tests that an option takes numbers below zero


class Settings(BaseModel):
    """A model of settings in which every number is finite, unless its type is `OrInfinite`, and none is NaN.

    A number given as text is refused, as is true or false where a number is wanted, and the reverse.
    """

    # "constants": a dump keeps infinity, which TOML has, instead of writing null
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    @field_validator("*", mode="before")
    @classmethod
    def _check_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        if table_in(field.annotation) is not None:
            return value  # a table checks its own keys
        reason = _refusal(value, infinite=any(isinstance(mark, Infinity) for mark in field.metadata))
        if reason:
            raise PydanticCustomError("number", "{reason}", {"reason": reason})
        if wanted := _wanted_in_place_of(value, field.annotation):
            raise PydanticKnownError(wanted)
        return value


def table_in(annotation: Any) -> type[BaseModel] | None:
    """The model of the table, or of each table of a list, that a field of this type holds; None if it holds none."""
    parts = (annotation, *getattr(annotation, "__args__", ()))
    return next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)


def _wanted_in_place_of(value: object, annotation: object) -> Literal["int_type", "float_type", "bool_type"] | None:
    """The error if text or a truth value stands for a number, or either for a truth value; pydantic converts them."""
    kinds = set(_scalars(annotation))
    if kinds & {str, Any} or not isinstance(value, bool | int | float | str) or type(value) in kinds:
        return None
    is_word = isinstance(value, str) and not value.strip("+-").isdecimal()
    if is_word and any(isinstance(kind, str) for kind in kinds):
        return None  # the error of a literal lists the choices
    if kinds & {int, float} and isinstance(value, int | float) and not isinstance(value, bool):
        return None  # pydantic tells whole numbers from others
    return "int_type" if int in kinds else "float_type" if float in kinds else "bool_type" if bool in kinds else None


def _scalars(annotation: object) -> Iterator[object]:
    """The types that a value may have, without their marks, and the values of literals."""
    if get_origin(annotation) is Annotated:
        yield from _scalars(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _scalars(part)
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        yield annotation


def _refusal(value: object, *, infinite: bool) -> str:
    """Why a value, or a number in it, cannot be one of a setting; empty if it can."""
    if isinstance(value, Mapping):
        found = ((key, _refusal(item, infinite=infinite)) for key, item in value.items())
        return next((f"{key}: {reason}" for key, reason in found if reason), "")
    if isinstance(value, list | tuple):
        return next(filter(None, (_refusal(item, infinite=infinite) for item in value)), "")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return "" if infinite and value > 0 else "give a finite number"
    largest = LARGEST if isinstance(value, float) else LARGEST_INTEGER
    return "" if abs(value) <= largest else f"no setting may be larger than {largest}"


# pydantic's error type -> what the value must be; a name in braces is of the error's context
_MUST_BE = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("string_type", "path_type"), "text"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a table"),
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}",
}
MUST_BE = "it must be "


def refused_value(errors: Sequence[ErrorDetails], key: str, table: str = "") -> str:
    """What is wrong with the value of a key, without a full stop; `table` is the dotted name of the key's table.

    `errors` are those of the key: one, or one per type where several are allowed.
    """
    value = errors[0]["input"]
    reasons = list(dict.fromkeys(map(_reason, errors)))
    reason = reasons[0]
    if all(text.startswith(MUST_BE) for text in reasons):
        reason = MUST_BE + " or ".join(text.removeprefix(MUST_BE) for text in reasons)
    if errors[0]["type"] in ("string_type", "path_type") and isinstance(value, int | float | date | datetime | time):
        text = str(value).lower() if isinstance(value, bool) else str(value)
        full = f"{table}.{key}" if table else key
        reason = f"""it must be text, so quote it: {key} = "{text}\""""
        reason += f""", or --set '{full}="{text}"' on the command line""" * (wording() == "shell")
    return f"{key} = {value!r} is not accepted: {reason}"


def _reason(error: ErrorDetails) -> str:
    """Why a value is not accepted, in plain words: "it must be a whole number"."""
    if found := _MUST_BE.get(error["type"]):
        return MUST_BE + found.format(**error.get("ctx", {})).replace("'", '"')
    text = error["msg"].removeprefix("Value error, ").rstrip(".")
    text = f"{text[:1].lower()}{text[1:]}"
    return MUST_BE + text.removeprefix("input should be ") if text.startswith("input should be ") else text
