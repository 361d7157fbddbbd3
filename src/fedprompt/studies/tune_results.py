"""What a search for settings found: the value of each point, the point that is taken, tables and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from fedprompt.config.recipe import Recipe
from fedprompt.config.recipe_tables import MethodTable, Toml
from fedprompt.config.tuned import with_tuned
from fedprompt.errors import UserError, plural, series, wording
from fedprompt.experiments.intervals import held_out_replicates
from fedprompt.experiments.keep import BEST, LAST, Keep
from fedprompt.experiments.model_card import LAST as LAST_ROUND
from fedprompt.experiments.test_sets import AMONG_ALL, EQUALLY
from fedprompt.ops.bootstrap import Floats, interval
from fedprompt.records.run_record import TrialRecord, figure_title
from fedprompt.report.comparison import ComparisonCell
from fedprompt.studies.tuning import short_point

MOST_COLUMNS = 12  # points of a table
METRIC = "hm"  # by which rates are compared, where the recipe keeps the last round


@dataclass(frozen=True)
class Result:
    """What a search found for one method: its metric on held-out images at each point, None where it diverged.

    `points` are the settings that were tried. `default` is the point that the recipe has without a search, None if that
    was not tried; `sure` says whether the point with the best value is better than that by more than the held-out
    images, so many, can tell; `drawn` are replicates [R] of the value at the point that is taken.
    """

    table: MethodTable
    label: str
    values: tuple[float | None, ...]
    points: tuple[Toml, ...] = ()
    default: int | None = None
    sure: bool = True
    images: int = 0
    drawn: Floats | None = field(default=None, compare=False, repr=False)

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

    def sentence(self, rounds: int) -> str:
        """Why the default was kept, if another point has a better value; or that points are equally good."""
        if self.best is None or self.highest is None:
            return ""
        names = [short_point(point) for point in self.points]
        if self.best == self.highest:
            equal = self.values.count(self.values[self.best])
            which = "its default" if self.best == self.default else "the first of them"
            value = f"{100 * (self.values[self.best] or 0.0):.1f}"
            said = f"{self.label}: {equal} of {plural(len(names), 'point')} have the best value, {value}; {which}, "
            return f"{said}{names[self.best]}, is kept." if equal > 1 else ""
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
class Tried:
    """One point of a method's search: its settings, and the folder and the records of the trial that had them."""

    point: Toml
    folder: Path
    trial: TrialRecord


def judge(recipe: Recipe, table: MethodTable, label: str, tried: Sequence[Tried], keep: Keep) -> Result:
    """What a search found for a method; `recipe` is that of the final run, and `keep` the rule of the search."""
    is_last = recipe.train.keep == LAST

    def replicates(place: int) -> Floats | None:
        name = tried[place].trial.name + (LAST_ROUND if is_last else "")
        return held_out_replicates(tried[place].folder, name, keep)

    points = tuple(one.point for one in tried)
    scorings = [event for one in tried for event in one.trial.validations]
    images = max((sum(event.images.values()) for event in scorings), default=0)
    found = Result(
        table,
        label,
        tuple(held_out_value(recipe, one.trial) for one in tried),
        points,
        default=_default_point(recipe, table, points),
        images=images,
    )
    if found.highest is None:
        return found
    best = replicates(found.highest)
    if found.default is None or found.highest == found.default:
        return replace(found, drawn=best)
    default = replicates(found.default)
    sure = best is not None and default is not None and _is_above(best, default)
    taken = replace(found, sure=sure)
    return replace(taken, drawn=best if taken.best == found.highest else default)


def _is_above(left: Floats, right: Floats) -> bool:
    """Whether a value is above another one by more than the held-out images can tell, from replicates [R] of both."""
    count = min(len(left), len(right))
    return interval(left[:count] - right[:count])[0] > 0


def held_out_value(recipe: Recipe, trial: TrialRecord) -> float | None:
    """A trial's metric on held-out images, at the round that the recipe would keep; None if it diverged."""
    if trial.about.status != "done" or not trial.validations:
        return None
    if recipe.train.keep == LAST or trial.kept is None:
        return trial.validations[-1].value
    return trial.kept.value


def default_settings(recipe: Recipe, table: MethodTable) -> Toml:
    """The [train] settings that a method has without a search."""
    own = with_tuned(table, recipe.defaults, recipe.train).train
    return recipe.train.model_dump() | own


def _default_point(recipe: Recipe, table: MethodTable, points: Sequence[Toml]) -> int | None:
    """The point that a method has without a search; None if it is not among those that were tried."""
    now = default_settings(recipe, table)
    return next((place for place, point in enumerate(points) if all(now[key] == point[key] for key in point)), None)


def ranked(results: Sequence[Result]) -> list[Result]:
    """The results, best first; equal ones keep their order."""
    return sorted(results, key=lambda result: -result.value)


def trainable(results: Sequence[Result]) -> list[Result]:
    """The results of methods that did not diverge everywhere, best first; UserError if there are none."""
    found = [result for result in ranked(results) if result.best is not None]
    if not found:
        raise UserError(
            "Every method diverged at every point; give smaller learning rates ("
            + ("--set tuning.grid.lr=[...])." if wording() == "shell" else '`grid={"lr": [...]}`).')
        )
    return found


def remarks(found: Sequence[Result], rounds: int) -> list[str]:
    """What a search leaves open: per method why its default is kept or points are equal, then which methods are."""
    return [*(said for result in found if (said := result.sentence(rounds))), *_methods_alike(found, rounds)]


def _methods_alike(found: Sequence[Result], rounds: int) -> Iterator[str]:
    """A sentence if the best method is not above others by more than the held-out images can tell."""
    best, *others = ranked(found)
    if best.best is None or best.drawn is None:
        return
    alike = [
        f"{other.label} ({100 * other.value:.1f})"
        for other in others
        if other.best is not None and other.drawn is not None and not _is_above(best.drawn, other.drawn)
    ]
    if alike:
        yield (
            f"{best.label} has the best value ({100 * best.value:.1f}) and is taken, but with "
            f"{plural(rounds, 'round')} per rate and {plural(best.images, 'held-out image')} it cannot be told apart "
            f"from {series(alike)}."
        )


def metric_of(recipe: Recipe, *, trains_on_all: bool, local_among_all: bool = False) -> str:
    """The metric of the search in words, and of which round.

    `local_among_all` says whether every client may predict all classes that are trained on.
    """
    title = partial(figure_title, trains_on_all=trains_on_all)
    keep = recipe.train.keep
    metric = METRIC if keep == LAST else keep.removeprefix(BEST)
    name = title(metric)
    if metric == METRIC:
        kind = "" if trains_on_all else "base "
        local = f"{AMONG_ALL.format(kind)}; {EQUALLY}" if local_among_all else "among a client's"
        name += f" (harmonic mean of accuracy among all {kind}classes and {title('local')}, {local})"
    return f"{name} {'after the last round' if keep == LAST else 'of the best round'}"


def result_rows(found: Sequence[Result]) -> tuple[list[str], list[tuple[ComparisonCell, ...]]]:
    """A heading and one row per method, best first: its metric in percent at each point, the one that is kept marked.

    Where methods were tried at different points, the row has the default and the one that is kept.
    """
    if any(result.points != found[0].points for result in found) or len(found[0].points) > MOST_COLUMNS:
        return _short_rows(found)
    rows = [
        (ComparisonCell(one.label), *(_cell(value, best=place == one.best) for place, value in enumerate(one.values)))
        for one in ranked(found)
    ]
    return ["method", *map(short_point, found[0].points)], rows


def _short_rows(found: Sequence[Result]) -> tuple[list[str], list[tuple[ComparisonCell, ...]]]:
    rows: list[tuple[ComparisonCell, ...]] = []
    for one in ranked(found):
        default = ComparisonCell("-") if one.default is None else _cell(one.values[one.default], best=False)
        best = ComparisonCell("-") if one.best is None else _cell(one.values[one.best], best=True)
        settings = "-" if one.best is None else short_point(one.points[one.best])
        tried = ComparisonCell(str(len(one.points)))
        rows.append((ComparisonCell(one.label), tried, default, best, ComparisonCell(settings)))
    return ["method", "tried", "default", "kept", "settings"], rows


def _cell(value: float | None, *, best: bool) -> ComparisonCell:
    return ComparisonCell("diverged" if value is None else f"{100 * value:.1f}", best)


def markdown(head: Sequence[str], rows: Sequence[Sequence[ComparisonCell]], notes: Mapping[str, str]) -> str:
    """The table of results with the notes below it."""
    lines = [list(head), ["---"] * len(head)]
    lines += [[f"**{cell.text}**" if cell.best else cell.text for cell in row] for row in rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{table}\n\n" + "\n\n".join(f"{name}: {text}" for name, text in notes.items()) + "\n"
