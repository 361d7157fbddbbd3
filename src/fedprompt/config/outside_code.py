"""Code outside fedprompt that recipes and adapters name: it runs only if the user trusts it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fedprompt.config.recipe import Recipe, checked
from fedprompt.config.recipe_tables import ServerTable, TrainTable
from fedprompt.errors import UserError, series, wording

# What stands in the recipe of a run for objects given from Python; both only say so.
GIVEN_DATA = "fedprompt.api.datasets:given_in_python"
GIVEN_PARTITION = "fedprompt.api.datasets:partition_in_python"


def is_outside(name: str) -> bool:
    """Whether the name of a method or another building block is that of a module: "my_package.mine", "package:rule"."""
    return ("." in name or ":" in name) and name not in (GIVEN_DATA, GIVEN_PARTITION)


def named_code(recipe: Recipe) -> tuple[str, ...]:
    """Every name in a recipe that would import code from outside fedprompt, in order; nothing is imported."""
    return tuple(dict.fromkeys(filter(is_outside, _names(recipe))))


def _names(recipe: Recipe) -> Iterator[str]:
    yield recipe.data.source
    yield recipe.partition.rule
    for table in (recipe.method, *recipe.compare):
        yield table.name
        train = checked(TrainTable, recipe.train.model_dump() | table.train, origin=f"{recipe.name}: [method.train]")
        yield from _names_of_server(train.server)
    for key, values in recipe.tuning.grid.items():
        for value in values:
            train = checked(TrainTable, recipe.train.model_dump() | {key: value}, origin=f"{recipe.name}: [tuning]")
            yield from _names_of_server(train.server)


def _names_of_server(server: ServerTable) -> Iterator[str]:
    pieces = (server.aggregate, server.optimizer, server.privacy, server.attack)
    return (piece.name for piece in pieces if piece is not None)


def require_trusted(names: Iterable[str], trusted: Sequence[str], *, place: str) -> None:
    """Raise UserError naming the modules that are neither trusted nor in a trusted package."""
    modules = dict.fromkeys(name.partition(":")[0] for name in names)
    others = [one for one in modules if not any(one == own or one.startswith(f"{own}.") for own in trusted)]
    if others:
        raise UserError(
            f"{place} names code outside fedprompt that would run, in {series(map(repr, others))}; if you know "
            f"and trust it, add `{_trusting(others)}`."
        )


def _trusting(modules: Sequence[str]) -> str:
    if wording() != "shell":
        return f"trust_code={list(modules)!r}"
    return " ".join(f"--trust-code {one}" for one in modules)


def typed(names: Iterable[str], settings: Sequence[str]) -> tuple[str, ...]:
    """The modules of those names that stand in settings of the command line, which the user has typed."""
    return tuple(name.partition(":")[0] for name in names if any(name in setting for setting in settings))
