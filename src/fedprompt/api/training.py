"""Training from Python: methods, clients and recipes in, runs out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedprompt import methods
from fedprompt.api.callbacks import joined
from fedprompt.api.datasets import DATA
from fedprompt.api.results import Run
from fedprompt.arguments import as_path, keyed, listed, require, shown
from fedprompt.clip.model import Clip
from fedprompt.config.outside_code import GIVEN_DATA, GIVEN_PARTITION
from fedprompt.config.recipe import Recipe, checked, find_recipe, load_recipe, recipe_keys
from fedprompt.config.recipe_tables import TrainTable
from fedprompt.config.settings import apply_settings, dotted, setting
from fedprompt.config.tuned import PAPER, own_defaults
from fedprompt.data.dataset import Dataset
from fedprompt.errors import UserError, worded
from fedprompt.experiments import run as runs
from fedprompt.experiments.clients import Clients
from fedprompt.experiments.context import RoundKeptInterrupt, RunCallbacks
from fedprompt.experiments.given import Given
from fedprompt.experiments.plan import Plan
from fedprompt.file_system import TemporaryFolder
from fedprompt.methods.base import Method
from fedprompt.records.event_fields import CommandRecord
from fedprompt.records.outcome import not_begun
from fedprompt.records.reading import read_run
from fedprompt.report import render
from fedprompt.report.proposals import proposals

MethodLike = str | type[Method] | Mapping[str, Any]  # a name, a class, or a recipe's table {"name": ..., "n_ctx": 16}
PathLike = str | os.PathLike[str]
RuntimeLike = str | Mapping[str, Any] | None  # "ray", or a recipe's table {"name": "ray", "actors": 2}
SETTINGS = '{"evaluate.every": 5}'  # an example of dotted keys
LENGTH, START = "n_ctx", "init"  # of a context: words have a length of their own, so another one starts at random


@worded("settings")
def train(  # noqa: PLR0913  (four objects, and what most runs want to set)
    method: MethodLike,
    clip: Clip,
    data: Dataset,
    clients: Clients,
    *,
    compare: MethodLike | Sequence[MethodLike] = (),
    out: PathLike | None = None,
    seed: int = 1,
    track: str | Sequence[str] = (),
    callbacks: RunCallbacks | Sequence[RunCallbacks] = (),
    progress: bool = True,
    on: RuntimeLike = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Train a method over the clients, beside others if `compare` names some, and score all of them.

    `method` is a name (`"fedmvp"`), a class derived from `Method`, or a table as in a recipe, `{"name": "promptfl",
    "n_ctx": 16, "init": ""}`. `options` are keys of a recipe's table [train] (`rounds`, `lr`, `batch_size`,
    `optimizer`, `fraction`, ...), `settings` any dotted keys of a recipe (`{"evaluate.every": 5}`). What they leave
    open is as in the recipes for images of one's own: 30 rounds of AdamW, a tuned learning rate per method, contexts
    that start from the template; `settings={"defaults": "paper"}` takes the defaults of papers instead. `out` is the
    folder of the run, which must not exist; without it the run lives as long as the result does. `on="ray"` spreads the
    clients over the cores and GPUs of the machine or of a Ray cluster, with the same results, and `on={"name": "ray",
    "actors": 2}` has further keys of [runtime] (extra `ray`). `track` names experiment trackers (`["tensorboard",
    "wandb"]`), which write into that folder. Ctrl-C ends the run: the model of the last finished round is scored and
    kept, and methods that have not begun are left out; a second Ctrl-C raises KeyboardInterrupt. With `progress=False`
    what the run warns of is a Python warning (UserWarning). Raises UserError for anything that cannot be trained,
    before the folder is made.

    Examples:
        >>> import fedprompt as fp
        >>> data = fp.load_dataset(train=2, test=2)
        >>> clients = fp.partition(data, "iid", clients=2)
        >>> run = fp.train("promptfl", fp.load_clip(), data, clients, rounds=1, progress=False)
        >>> sorted(run.scores.columns)
        ['client', 'images', 'metric', 'name', 'part', 'round', 'test_set', 'trial', 'value']
    """
    tracked = {"track": list(listed(track, "track"))} if track else {}
    changes = {**tracked, **runtime_settings(on), **keyed(settings, "settings", SETTINGS)}
    kinds = (method, *listed(compare, "compare"))
    plan, given = plan_of_objects(
        kinds, (clip, data, clients), seed=seed, train=options, settings=changes, call="train"
    )
    return _start(plan, given, out, callbacks, progress=progress)


def plan_of_objects(
    kinds: Sequence[MethodLike],
    objects: tuple[Clip, Dataset, Clients],
    *,
    seed: int,
    train: Mapping[str, Any],
    settings: Mapping[str, Any],
    call: str,
) -> tuple[Plan, Given]:
    """The plan of methods, the first of which is the main one, on objects, and what it takes in place of names.

    `call` is the name of the function that the user has called, for messages.
    """
    clip, data, clients = objects
    require(clip, Clip, "clip", "open one with load_clip(...)")
    require(data, Dataset, "data", DATA)
    require(clients, Clients, "clients", "make them with partition(data, ...)")
    if clients.dataset is not data:
        raise UserError("The clients hold images of another data set than `data`; make them with partition(data, ...).")
    if not clients:
        raise UserError("`clients` is empty; give at least one client.")
    tables = [_method_table(one) for one in kinds]
    _check_options(tables[0], train, call)
    given = Given(clip, data, clients, {name: kind for table, kind in tables for name in [table["name"]] if kind})
    recipe = _recipe(given, [table for table, _ in tables], seed=seed, train=train, settings=settings, call=call)
    return given.plan(recipe, origin=call), given


def _check_options(main: tuple[Mapping[str, Any], type[Method] | None], train: Mapping[str, Any], call: str) -> None:
    """UserError for an option of the method among those of training, with the table to write."""
    table, kind = main
    if kind is None and table["name"] not in methods.names():
        return  # which is said as such
    own = methods.options(kind or methods.load(table["name"]))
    for name in train:
        if name in own and name not in TrainTable.model_fields:
            length = name == LENGTH and START in own and START not in table and train[name] != own[name].default
            chosen = {name: train[name], **({START: ""} if length else {})}
            fix = f"write {call}({ {**table, **chosen}!r}, ...)"
            raise UserError(f"{name!r} is an option of the method, not of the training; {fix}.")


def _recipe(
    given: Given,
    tables: Sequence[Mapping[str, Any]],
    *,
    seed: int,
    train: Mapping[str, Any],
    settings: Mapping[str, Any],
    call: str,
) -> Recipe:
    assert given.data is not None and given.clients is not None and given.clip is not None
    partition, main = given.clients.partition, dict(tables[0])
    defaults, own = own_defaults(given.data.space.kind)
    is_paper = settings.get("defaults") == PAPER
    found: dict[str, Any] = {
        "name": _folder_name(f"{main.get('label') or main['name']}-{given.data.name}"),
        "about": f"{main['name']} on {given.data.name}",
        "seed": seed,
        "defaults": PAPER if is_paper else defaults,
        "backbone": {"path": given.clip.origin},
        "data": dict(given.data.table) or {"source": GIVEN_DATA, "name": given.data.name},
        "partition": dict(partition.table) or {"rule": GIVEN_PARTITION, "by": partition.rule},
        "method": main,
        "compare": [dict(table) for table in tables[1:]],
        "train": dict(train) if is_paper else {**own, **train},
        "evaluate": {"held_out": given.clients.share} if given.clients.share else {},  # else the recipe's default
    }
    apply_settings(found, [setting(key, value) for key, value in settings.items()], keys=recipe_keys())
    return checked(Recipe, found, origin=call)


def _folder_name(text: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in text)


def _method_table(method: MethodLike) -> tuple[Mapping[str, Any], type[Method] | None]:
    """A recipe's table of a method, and the class if it is one that the package does not know by name."""
    if isinstance(method, Mapping):
        if "name" not in method:
            raise UserError(f"The method {dict(method)!r} has no name; write {{'name': 'promptfl', ...}}.")
        table, kind = _method_table(method["name"])
        return {**method, **table}, kind
    if isinstance(method, str):
        return {"name": method}, None
    own = methods.require_method(method).__module__.removeprefix(f"{methods.__name__}.")
    if own in methods.names():
        return {"name": own}, None
    return {"name": method.__name__}, method


@worded("settings")
def run(
    recipe: Recipe | PathLike,
    /,
    *,
    out: PathLike | None = None,
    callbacks: RunCallbacks | Sequence[RunCallbacks] = (),
    progress: bool = True,
    clip: Clip | None = None,
    on: RuntimeLike = None,
    **settings: Any,
) -> Run:
    """Run a recipe: a `Recipe`, a TOML file, or the name of one that the package contains.

    `settings` are keys of the recipe; tables are given as mappings or with dots, `**{"train.rounds": 3}`. `clip` is a
    backbone that is open already, and `on` the runtime as in `train`. Without `out` the run lives as long as the result
    does. Raises UserError as the command `fedprompt run` does.
    """
    if "settings" in settings:
        raise UserError('`run` has no `settings`; give keys of the recipe as keywords, as in **{"train.rounds": 3}.')
    plan, given = plan_of_recipe(recipe, {**runtime_settings(on), **settings}, clip=clip)
    return _start(plan, given, out, callbacks, progress=progress)


def plan_of_recipe(recipe: Recipe | PathLike, settings: Mapping[str, Any], *, clip: Clip | None) -> tuple[Plan, Given]:
    """The plan of a recipe, its file or its name, with changed keys, and what it takes in place of names."""
    changes, given = [setting(key, value) for key, value in dotted(settings)], Given(clip)
    if isinstance(recipe, Recipe):
        tables = recipe.model_dump(mode="json", exclude_none=True, exclude_unset=True)
        apply_settings(tables, changes, keys=recipe_keys())
        return given.plan(checked(Recipe, tables, origin=recipe.name), origin=recipe.name), given
    path = find_recipe(str(as_path(recipe, "recipe")))
    return given.plan(load_recipe(path, changes), origin=path.name), given


def runtime_table(on: RuntimeLike) -> Mapping[str, Any]:
    """The table [runtime] that an argument `on` stands for."""
    return {"name": on} if isinstance(on, str) else keyed(on, "on", '{"name": "ray", "actors": 2}')


def runtime_settings(on: RuntimeLike) -> Mapping[str, Any]:
    """The keys of a recipe's [runtime] that an argument `on` stands for."""
    return {f"runtime.{key}": value for key, value in runtime_table(on).items()}


def _start(
    plan: Plan, given: Given, out: PathLike | None, callbacks: RunCallbacks | Sequence[RunCallbacks], *, progress: bool
) -> Run:
    """Run a plan in the folder `out`, or in a temporary one that goes with the result."""
    folder, kept = output_folder(out, plan.recipe.name)
    command = CommandRecord(name="run", folder=str(folder) if kept is None else "", python=True)
    with (
        joined(callbacks, progress=progress) as listener,
        _interruption_kept(folder, listener, temporary=kept is not None),
    ):
        runs.start(plan, folder, callbacks=listener, given=given, command=command)
    return Run(folder, clip=given.clip, given=given.methods, kept=kept)


def output_folder(out: PathLike | None, name: str) -> tuple[Path, TemporaryFolder | None]:
    """The folder `out`, or one of that name in a temporary folder, which goes with the object that is returned."""
    if out is not None:
        return as_path(out, "out"), None
    kept = TemporaryFolder("fedprompt-")
    return kept.path / name, kept


@contextmanager
def _interruption_kept(folder: Path, callbacks: RunCallbacks, *, temporary: bool = False) -> Iterator[None]:
    """Let a run end by Ctrl-C as by itself if its last finished round was scored."""
    try:
        yield
    except RoundKeptInterrupt as interrupt:
        run = read_run(folder)
        going_on = proposals(run, "" if temporary else str(folder)).resume()
        sentences = (str(interrupt), *not_begun(run), *([f"Go on: {going_on}"] if going_on else []))
        callbacks.on_message(" ".join(sentences))
        render(folder)


@worded("keywords")
def resume(  # noqa: PLR0913  (what may have been given from Python)
    folder: PathLike,
    /,
    *,
    clip: Clip | None = None,
    data: Dataset | None = None,
    clients: Clients | None = None,
    method: type[Method] | Sequence[type[Method]] = (),
    accept_changes: bool = False,
    trust_code: str | Sequence[str] = (),
    callbacks: RunCallbacks | Sequence[RunCallbacks] = (),
    progress: bool = True,
    on: RuntimeLike = None,
) -> Run:
    """Continue a run that stopped; the result is bitwise that of a run that never stopped.

    What was given from Python when the run began is given again: `clip`, `data`, `clients` and the class of a `method`
    of one's own. Modules outside fedprompt that the run's recipe names must be in `trust_code`. `on` may be another
    runtime than the one that it began with. Raises UserError where one of them is missing or has changed, unless
    `accept_changes`.
    """
    kinds = listed(method, "method")
    if wrong := [kind for kind in kinds if not (isinstance(kind, type) and issubclass(kind, Method))]:
        raise UserError(f"`method` is {shown(wrong[0])}; give the class of the method, derived from fedprompt.Method.")
    given = Given(clip, data, clients, {kind.__name__: kind for kind in kinds})
    place = as_path(folder, "folder")
    with joined(callbacks, progress=progress) as listener, _interruption_kept(place, listener):
        runs.resume(
            place,
            callbacks=listener,
            accept_changes=accept_changes,
            trusted=(*(kind.__module__ for kind in kinds), *listed(trust_code, "trust_code")),
            given=given,
            runtime=None if on is None else runs.changed_runtime(place, runtime_table(on)),
        )
    return Run(place, clip=clip, given=given.methods)
