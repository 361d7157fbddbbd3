"""Tuning on a user's own data: learning rates of some methods searched on held-out images, then a run with the best."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedprompt.config.recipe import Recipe
from fedprompt.config.recipe_tables import MethodTable, Toml, TuningTable
from fedprompt.errors import UserError, did_you_mean, option
from fedprompt.experiments.context import RunCallbacks
from fedprompt.experiments.experiment import Experiment, assemble
from fedprompt.experiments.given import NOTHING, Given
from fedprompt.experiments.keep import BEST, LAST, Keep
from fedprompt.records.event_fields import CommandRecord
from fedprompt.records.output_folder import FINAL
from fedprompt.records.run_record import Run
from fedprompt.studies.sweep import Job
from fedprompt.studies.tune_results import METRIC, Result, Tried, default_settings, judge, trainable
from fedprompt.studies.tuning import at_point, points, search

# A part of the grids of `fedprompt compare --demo`, with the default rates of all methods, which a search may keep.
GRID = {"lr": (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)}
SEARCH_RUN = "search"  # folder of the run of the search, in the output folder


@dataclass(frozen=True)
class Tuning:
    """A recipe with the methods that are tuned, those beside them that train nothing, and the output folder.

    `draws` is the number of points that Optuna draws for each method from the ranges of the grid; 0 tries the grid.
    `opening` is how many seconds it took to open backbone and data, `command` is what the user typed, and `given` is
    what a caller has opened.
    """

    recipe: Recipe
    references: tuple[MethodTable, ...]
    out: Path
    draws: int = 0
    opening: float = 0.0
    command: CommandRecord | None = None
    given: Given = NOTHING

    @property
    def points(self) -> int:
        """Number of points at which every method is tried."""
        return self.draws or len(points(self.recipe))

    @property
    def keep(self) -> Keep:
        """The rule by which the search chooses a round."""
        return Keep.of(_unseen(self.recipe), origin=self.recipe.name)

    @property
    def methods(self) -> tuple[MethodTable, ...]:
        """The methods that are tuned."""
        return (self.recipe.method, *self.recipe.compare)

    def search_job(self, rounds: int) -> Job:
        """The search: every method at every point of the grid, without any test image.

        It has the recipe's own seed: another would draw other test images, and this run's among its training images.
        """
        recipe = search(_unseen(self.recipe), seed=self.recipe.seed)
        return Job(self._in_time(recipe, rounds), self.out / SEARCH_RUN, given=self.given)

    def draw_job(self, number: int, drawn: Mapping[str, Toml], rounds: int) -> Job:
        """A part of the search by Optuna: every method at the point that was drawn for it, by its title."""
        main, *others = (at_point(table, drawn[table.title]) for table in self.methods)
        update = {"name": f"{self.recipe.name}-tuning", "method": main, "compare": tuple(others)}
        recipe = _unseen(self.recipe).model_copy(update=update)
        return Job(self._in_time(recipe, rounds), self.out / SEARCH_RUN / f"{number:03d}", given=self.given)

    def final_job(self, results: Sequence[Result], rounds: int) -> Job:
        """The final run: every method with its best settings, the best of all as the main one, and the references."""
        main, *others = (self._tuned(result) for result in trainable(results))
        update = {"name": f"{self.recipe.name}-tuned", "method": main, "compare": (*others, *self.references)}
        recipe = self._in_time(self.recipe.model_copy(update=update), rounds)
        return Job(recipe, self.out / FINAL, command=self.command, given=self.given)

    def best_recipe(self, results: Sequence[Result], rounds: int) -> Recipe:
        """The recipe that trains the best method alone, beside the references."""
        recipe = self.final_job(results, rounds).recipe
        disk = recipe.backbone.model_copy(update={"disk": self.recipe.backbone.disk})
        return recipe.model_copy(update={"compare": self.references, "backbone": disk})

    def _tuned(self, result: Result) -> MethodTable:
        point = result.points[result.best or 0]
        return result.table.model_copy(update={"train": result.table.train | point})

    def _in_time(self, recipe: Recipe, rounds: int) -> Recipe:
        main, *others = (_at_most(table, rounds) for table in (recipe.method, *recipe.compare))
        train = recipe.train.model_copy(update={"rounds": rounds})
        update = {"method": main, "compare": tuple(others), "train": train, "minutes": 0.0}
        return with_features(recipe.model_copy(update=update), self.out, self.given)


def with_features(recipe: Recipe, out: Path, given: Given) -> Recipe:
    """The recipe with the features of images kept below the output folder, so that all runs encode them once.

    A backbone that is given keeps them itself.
    """
    if given.clip is not None:
        return recipe
    disk = recipe.backbone.disk or str((out / "features").absolute())
    return recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update={"disk": disk})})


def _at_most(table: MethodTable, rounds: int) -> MethodTable:
    own = table.train.get("rounds", rounds)
    return table if own <= rounds else table.model_copy(update={"train": {**table.train, "rounds": rounds}})


@dataclass(frozen=True)
class Wanted:
    """What is to be tuned: methods by name (none: those of the recipe), minutes, and draws (0: the grid)."""

    names: Sequence[str] = ()
    minutes: float | None = None
    draws: int = 0


def make_tuning(
    recipe: Recipe, wanted: Wanted, out: Path, *, origin: str, callbacks: RunCallbacks, given: Given = NOTHING
) -> tuple[Tuning, Experiment]:
    """The tuning of a recipe's methods, or of those named, and its experiment; UserError for anything wrong.

    A name is that of one of the recipe's trials, or of any method, which then has its default options.
    """
    names = wanted.names
    tables = (recipe.method, *recipe.compare)
    chosen = tuple(_named(name, tables) for name in names) or tables
    titles = [table.title for table in chosen]
    if twice := next((title for title in titles if titles.count(title) > 1), None):
        raise UserError(f"{option('method', 'methods')} names {twice!r} twice; name every method once.")
    grid = recipe.tuning if recipe.tuning.grid else TuningTable(seed=recipe.tuning.seed, grid=GRID)
    others = tuple(table for table in tables if table.title not in titles)
    whole = recipe.model_copy(update={"method": chosen[0], "compare": (*chosen[1:], *others), "tuning": grid})
    _check_grid(whole, origin)
    callbacks.on_step("Opening backbone and data")
    started = time.perf_counter()
    plan = given.plan(with_features(_unseen(whole), out, given), origin=origin)
    experiment = assemble(plan, on_step=callbacks.on_progress, backbone=given.backbone)
    opening = time.perf_counter() - started
    for trial in plan.trials[: len(names)]:  # those that are named come first
        trial.require_carried(experiment.clip.family)
    made = {trial.name: trial.make_method(experiment.clip) for trial in experiment.trials}
    trained = {name for name, method in made.items() if any(True for _ in method.parameters())}
    tuned = tuple(table for table in chosen if table.title in trained and table.tune)
    if idle := [title for title in titles if names and title not in trained]:
        raise UserError(
            f"{idle[0]} trains nothing, so it has nothing to tune; leave it out of {option('method', 'methods')}."
        )
    if not tuned:
        raise UserError(f"{origin} has no method that trains; name some with {option('method', 'methods')}.")
    untrained = made.keys() - trained
    references = tuple(table for table in (*chosen, *others) if table.title in untrained or not table.tune)
    kept = whole.model_copy(update={"method": tuned[0], "compare": tuned[1:]})
    if not recipe.tuning.grid:
        kept = _with_default_rates(kept)
    tuning = Tuning(kept, references, out, draws=wanted.draws, opening=opening, given=given)
    return tuning, experiment


def _with_default_rates(recipe: Recipe) -> Recipe:
    """The recipe with the rate that each method has without a search in the grid of all: a search may keep it."""
    own = [default_settings(recipe, table)["lr"] for table in (recipe.method, *recipe.compare)]
    rates = tuple(sorted({*recipe.tuning.grid["lr"], *own}))
    return recipe.model_copy(update={"tuning": recipe.tuning.model_copy(update={"grid": {"lr": rates}})})


def _named(name: str, tables: Sequence[MethodTable]) -> MethodTable:
    found = next((table for table in tables if table.title == name), None)
    return found if found is not None else MethodTable(name=name)


def _check_grid(recipe: Recipe, origin: str) -> None:
    keys = type(recipe.train).model_fields
    if unknown := next((key for key in recipe.tuning.grid if key not in keys), None):
        words = unknown.replace("_", " ").casefold()
        said = [key for key, field in keys.items() if (field.description or "").casefold().startswith(words)]
        hint = f"; did you mean {said[0]!r}?" if said else did_you_mean(unknown, keys)
        raise UserError(f"{origin}: [tuning] grid names {unknown!r}, which is no key of [train]{hint or '.'}")


def _unseen(recipe: Recipe) -> Recipe:
    """The recipe with held-out images scored, whatever it keeps, and no test image."""
    keep = recipe.train.keep if recipe.train.keep != LAST else BEST + METRIC
    train = recipe.train.model_copy(update={"keep": keep})
    evaluate = recipe.evaluate.model_copy(update={"test": False, "local": False, "samples": 0})
    return recipe.model_copy(update={"train": train, "evaluate": evaluate, "minutes": 0.0})


def grid_results(tuning: Tuning, found: Run, labels: Mapping[str, str]) -> list[Result]:
    """What the search over the grid found for each method; `labels` are their names in tables."""
    trials, grid, folder = {trial.name: trial for trial in found.trials}, points(tuning.recipe), tuning.out / SEARCH_RUN

    def tried(table: MethodTable) -> list[Tried]:
        return [Tried(point, folder, trials[at_point(table, point).title]) for point in grid]

    return [judge(tuning.recipe, table, labels[table.title], tried(table), tuning.keep) for table in tuning.methods]
