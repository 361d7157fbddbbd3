"""What is wrong with a value of a recipe, in plain words, from pydantic's errors."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic_core import ErrorDetails

# pydantic's error type -> what the value must be; a name in braces is of the error's context
_MUST_BE = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("string_type", "path_type"), "text"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a table"),
    "finite_number": "a finite number",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}",
}
MUST_BE = "it must be "


def reason(error: ErrorDetails) -> str:
    """Why a value is not accepted, without a full stop: "it must be a whole number"."""
    if found := _MUST_BE.get(error["type"]):
        return MUST_BE + found.format(**error.get("ctx", {})).replace("'", '"')
    text = error["msg"].removeprefix("Value error, ").rstrip(".")
    text = f"{text[:1].lower()}{text[1:]}"
    return MUST_BE + text.removeprefix("input should be ") if text.startswith("input should be ") else text


def reason_of_all(errors: Sequence[ErrorDetails]) -> str:
    """The reason of one value that none of several types accepts: "it must be a whole number or "all""."""
    reasons = list(dict.fromkeys(map(reason, errors)))
    if all(text.startswith(MUST_BE) for text in reasons):
        return MUST_BE + " or ".join(text.removeprefix(MUST_BE) for text in reasons)
    return reasons[0]
