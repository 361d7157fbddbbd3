"""Tuning as one step: the search, over the grid or by Optuna, then the run with the best settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedprompt.config.recipe import Recipe
from fedprompt.experiments.context import RunCallbacks
from fedprompt.experiments.given import NOTHING, Given
from fedprompt.experiments.protocol import may_predict_all
from fedprompt.records.atomic_files import write_atomic
from fedprompt.records.event_fields import CommandRecord
from fedprompt.records.reading import read_run
from fedprompt.studies.sweep import Job, check, run_job
from fedprompt.studies.tune import Tuning, Wanted, grid_results, make_tuning
from fedprompt.studies.tune_optuna import require_optuna, search_by_draws
from fedprompt.studies.tune_results import Result, markdown, metric_of, remarks, result_rows
from fedprompt.studies.tune_rounds import Rounds, plan_rounds


@dataclass(frozen=True)
class Tuned:
    """A finished search with what it found for each method, and the run with the best settings of all.

    `trains_on_all` says whether every class is trained on, and `local_among_all` whether every client may predict all
    of those, for the names of figures.
    """

    tuning: Tuning
    results: tuple[Result, ...]
    rounds: Rounds
    trains_on_all: bool = False
    local_among_all: bool = False

    @property
    def final(self) -> Path:
        """The folder of the run with the best settings."""
        return self.final_job.folder

    @property
    def final_job(self) -> Job:
        """The run with the best settings, which records how many rounds the recipe has if it has no time for all."""
        job, most = self.tuning.final_job(self.results, self.rounds.final), self.tuning.recipe.train.rounds
        if job.command is None or self.rounds.final >= most:
            return job
        return replace(job, command=job.command.model_copy(update={"rounds": most}))

    @property
    def recipe(self) -> Recipe:
        """The recipe that trains the best method alone, beside methods that train nothing."""
        return self.tuning.best_recipe(self.results, self.rounds.final)

    @property
    def caption(self) -> str:
        """What the table of the search shows."""
        metric = metric_of(self.tuning.recipe, trains_on_all=self.trains_on_all, local_among_all=self.local_among_all)
        return f"{metric} in percent, not to be compared with that of test images, of which none was scored."

    @property
    def remarks(self) -> Sequence[str]:
        """What the search leaves open: defaults that are kept, equal points, and methods that are equally good."""
        return remarks(self.results, self.rounds.search)

    @property
    def command(self) -> str:
        """The command that trains the best method alone; empty if objects were given in place of a recipe's names."""
        return "" if self.tuning.given.data is not None else f"fedprompt run {self.tuning.out / 'best.toml'}"

    def write(self) -> None:
        """Write the table of the search and the recipe of the best method."""
        notes = {"Held-out images": self.caption, "Rounds": self.rounds.sentence}
        if self.command:
            write_atomic(self.tuning.out / "best.toml", self.recipe.to_toml(defaults=False))
            notes["The best"] = f"`{self.command}`"
        if self.remarks:
            notes["Left open"] = " ".join(self.remarks)
        write_atomic(self.tuning.out / "tuning.md", markdown(*result_rows(self.results), notes))


def search_and_train(  # noqa: PLR0913  (what is tuned and where, and what a command or Python adds to it)
    recipe: Recipe,
    wanted: Wanted,
    out: Path,
    *,
    origin: str,
    callbacks: RunCallbacks,
    command: CommandRecord | None = None,
    given: Given = NOTHING,
) -> Tuned:
    """Search settings on held-out images and train with the best of each method; goes on after a stop.

    Raises UserError for anything wrong, before the output folder is made.
    """
    if wanted.draws:
        require_optuna()
    tuning, experiment = make_tuning(recipe, wanted, out, origin=origin, callbacks=callbacks, given=given)
    tuning = replace(tuning, command=command)
    rounds = plan_rounds(tuning, experiment, wanted.minutes or recipe.minutes or None, callbacks=callbacks)
    callbacks.on_message(rounds.sentence)
    labels = {trial.name: trial.label for trial in experiment.trials}
    if wanted.draws:
        results = search_by_draws(tuning, rounds.search, labels, callbacks=callbacks)
    else:
        job = tuning.search_job(rounds.search)
        check(job)
        if not job.done:
            run_job(job, callbacks=callbacks)
        results = grid_results(tuning, read_run(job.folder), labels)
    tuned = Tuned(
        tuning,
        tuple(results),
        rounds,
        trains_on_all=not experiment.dataset.new,
        local_among_all=may_predict_all(experiment),
    )
    final = tuned.final_job
    check(final)
    tuned.write()
    if not final.done:
        run_job(final, callbacks=callbacks)
    return tuned
