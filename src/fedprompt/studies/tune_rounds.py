"""The numbers of rounds of a search and of its final run that fit into a budget of time."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from fedprompt.errors import UserError, option, plural
from fedprompt.experiments.budget import Costs, measure
from fedprompt.experiments.context import RunCallbacks
from fedprompt.experiments.experiment import Experiment
from fedprompt.experiments.keep import Keep
from fedprompt.experiments.test_sets import make_test_sets
from fedprompt.file_system import read_bytes
from fedprompt.records.atomic_files import write_atomic
from fedprompt.records.output_folder import ROUNDS
from fedprompt.studies.tune import Tuning
from fedprompt.text_files import json_text, load_json_object

SEARCH = 2 / 3  # of the time goes to the search at most
WEAK = 5  # rounds at each rate, below which a search says little


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
            f"the final run {self.final_minutes:.2g} ({final}).{self._doubt}"
        )

    @property
    def _doubt(self) -> str:
        """What so few rounds of the search leave open."""
        if self.search >= WEAK:
            return ""
        few = plural(self.search, "round")
        return f" Rates compared after {few} are weak evidence, since others may be better after more; give more time."


def plan_rounds(tuning: Tuning, experiment: Experiment, minutes: float | None, *, callbacks: RunCallbacks) -> Rounds:
    """The numbers of rounds that fit into the minutes, or those of an earlier call for the same folder.

    Every method trains the same number at every point. UserError if there is no time for one round at each.
    """
    path, most = tuning.out / ROUNDS, tuning.recipe.train.rounds
    if path.is_file():
        found = Rounds(**load_json_object(read_bytes(path)))
        if found.minutes != (minutes or 0.0):
            given = f"{found.minutes:g} minutes" if found.minutes else "no limit of time"
            raise UserError(
                f"{tuning.out} holds a search with {given}; give the same, or another folder with {option('out')}."
            )
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
        found = rounds_in(costs, 60 * minutes - spent, points=tuning.points, most=most, keep=keep)
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
            f"of the final run, need about {math.ceil(10 * needed) / 10:g} minutes; give more {option('minutes')}, "
            "fewer methods, or fewer images per class (partition.shots)."
        )
    return Rounds(0.0, search, final, search_seconds(search) / 60, final_seconds(final) / 60)


def _training(costs: Costs, rounds: int, keep: Keep) -> float:
    """Seconds of so many rounds with cached features, and of scoring held-out images as often as it is due."""
    return rounds * costs.round + costs.held_out * sum(keep.is_due(number, rounds) for number in range(rounds + 1))
