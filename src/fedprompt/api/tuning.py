"""Search for settings from Python, over a grid or by Optuna, and the run with the best ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedprompt.api.callbacks import joined
from fedprompt.api.results import Run
from fedprompt.api.training import (
    SETTINGS,
    MethodLike,
    PathLike,
    RuntimeLike,
    output_folder,
    plan_of_objects,
    plan_of_recipe,
    runtime_settings,
)
from fedprompt.arguments import keyed, listed, number, shown, whole
from fedprompt.clip.model import Clip
from fedprompt.config.recipe import Recipe, bundled_recipes
from fedprompt.data.dataset import Dataset
from fedprompt.errors import UserError, worded
from fedprompt.experiments.clients import Clients
from fedprompt.experiments.context import RunCallbacks
from fedprompt.file_system import is_file
from fedprompt.methods import names
from fedprompt.records.event_fields import CommandRecord
from fedprompt.records.output_folder import FINAL, require_study_folder
from fedprompt.studies.tune import Wanted
from fedprompt.studies.tune_run import Tuned, search_and_train

if TYPE_CHECKING:
    import pandas


NEEDS = "tune takes a recipe, or a method with what it is trained on: tune(method, clip, data, clients)."


class Tuning:
    """A search for settings: what it tried and found, and the run with the best settings of every method.

    `fp.tune` gives one. `table` has every point that was tried, `settings` what is kept per method, `remarks` why.
    """

    def __init__(self, found: Tuned, run: Run) -> None:
        self._found = found
        self.run = run

    @property
    def folder(self) -> Path:
        """The folder of the search; the same call with it goes on where it stopped."""
        return self._found.tuning.out

    @property
    def table(self) -> pandas.DataFrame:
        """All points: method, settings, value on held-out images in [0, 1], and which are the default and kept."""
        import pandas

        return pandas.DataFrame(
            [
                {
                    "method": one.label,
                    **point,
                    "value": value,
                    "default": place == one.default,
                    "kept": place == one.best,
                }
                for one in self._found.results
                for place, (point, value) in enumerate(zip(one.points, one.values, strict=True))
            ]
        )

    @property
    def settings(self) -> Mapping[str, Mapping[str, Any]]:
        """The settings that are kept, by method; none for a method that diverged everywhere."""
        return {one.table.title: dict(one.points[one.best]) for one in self._found.results if one.best is not None}

    @property
    def remarks(self) -> Sequence[str]:
        """What the search leaves open: defaults that are kept, equal points, and methods that are equally good."""
        return self._found.remarks

    @property
    def recipe(self) -> Recipe:
        """The recipe that trains the best method with its settings."""
        return self._found.recipe

    def __repr__(self) -> str:
        kept = ", ".join(f"{name} {dict(point)}" for name, point in self.settings.items())
        return f"Tuning of {kept} in {self.folder}"

    def _repr_html_(self) -> str:
        remarks = "<br>".join(map(escape, self.remarks))
        return f"<p>{escape(repr(self))}</p>{self.table.to_html(index=False)}<p>{remarks}</p>"


@worded("settings")
def tune(  # noqa: PLR0913  (as train and run, and what is searched)
    what: Recipe | PathLike | MethodLike,
    clip: Clip | None = None,
    data: Dataset | None = None,
    clients: Clients | None = None,
    *,
    methods: str | Sequence[str] = (),
    compare: MethodLike | Sequence[MethodLike] = (),
    grid: Mapping[str, Sequence[Any]] | None = None,
    draws: int = 0,
    minutes: float | None = None,
    out: PathLike | None = None,
    seed: int = 1,
    callbacks: RunCallbacks | Sequence[RunCallbacks] = (),
    progress: bool = True,
    on: RuntimeLike = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Tuning:
    """Search training settings on held-out images, then train with the best and score the test images once.

    With `data` and `clients`, `what` is a method as in `train`, and so are `compare`, `seed`, `settings` and `options`.
    Without, it is a recipe as in `run`: `methods` names those to tune (default: all of the recipe), and `options` are
    keys of the recipe.

    `grid` gives values to try for keys of [train], by default seven learning rates and the methods' own defaults.
    `draws` has Optuna draw so many points for each method from between the ends of the grid, the method's default
    first (extra `tune`); with 0, the default, every point of the grid is tried, which is the fair comparison.
    `minutes` limits search and training together; 0, as None, leaves that to the recipe, which by default has no limit.
    With `out` the same call goes on after a stop. `on` is the runtime as in `train`. Raises UserError as `train` and
    `run` do.

    Examples:
        >>> import fedprompt as fp
        >>> data = fp.load_dataset(train=2, test=1)
        >>> clients = fp.partition(data, "iid", clients=2)
        >>> tuned = fp.tune(
        ...     "promptfl", fp.load_clip(), data, clients, rounds=1, grid={"lr": [0.001, 0.01]}, progress=False
        ... )
        >>> list(tuned.table.columns), sorted(tuned.settings["promptfl"])
        (['method', 'lr', 'value', 'default', 'kept'], ['lr'])
    """
    limit, drawn = None if minutes is None else number(minutes, "minutes"), whole(draws, "draws", least=0)
    changes = {
        **runtime_settings(on),
        **keyed(settings, "settings", SETTINGS),
        **({"tuning.grid": _checked_grid(grid)} if grid is not None else {}),
    }
    if clip is not None and data is not None and clients is not None:
        if not isinstance(what, str | type | Mapping):
            raise UserError(f"With data and clients, tune takes a method, not {what!r}; leave them out for a recipe.")
        if methods:
            raise UserError("`methods` names methods of a recipe; with data and clients, further ones are `compare`.")
        plan, given = plan_of_objects(
            (what, *listed(compare, "compare")),
            (clip, data, clients),
            seed=seed,
            train=options,
            settings=changes,
            call="tune",
        )
    elif data is not None or clients is not None or isinstance(what, Mapping | type):
        raise UserError(NEEDS)
    elif isinstance(what, str) and what in names() and what not in bundled_recipes() and not is_file(Path(what)):
        raise UserError(f"{what!r} is a method. {NEEDS}")
    else:
        plan, given = plan_of_recipe(what, {**options, **changes}, clip=clip)
    folder, kept = output_folder(out, f"{plan.recipe.name}-tune")
    require_study_folder(folder)
    wanted = Wanted(listed(methods, "methods"), limit, drawn)
    command = CommandRecord(name="tune", folder=str(folder / FINAL) if kept is None else "", python=True)
    with joined(callbacks, progress=progress) as listener:
        found = search_and_train(
            plan.recipe, wanted, folder, origin=plan.origin, callbacks=listener, command=command, given=given
        )
        for sentence in found.remarks:
            listener.on_message(sentence)
    return Tuning(found, Run(found.final, clip=given.clip, given=given.methods, kept=kept))


def _checked_grid(grid: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """The values to try by key; UserError for a key without a list of them."""
    if not isinstance(grid, Mapping):
        raise UserError(f'`grid` is {shown(grid)}; give the values to try by key, such as {{"lr": [0.001, 0.01]}}.')
    if not grid:
        raise UserError("`grid` is empty; give the values to try by key, or leave it out for the usual learning rates.")
    for key, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise UserError(f"The grid of {key!r} is {shown(values)}; give a list of values to try.")
    return {key: list(values) for key, values in grid.items()}
