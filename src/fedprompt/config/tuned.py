"""Defaults for data of one's own: those of its recipes, tuned ones per method, and the methods to try first."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Literal

from fedprompt.config.recipe_tables import MethodTable, Toml, TrainTable

Defaults = Literal["paper", "single-label", "multi-label"]
PAPER: Defaults = "paper"
FIRST = 4  # methods to try first
OWN: Mapping[str, str] = {"single": "own_folder", "multi": "own_table"}  # the recipes for data of one's own


@functools.cache
def tuned_defaults() -> Mapping[str, Mapping[str, Toml]]:
    """Kind of task -> method -> its tuned [train] keys under `train`, its tuned options, its mean `gain` (points)."""
    return _bundled("config", "tuned.toml")


def own_defaults(kind: Literal["single", "multi"]) -> tuple[Defaults, Toml]:
    """What the recipe for data of one's own with one label or several per image says: `defaults` and its [train]."""
    recipe = _bundled("recipes", f"{OWN[kind]}.toml")
    return recipe["defaults"], recipe["train"]


def with_tuned(table: MethodTable, defaults: Defaults, train: TrainTable) -> MethodTable:
    """A method's table with tuned defaults for what neither it nor the recipe's [train] table says.

    A method without tuned defaults keeps its own, and one with another optimiser than AdamW has no tuned rate.
    """
    found = {} if defaults == PAPER else tuned_defaults()[defaults].get(table.name, {})
    is_tuned = table.train.get("optimizer", train.optimizer) == "adamw"
    tuned = {
        key: value
        for key, value in found.get("train", {}).items()
        if key not in train.model_fields_set and (is_tuned or key != "lr")
    }
    said = table.model_dump(exclude_unset=True)
    options = {key: value for key, value in found.items() if key not in ("train", "gain")}
    return MethodTable.model_validate({**options, **said, "train": tuned | table.train})


def recommended(kind: Literal["single", "multi"]) -> tuple[str, ...]:
    """The methods to try first on such labels, best first: those with the largest mean gains on small sets."""
    found = tuned_defaults()[own_defaults(kind)[0]]
    ranked = sorted(found, key=lambda name: -found[name]["gain"])
    return tuple(name for name in ranked[:FIRST] if found[name]["gain"] > 0)


def _bundled(*place: str) -> dict[str, Any]:
    return tomllib.loads(files("fedprompt").joinpath(*place).read_text(encoding="utf-8"))
