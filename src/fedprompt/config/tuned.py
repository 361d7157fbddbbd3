"""Tuned defaults per method for data of one's own, and the methods to try first."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Collection, Mapping
from importlib.resources import files
from typing import Literal

from fedprompt.config.recipe_tables import MethodTable, Toml

Defaults = Literal["paper", "single-label", "multi-label"]
PAPER: Defaults = "paper"


@functools.cache
def tuned_defaults() -> Mapping[str, Mapping[str, Toml]]:
    """Kind of task -> method -> its tuned [train] keys under `train`, and its tuned options."""
    return _bundled("tuned.toml")


def with_tuned(table: MethodTable, defaults: Defaults, *, stated: Collection[str]) -> MethodTable:
    """A method's table with tuned defaults for what neither it nor the recipe's [train] table says.

    `stated` are the keys that [train] sets. A method without tuned defaults keeps its own.
    """
    found = {} if defaults == PAPER else tuned_defaults()[defaults].get(table.name, {})
    train = {key: value for key, value in found.get("train", {}).items() if key not in stated}
    said = table.model_dump(exclude_unset=True)
    options = {key: value for key, value in found.items() if key != "train"}
    return MethodTable.model_validate({**options, **said, "train": train | table.train})


@functools.cache
def recommended(kind: Literal["single", "multi"]) -> tuple[str, ...]:
    """The methods to try first on such labels, best first: those that lead the comparison of all methods."""
    return tuple(_bundled("recommended.toml")[kind])


def _bundled(name: str) -> dict[str, Toml]:
    return tomllib.loads((files("fedprompt") / "config" / name).read_text(encoding="utf-8"))
