"""Tuning on a user's own data: learning rates of some methods searched on held-out images, within a budget of time."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fedprompt.config.recipe import Recipe
from fedprompt.config.recipe_tables import MethodTable, Toml, TuningTable
from fedprompt.config.tuned import with_tuned
from fedprompt.errors import UserError, did_you_mean, plural
from fedprompt.experiments.budget import Costs, measure
from fedprompt.experiments.context import RunCallbacks
from fedprompt.experiments.experiment import Experiment, assemble
from fedprompt.experiments.intervals import held_out_replicates
from fedprompt.experiments.keep import BEST, LAST, Keep
from fedprompt.experiments.model_card import LAST as LAST_ROUND
from fedprompt.experiments.plan import Plan, resolve
from fedprompt.experiments.test_sets import make_test_sets
from fedprompt.file_system import read_bytes
from fedprompt.ops.bootstrap import interval
from fedprompt.records.event_fields import CommandRecord
from fedprompt.records.reading import TITLES, Run, TrialRecord
from fedprompt.records.run_folder import write_atomic
from fedprompt.report.comparison import ComparisonCell
from fedprompt.studies.sweep import Job
from fedprompt.studies.tuning import at_point, points, search, short_point
from fedprompt.text_files import json_text, load_json_object

GRID = {"lr": (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)}  # that of the recipes of `fedprompt compare --demo`
METRIC = "hm"  # by which rates are compared, where the recipe keeps the last round
SEARCH = 2 / 3  # of the time goes to the search at most
SEARCH_RUN = "search"  # folder of the run of the search, in the output folder
ROUNDS = "rounds.json"  # in the output folder: the numbers of rounds, which a later call takes from there


@dataclass(frozen=True)
class Rounds:
    """Numbers of rounds of the search and of the final run, and the estimated minutes of both."""

    minutes: float
    search: int
    final: int
    search_minutes: float = 0.0
    final_minutes: float = 0.0

    @property
    def sentence(self) -> str:
        """The numbers in words."""
        search, final = plural(self.search, "round"), plural(self.final, "round")
        if not self.minutes:
            return f"The search trains {search} at each rate, and the final run {final}."
        return (
            f"Of {self.minutes:g} minutes the search takes about {self.search_minutes:.2g} ({search} at each rate) and "
            f"the final run {self.final_minutes:.2g} ({final})."
        )


@dataclass(frozen=True)
class Result:
    """What a search found for one method: its metric on held-out images at each point, None where it diverged.

    `default` is the point that the recipe has without a search, None if the grid lacks it; `sure` says whether the
    point with the best value is better than that by more than the held-out images, so many, can tell.
    """

    table: MethodTable
    label: str
    values: tuple[float | None, ...]
    default: int | None = None
    sure: bool = True
    images: int = 0

    @property
    def highest(self) -> int | None:
        """The point with the best value, the default or else the first of equal ones; None if all diverged."""
        known = [value for value in self.values if value is not None]
        if not known:
            return None
        if self.default is not None and self.values[self.default] == max(known):
            return self.default
        return self.values.index(max(known))

    @property
    def best(self) -> int | None:
        """The point that is taken: the default, unless another is surely better; None if all diverged."""
        keeps = self.default is not None and self.values[self.default] is not None and not self.sure
        return self.default if keeps else self.highest

    def sentence(self, names: Sequence[str], rounds: int) -> str:
        """Why the default was kept, if another point has a better value; `names` are those of the points."""
        if self.best is None or self.highest is None or self.best == self.highest:
            return ""
        ours, theirs = (100 * (self.values[place] or 0.0) for place in (self.best, self.highest))
        return (
            f"{self.label} keeps its default {names[self.best]} ({ours:.1f}): {names[self.highest]} has {theirs:.1f}, "
            f"but with {plural(rounds, 'round')} per rate and {plural(self.images, 'held-out image')} the two cannot "
            "be told apart."
        )

    @property
    def value(self) -> float:
        """The value at the best point; below all others if the method diverged at every point."""
        return -1.0 if self.best is None else self.values[self.best] or 0.0


@dataclass(frozen=True)
class Tuning:
    """A recipe with the methods that are tuned, those beside them that train nothing, and the output folder.

    `opening` is how many seconds it took to open backbone and data, and `command` is what the user typed.
    """

    recipe: Recipe
    references: tuple[MethodTable, ...]
    out: Path
    opening: float = 0.0
    command: CommandRecord | None = None

    @property
    def methods(self) -> tuple[MethodTable, ...]:
        """The methods that are tuned."""
        return (self.recipe.method, *self.recipe.compare)

    def search_job(self, rounds: int) -> Job:
        """The search: every method at every point of the grid, without any test image.

        It has the recipe's own seed: another would draw other test images, and this run's among its training images.
        """
        recipe = search(_unseen(self.recipe), seed=self.recipe.seed)
        return Job(self._in_time(recipe, rounds), self.out / SEARCH_RUN)

    def final_job(self, results: Sequence[Result], rounds: int) -> Job:
        """The final run: every method with its best settings, the best of all as the main one, and the references."""
        main, *others = (self._tuned(result) for result in trainable(results))
        update = {"name": f"{self.recipe.name}-tuned", "method": main, "compare": (*others, *self.references)}
        recipe = self._in_time(self.recipe.model_copy(update=update), rounds)
        return Job(recipe, self.out / "final", command=self.command)

    def best_recipe(self, results: Sequence[Result], rounds: int) -> Recipe:
        """The recipe that trains the best method alone, beside the references."""
        recipe = self.final_job(results, rounds).recipe
        disk = recipe.backbone.model_copy(update={"disk": self.recipe.backbone.disk})
        return recipe.model_copy(update={"compare": self.references, "backbone": disk})

    def _tuned(self, result: Result) -> MethodTable:
        point = points(self.recipe)[result.best or 0]
        return result.table.model_copy(update={"train": result.table.train | point})

    def _in_time(self, recipe: Recipe, rounds: int) -> Recipe:
        main, *others = (_at_most(table, rounds) for table in (recipe.method, *recipe.compare))
        train = recipe.train.model_copy(update={"rounds": rounds})
        update = {"method": main, "compare": tuple(others), "train": train, "minutes": 0.0}
        return with_features(recipe.model_copy(update=update), self.out)


def with_features(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with the features of images kept below the output folder, so that all runs encode them once."""
    disk = recipe.backbone.disk or str((out / "features").absolute())
    return recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update={"disk": disk})})


def _at_most(table: MethodTable, rounds: int) -> MethodTable:
    own = table.train.get("rounds", rounds)
    return table if own <= rounds else table.model_copy(update={"train": {**table.train, "rounds": rounds}})


def ranked(results: Sequence[Result]) -> list[Result]:
    """The results, best first; equal ones keep their order."""
    return sorted(results, key=lambda result: -result.value)


def trainable(results: Sequence[Result]) -> list[Result]:
    """The results of methods that did not diverge everywhere, best first; UserError if there are none."""
    found = [result for result in ranked(results) if result.best is not None]
    if not found:
        raise UserError(
            "Every method diverged at every point; give smaller learning rates (--set tuning.grid.lr=[...])."
        )
    return found


def make_tuning(
    recipe: Recipe, names: Sequence[str], out: Path, *, origin: str, callbacks: RunCallbacks
) -> tuple[Tuning, Experiment]:
    """The tuning of a recipe's methods, or of those named, and its experiment; UserError for anything wrong.

    A name is that of one of the recipe's trials, or of any method, which then has its default options.
    """
    tables = (recipe.method, *recipe.compare)
    chosen = tuple(_named(name, tables) for name in names) or tables
    titles = [table.title for table in chosen]
    if twice := next((title for title in titles if titles.count(title) > 1), None):
        raise UserError(f"--method names {twice!r} twice; name every method once.")
    grid = recipe.tuning if recipe.tuning.grid else TuningTable(seed=recipe.tuning.seed, grid=GRID)
    others = tuple(table for table in tables if table.title not in titles)
    whole = recipe.model_copy(update={"method": chosen[0], "compare": (*chosen[1:], *others), "tuning": grid})
    _check_grid(whole, origin)
    callbacks.on_step("Opening backbone and data")
    started = time.perf_counter()
    plan = resolve(with_features(_unseen(whole), out), origin=origin)
    experiment = assemble(plan, on_step=callbacks.on_progress)
    opening = time.perf_counter() - started
    made = {trial.name: trial.make_method(experiment.clip) for trial in experiment.trials}
    trained = {name for name, method in made.items() if any(True for _ in method.parameters())}
    tuned = tuple(table for table in chosen if table.title in trained)
    if idle := [title for title in titles if names and title not in trained]:
        raise UserError(f"{idle[0]} trains nothing, so it has nothing to tune; leave it out of --method.")
    if not tuned:
        raise UserError(f"{origin} has no method that trains; name some with --method.")
    references = tuple(table for table in (*chosen, *others) if table.title not in trained)
    kept = whole.model_copy(update={"method": tuned[0], "compare": tuned[1:]})
    return Tuning(kept, references, out, opening), experiment


def _named(name: str, tables: Sequence[MethodTable]) -> MethodTable:
    found = next((table for table in tables if table.title == name), None)
    return found if found is not None else MethodTable(name=name)


def _check_grid(recipe: Recipe, origin: str) -> None:
    if unknown := next((key for key in recipe.tuning.grid if key not in type(recipe.train).model_fields), None):
        hint = did_you_mean(unknown, type(recipe.train).model_fields)
        raise UserError(f"{origin}: [tuning] grid names {unknown!r}, which is no key of [train]{hint}.")


def _unseen(recipe: Recipe) -> Recipe:
    """The recipe with held-out images scored, whatever it keeps, and no test image."""
    keep = recipe.train.keep if recipe.train.keep != LAST else BEST + METRIC
    train = recipe.train.model_copy(update={"keep": keep})
    evaluate = recipe.evaluate.model_copy(update={"test": False, "local": False, "samples": 0})
    return recipe.model_copy(update={"train": train, "evaluate": evaluate, "minutes": 0.0})


def plan_rounds(tuning: Tuning, experiment: Experiment, minutes: float | None, *, callbacks: RunCallbacks) -> Rounds:
    """The numbers of rounds that fit into the minutes, or those of an earlier call for the same folder.

    Every method trains the same number at every point. UserError if there is no time for one round at each.
    """
    path, most = tuning.out / ROUNDS, tuning.recipe.train.rounds
    if path.is_file():
        found = Rounds(**load_json_object(read_bytes(path)))
        if found.minutes != (minutes or 0.0):
            given = f"{found.minutes:g} minutes" if found.minutes else "no limit of time"
            raise UserError(f"{tuning.out} holds a search with {given}; give the same, or another folder with --out.")
        return found
    found = Rounds(0.0, most, most)
    if minutes:
        callbacks.on_step("Measuring the methods")
        started = time.perf_counter()
        names = {table.title for table in tuning.methods}
        test_sets = make_test_sets(experiment.dataset)
        costs = [
            measure(experiment, test_sets, trial, seconds=60 * minutes / len(names))
            for trial in experiment.trials
            if trial.name in names
        ]
        spent = 3 * tuning.opening + time.perf_counter() - started  # both runs open backbone and data too
        keep = experiment.plan.keep
        found = rounds_in(costs, 60 * minutes - spent, points=len(points(tuning.recipe)), most=most, keep=keep)
        found = replace(found, minutes=minutes)
    write_atomic(path, json_text(asdict(found)))
    return found


def rounds_in(costs: Sequence[Costs], seconds: float, *, points: int, most: int, keep: Keep) -> Rounds:
    """The numbers of rounds that fit into the seconds, from the costs of each method; UserError if not even one does.

    Two thirds go to the search at most, the rest and what it leaves to the final run.
    """

    def search_seconds(rounds: int) -> float:
        return sum(points * _training(one, rounds, keep) + one.first_round - one.round for one in costs)

    def final_seconds(rounds: int) -> float:
        return sum(_training(one, rounds, keep) + one.final for one in costs)

    search = bisect_right(range(1, most + 1), SEARCH * seconds, key=search_seconds)
    final = bisect_right(range(1, most + 1), seconds - search_seconds(search), key=final_seconds)
    if not search or not final:
        needed = max(search_seconds(1) / SEARCH, search_seconds(1) + final_seconds(1)) / 60
        raise UserError(
            f"One round at each of {plural(points, 'point')} of the grid with {plural(len(costs), 'method')}, and one "
            f"of the final run, need about {needed:.2g} minutes; give more --minutes, fewer methods, or fewer images "
            "per class (partition.shots)."
        )
    return Rounds(0.0, search, final, search_seconds(search) / 60, final_seconds(final) / 60)


def _training(costs: Costs, rounds: int, keep: Keep) -> float:
    """Seconds of so many rounds with cached features, and of scoring held-out images as often as it is due."""
    return rounds * costs.round + costs.held_out * sum(keep.is_due(number, rounds) for number in range(rounds + 1))


def results(tuning: Tuning, plan: Plan, found: Run) -> list[Result]:
    """What the search found for each method, at the round that the recipe would keep."""
    trials = {trial.name: trial for trial in found.trials}
    labels = {trial.name: trial.label for trial in plan.trials}
    last = tuning.recipe.train.keep == LAST

    def value(trial: TrialRecord) -> float | None:
        if trial.about.status != "done" or not trial.validations:
            return None
        return trial.validations[-1].value if last or trial.kept is None else trial.kept.value

    grid, keep = points(tuning.recipe), Keep.of(_unseen(tuning.recipe), origin=plan.origin)
    suffix = LAST_ROUND if last else ""

    def is_better(table: MethodTable, result: Result) -> bool:
        """Whether the interval of the difference of the best value to the default's lies above zero."""
        if result.default is None or result.highest is None or result.highest == result.default:
            return True
        names = (at_point(table, grid[place]).title + suffix for place in (result.highest, result.default))
        best, default = (held_out_replicates(tuning.out / SEARCH_RUN, name, keep) for name in names)
        return best is not None and default is not None and interval(best - default)[0] > 0

    return [
        replace(result, sure=is_better(table, result))
        for table in tuning.methods
        for result in [
            Result(
                table,
                labels[table.title],
                tuple(value(trials[at_point(table, point).title]) for point in grid),
                default=_default_point(tuning.recipe, table, grid),
                images=_held_out_images(found),
            )
        ]
    ]


def _held_out_images(found: Run) -> int:
    """The number of held-out images that a search scored."""
    return max((sum(event.images.values()) for trial in found.trials for event in trial.validations), default=0)


def _default_point(recipe: Recipe, table: MethodTable, grid: Sequence[Toml]) -> int | None:
    """The point of the grid that a method has without a search; None if there is none."""
    own = with_tuned(table, recipe.defaults, stated=recipe.train.model_fields_set).train
    now = recipe.train.model_dump() | own
    return next((number for number, point in enumerate(grid) if all(now[key] == point[key] for key in point)), None)


def kept_defaults(tuning: Tuning, found: Sequence[Result], rounds: int) -> list[str]:
    """A sentence for each method that keeps its default although another point has a better value."""
    names = [short_point(point) for point in points(tuning.recipe)]
    return [said for result in found if (said := result.sentence(names, rounds))]


def metric_of(tuning: Tuning) -> str:
    """The metric of the search in words, and of which round."""
    keep = tuning.recipe.train.keep
    metric = METRIC if keep == LAST else keep.removeprefix(BEST)
    name = TITLES.get(metric, metric.replace("_", " "))
    name += " (harmonic mean of Base, among all classes, and Local, among a client's)" * (metric == METRIC)
    return f"{name} {'after the last round' if keep == LAST else 'of the best round'}"


def result_rows(tuning: Tuning, found: Sequence[Result]) -> tuple[list[str], list[tuple[ComparisonCell, ...]]]:
    """A heading and one row per method, best first: its metric in percent at each point, the best one marked."""
    head = ["method", *map(short_point, points(tuning.recipe))]
    rows = []
    for result in ranked(found):
        cells = [
            ComparisonCell("diverged" if value is None else f"{100 * value:.1f}", place == result.best)
            for place, value in enumerate(result.values)
        ]
        rows.append((ComparisonCell(result.label), *cells))
    return head, rows


def markdown(head: Sequence[str], rows: Sequence[Sequence[ComparisonCell]], notes: Mapping[str, str]) -> str:
    """The table of results with the notes below it."""
    lines = [list(head), ["---"] * len(head)]
    lines += [[f"**{cell.text}**" if cell.best else cell.text for cell in row] for row in rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{table}\n\n" + "\n\n".join(f"{name}: {text}" for name, text in notes.items()) + "\n"
