"""Tune all methods of a recipe on the same grid of training settings, with a seed that no comparison uses."""

from __future__ import annotations

import itertools

from fedprompt.config.recipe import Recipe
from fedprompt.config.recipe_tables import MethodTable, Toml
from fedprompt.errors import UserError
from fedprompt.report import Run
from fedprompt.report.comparison import headline


def search(recipe: Recipe, *, seed: int | None = None) -> Recipe:
    """The recipe of the search: each method at every point of the grid, as trials of one run; UserError if no grid.

    Its seed is that of [tuning], unless another is given.
    """
    main, *others = (at_point(table, point) for table in (recipe.method, *recipe.compare) for point in points(recipe))
    number = recipe.tuning.seed if seed is None else seed
    changed = {"name": f"{recipe.name}-tuning", "seed": number, "method": main, "compare": tuple(others)}
    return recipe.model_copy(update=changed)


def tuned(recipe: Recipe, found: Run) -> Recipe:
    """The recipe with each method's settings at the point with the best headline figure of the search."""
    trials = {trial.name: trial for trial in found.trials}
    column = headline(found)

    def best(table: MethodTable) -> MethodTable:
        tried = {at_point(table, point).title: point for point in points(recipe)}
        name = max(tried, key=lambda name: trials[name].figures.get(column, 0.0))  # the first of equal points
        return table.model_copy(update={"train": table.train | tried[name]}) if trials[name].trains else table

    return recipe.model_copy(update={"method": best(recipe.method), "compare": tuple(map(best, recipe.compare))})


def points(recipe: Recipe) -> list[Toml]:
    """The [train] settings at each point of the grid."""
    grid = recipe.tuning.grid
    if not grid:
        raise UserError(f"The recipe {recipe.name} has no grid; give it one under [tuning], or leave out --tune.")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def short_point(point: Toml) -> str:
    """A point in a heading: "lr 0.001"."""
    return ", ".join(f"{key} {value}" for key, value in point.items())


def at_point(table: MethodTable, point: Toml) -> MethodTable:
    """A method with the settings of a point, which its label names."""
    label = "-".join([table.title, *(f"{key}-{value}" for key, value in point.items())])
    return table.model_copy(update={"label": label, "train": table.train | point})
