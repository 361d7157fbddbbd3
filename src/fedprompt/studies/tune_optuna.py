"""Search by Optuna (Akiba et al., 2019): points that its sampler draws from the ranges of the grid, one run for each.

Every method has a study of its own, in the file `optuna.db` of the output folder; the search goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fedprompt.config.recipe_tables import MethodTable, Toml
from fedprompt.errors import UserError
from fedprompt.experiments.context import RunCallbacks
from fedprompt.records.reading import read_run
from fedprompt.seeding import seed_for
from fedprompt.studies.sweep import check, run_job
from fedprompt.studies.tune import Tuning
from fedprompt.studies.tune_results import Result, Tried, default_settings, held_out_value, judge
from fedprompt.studies.tuning import at_point

if TYPE_CHECKING:
    import optuna

STORAGE = "optuna.db"  # in the output folder
DIGITS = 3  # significant ones of a number that is drawn, which names folders and trials
LOG_FROM = 10  # a range whose ends have this ratio at least is drawn on a logarithmic scale
WORST = 0.0  # the value of a point at which training diverged


def require_optuna() -> None:
    """Raise UserError if Optuna is not installed."""
    if find_spec("optuna") is None:
        raise UserError("Drawing settings needs the package optuna; install it with: pip install 'fedprompt[tune]'.")


def search_by_draws(tuning: Tuning, rounds: int, labels: Mapping[str, str], *, callbacks: RunCallbacks) -> list[Result]:
    """Try the default of every method and then points that Optuna draws; goes on where an earlier call stopped."""
    studies = {table.title: _study(tuning, table) for table in tuning.methods}
    tried: dict[str, list[Tried]] = {title: [] for title in studies}
    for number in range(tuning.draws):
        drawn = {
            table.title: _point(tuning, _params(studies[table.title], tuning, table, number), exact=not number)
            for table in tuning.methods
        }
        job = tuning.draw_job(number, drawn, rounds)
        callbacks.on_message(f"Search, part {number + 1} of {tuning.draws}.")
        check(job)
        if not job.done:
            run_job(job, callbacks=callbacks)
        found = {trial.name: trial for trial in read_run(job.folder).trials}
        for table in tuning.methods:
            point = drawn[table.title]
            tried[table.title].append(Tried(point, job.folder, found[at_point(table, point).title]))
            value = held_out_value(tuning.recipe, tried[table.title][-1].trial)
            studies[table.title].tell(number, WORST if value is None else value, skip_if_finished=True)
    return [
        judge(tuning.recipe, table, labels[table.title], tried[table.title], tuning.keep) for table in tuning.methods
    ]


def _study(tuning: Tuning, table: MethodTable) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tuning.out.mkdir(parents=True, exist_ok=True)
    path = tuning.out.absolute() / STORAGE
    try:
        study = optuna.create_study(
            study_name=table.title, storage=f"sqlite:///{path}", direction="maximize", load_if_exists=True
        )
    except Exception as error:  # of any kind: those of SQLAlchemy and of Alembic have no common type
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(f"{path} cannot be read by Optuna ({reason}); restore it from a copy, or delete it.") from error
    if not study.trials:
        defaults = default_settings(tuning.recipe, table)
        study.enqueue_trial({key: defaults[key] for key in tuning.recipe.tuning.grid})
    return study


def _params(study: optuna.Study, tuning: Tuning, table: MethodTable, number: int) -> Mapping[str, Any]:
    """The settings of a study's trial, which is drawn if it is new.

    The draw depends on the seed, the method and the trials before it, so that a search which stopped draws the same.
    """
    import optuna

    known = [trial for trial in study.trials if trial.state != optuna.trial.TrialState.WAITING]
    if number < len(known):
        return dict(known[number].params)
    study.sampler = optuna.samplers.TPESampler(seed=seed_for(tuning.recipe.tuning.seed, table.title, number) % 2**32)
    return dict(study.ask(_ranges(tuning, table)).params)


def _ranges(tuning: Tuning, table: MethodTable) -> dict[str, optuna.distributions.BaseDistribution]:
    """The range of each key of the grid: between its ends, and to the method's default if that lies outside."""
    defaults = default_settings(tuning.recipe, table)
    return {key: _range([*values, defaults[key]]) for key, values in tuning.recipe.tuning.grid.items()}


def _range(values: Sequence[Any]) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not all(type(value) in (int, float) for value in values):
        return CategoricalDistribution(list(dict.fromkeys(values)))
    low, high = min(values), max(values)
    is_log = low > 0 and high >= LOG_FROM * low
    if all(type(value) is int for value in values):
        return IntDistribution(low, high, log=is_log)
    return FloatDistribution(low, high, log=is_log)


def _point(tuning: Tuning, params: Mapping[str, Any], *, exact: bool) -> Toml:
    """Drawn settings as they are trained: in the order of the grid, with few digits unless they are `exact`."""

    def short(value: Any) -> Any:
        return float(f"{value:.{DIGITS}g}") if type(value) is float and not exact else value

    return {key: short(params[key]) for key in tuning.recipe.tuning.grid}
