"""Checks of the types of arguments, so that a wrong one is a sentence that says what to give."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from fedprompt.errors import UserError, a


def require(value: object, kind: type, what: str, fix: str) -> None:
    """Raise UserError unless the argument `what` is of a kind; `fix` says how to get one."""
    if not isinstance(value, kind):
        raise UserError(f"`{what}` is {shown(value)}, not {a(kind.__name__)}; {fix}.")


def keyed(value: object, what: str, example: str) -> Mapping[str, Any]:
    """A table of values by key, empty for None; UserError, with an example, for anything else."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise UserError(f"`{what}` is {shown(value)}; give a table of keys and values, such as {example}.")
    return value


def flag(value: object, what: str) -> bool:
    """True or False; UserError for anything else, such as "no", which Python takes for true."""
    require(value, bool, what, "give True or False")
    return bool(value)


def whole(value: object, what: str, *, least: int = 1) -> int:
    """A whole number of at least `least`; UserError for anything else."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise UserError(f"`{what}` is {shown(value)}; give a whole number of at least {least}.")
    return int(value)


def number(value: object, what: str, *, least: float = 0) -> float:
    """A finite number of at least `least`; UserError for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real) or not least <= float(value) < math.inf:
        raise UserError(f"`{what}` is {shown(value)}; give a finite number of at least {least:g}.")
    return float(value)


def as_path(value: object, what: str) -> Path:
    """The path of a file or folder; UserError for what is none."""
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"`{what}` is {shown(value)}; give a path, as text or a Path.")
    return Path(os.fsdecode(value)).expanduser()


def listed(value: object, what: str) -> tuple[Any, ...]:
    """The items of a list; a text, a path, a table or a class is a list of one. UserError for what is no list."""
    if isinstance(value, str | os.PathLike | Mapping | type):
        return (value,)
    if not isinstance(value, Iterable):
        raise UserError(f"`{what}` is {shown(value)}; give a list.")
    return tuple(value)


def shown(value: object) -> str:
    """A value in a message: short ones as they are, others by their type."""
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text else a(type(value).__name__)
