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

    Methods that keep their settings (`tune = false`) are left out. Its seed is that of [tuning], unless another is
    given.
    """
    varied = [table for table in (recipe.method, *recipe.compare) if table.tune]
    if not varied:
        raise UserError(f"Every method of the recipe {recipe.name} keeps its settings; leave out --tune.")
    main, *others = (at_point(table, point) for table in varied for point in points(recipe))
    number = recipe.tuning.seed if seed is None else seed
    # The headline figure depends on no test set under distribution shift, and these are most of the images.
    evaluate = recipe.evaluate.model_copy(update={"shifted": False})
    changed = {"name": f"{recipe.name}-tuning", "seed": number, "method": main, "compare": tuple(others), "vary": {}}
    return recipe.model_copy(update={**changed, "evaluate": evaluate})


def tuned(recipe: Recipe, found: Run) -> Recipe:
    """The recipe with each method's settings at the point with the best headline figure of the search."""
    trials = {trial.name: trial for trial in found.trials}
    column = headline(found)

    def best(table: MethodTable) -> MethodTable:
        if not table.tune:
            return table
        tried = {at_point(table, point).title: point for point in points(recipe)}
        name = max(tried, key=lambda name: trials[name].figures.get(column, 0.0))  # the first of equal points
        return table.model_copy(update={"train": table.train | tried[name]}) if trials[name].trains else table

    return recipe.model_copy(update={"method": best(recipe.method), "compare": tuple(map(best, recipe.compare))})


def at_edges(recipe: Recipe) -> list[str]:
    """A sentence per method whose settings lie at an end of the grid, where a wider grid may have better ones."""
    found = []
    for table in (recipe.method, *recipe.compare):
        for key, values in recipe.tuning.grid.items():
            if table.tune and len(values) > 2 and table.train.get(key) in (values[0], values[-1]):
                found.append(f"{table.title} is best at {key} = {table.train[key]}, an end of the grid; widen it.")
    return found


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
