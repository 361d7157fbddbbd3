"""Equal tuning: every method of a recipe at the same points of a grid, on a seed that no table uses."""

from __future__ import annotations

import itertools

from fedprompt.config.recipe import Recipe
from fedprompt.config.tables import MethodTable, Toml
from fedprompt.errors import UserError
from fedprompt.report import Run
from fedprompt.report.comparison import headline


def search(recipe: Recipe) -> Recipe:
    """The recipe of the search: each method once at every point, as trials of one run; UserError without a grid."""
    main, *others = (_at(table, point) for table in (recipe.method, *recipe.compare) for point in _points(recipe))
    changed = {"name": f"{recipe.name}-tuning", "seed": recipe.tuning.seed, "method": main, "compare": tuple(others)}
    return recipe.model_copy(update=changed)


def tuned(recipe: Recipe, found: Run) -> Recipe:
    """The recipe with each method at the point where the run of its search has the best headline figure."""
    trials = {trial.name: trial for trial in found.trials}
    column = headline(found)

    def best(table: MethodTable) -> MethodTable:
        tried = {_at(table, point).title: point for point in _points(recipe)}
        name = max(tried, key=lambda name: trials[name].figures.get(column, 0.0))  # the first point of several as good
        return table.model_copy(update={"train": table.train | tried[name]}) if trials[name].trains else table

    return recipe.model_copy(update={"method": best(recipe.method), "compare": tuple(map(best, recipe.compare))})


def _points(recipe: Recipe) -> list[Toml]:
    """What [train] is given at each point of the grid."""
    grid = recipe.tuning.grid
    if not grid:
        raise UserError(f"The recipe {recipe.name} has no grid; give it one under [tuning], or leave out --tune.")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _at(table: MethodTable, point: Toml) -> MethodTable:
    """A method at a point, labelled by it."""
    label = "-".join([table.title, *(f"{key}-{value}" for key, value in point.items())])
    return table.model_copy(update={"label": label, "train": table.train | point})
