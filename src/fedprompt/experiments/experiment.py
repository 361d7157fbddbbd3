"""From a recipe to the values of an experiment: backbone, data, partition, clients and trials, one small step each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fedprompt import methods
from fedprompt.clip.feature_cache import FeatureCache
from fedprompt.clip.model import Clip
from fedprompt.config.recipe import (
    BackboneTable,
    DataTable,
    DescriptionsTable,
    MethodTable,
    Recipe,
    TrainTable,
    check_options,
    checked,
)
from fedprompt.config.registry import RULES, SOURCES, SUPPLIED, find
from fedprompt.config.tables import Choice, ServerTable, Toml
from fedprompt.data.annotation import draw_missing, mask_labels
from fedprompt.data.dataset import Dataset
from fedprompt.data.folder import OnStep
from fedprompt.data.joined import JoinedDataset
from fedprompt.data.partition.base import Partition
from fedprompt.data.problems import ImageScan
from fedprompt.demo import weights_folder
from fedprompt.errors import UserError
from fedprompt.experiments.class_descriptions import absolute, described
from fedprompt.experiments.clients import Clients
from fedprompt.experiments.server import at_home, make_server, resolve_server, sample_privacy
from fedprompt.experiments.unreadable import LeftOut, look_through, sift
from fedprompt.federated.aggregation.base import Weighting
from fedprompt.federated.client import Client, Settings
from fedprompt.methods.base import Method
from fedprompt.seeding import stream

Builder = Callable[..., Any]
DEMO = "demo"  # the one backbone that is named by a word


@dataclass(frozen=True)
class Trial:
    """One method of a run with all that it is trained with."""

    name: str
    method: str
    options: Mapping[str, Any]
    settings: Settings
    fraction: float
    weighting: Weighting
    sharing: Literal["federated", "local", "pooled"] = "federated"
    descriptions: DescriptionsTable = field(default_factory=DescriptionsTable)
    server: ServerTable = field(default_factory=ServerTable)


@dataclass(frozen=True)
class Experiment:
    """All that a run needs. `recipe` has every default written out; `trials` starts with the main one.

    `described` is the data set in the words of each trial, by its name; `of` is the experiment as a trial sees it.
    `hidden` [N, C] are the labels that [annotation] takes away from the training pictures of `dataset`, if any.
    `left_out` are the pictures that cannot be read, and `looked` is what opening pictures told.
    """

    recipe: Recipe
    clip: Clip
    dataset: Dataset
    partition: Partition
    clients: Clients
    trials: tuple[Trial, ...]
    described: Mapping[str, Dataset]
    hidden: Tensor | None = None
    left_out: tuple[LeftOut, ...] = ()
    looked: ImageScan = ImageScan({}, {})  # noqa: RUF009  (frozen)

    def trainers(self, trial: Trial) -> Sequence[Client]:
        """Who trains in a trial: the clients, or one that holds everything they have."""
        if trial.sharing != "pooled":
            return self.clients
        return self.clients.pooled()

    def of(self, trial: Trial) -> Experiment:
        """The same pictures and clients under the trial's own words."""
        dataset = self.described[trial.name]
        return replace(self, dataset=dataset, clients=self.clients.over(dataset))


def assemble(
    recipe: Recipe,
    *,
    origin: str = "recipe",
    on_step: OnStep | None = None,
    backbone: Callable[[BackboneTable], Clip] | None = None,
    unreadable: Mapping[int, str] | None = None,
) -> Experiment:
    """Take every step; whatever is wrong with a recipe is a UserError here, before anything is written.

    `on_step(done, total)` is told how far the listing of pictures has come, then how many are opened. `backbone` opens
    the CLIP, for a process that keeps one over many experiments. `unreadable` are rows known as such, with reasons; no
    picture is opened then.
    """
    recipe = resolve(recipe, origin=origin)
    trials = make_trials(recipe, origin=origin)
    dataset = load_dataset(recipe.data, on_step=on_step)
    trials = tuple(_told(trial, dataset) for trial in trials)
    # differs: the release deals pictures out after labels are hidden; here all rates train the same clients
    partition = make_partition(recipe, dataset)
    looked = ImageScan({}, unreadable or {})
    if unreadable is None:
        workers = recipe.backbone.workers
        looked = look_through(dataset, partition, whole=recipe.check, workers=workers, on_step=on_step)
    dataset, partition, left_out = sift(dataset, partition, looked.unreadable, share=recipe.data.unreadable)
    dataset, hidden = hide_labels(recipe, dataset)
    spoken = {trial.name: partial(described, table=trial.descriptions, seed=recipe.seed) for trial in trials}
    in_words = {name: dataset.map_label_space(reword) for name, reword in spoken.items()}
    clip = (backbone or load_backbone)(recipe.backbone)
    clients = Clients(dataset, partition, test=recipe.evaluate.local, held_out=recipe.evaluate.held_out)
    return Experiment(recipe, clip, dataset, partition, clients, trials, in_words, hidden, left_out, looked)


def resolve(recipe: Recipe, *, origin: str = "recipe") -> Recipe:
    """The recipe with the defaults of its data, partition and methods written out; UserError for an unknown option."""
    tables = enumerate(recipe.compare)
    return recipe.model_copy(
        update={
            "data": _resolved(recipe.data, _source(recipe.data, origin), f"{origin}: [data]", seed=recipe.seed),
            "partition": _resolved(recipe.partition, _rule(recipe, origin), f"{origin}: [partition]", seed=recipe.seed),
            "descriptions": absolute(recipe.descriptions),
            "method": _resolved_method(recipe.method, f"{origin}: [method]"),
            "train": _resolved_train(recipe.train, f"{origin}: [train]"),
            "compare": tuple(_resolved_method(table, f"{origin}: [compare.{number}]") for number, table in tables),
        }
    )


def _source(table: DataTable, origin: str = "recipe") -> Builder:
    return find(SOURCES, table.source, place=f"{origin}: [data] source")


def _rule(recipe: Recipe, origin: str = "recipe") -> Builder:
    return find(RULES, recipe.partition.rule, place=f"{origin}: [partition] rule")


def _resolved(table: Choice, builder: Builder, place: str, *, seed: int) -> Choice:
    """Fill in defaults; a draw takes the run's seed unless the table names another."""
    options = table.options
    if "seed" in inspect.signature(builder).parameters:
        options.setdefault("seed", seed)
    return _with_options(table, check_options(builder, options, place=place, supplied=SUPPLIED))


def _resolved_method(table: MethodTable, place: str) -> Choice:
    options = check_options(methods.load(table.name), table.options, place=f"{place} {table.name}", supplied=SUPPLIED)
    own = checked(DescriptionsTable, table.descriptions, origin=f"{place}.descriptions")
    descriptions = absolute(own).model_dump(mode="json", include=set(table.descriptions))
    return _with_options(table.model_copy(update={"descriptions": descriptions}), options)


def _resolved_train(train: TrainTable, place: str) -> TrainTable:
    return train.model_copy(update={"server": resolve_server(train.server, place=f"{place} server")})


def _with_options(table: Choice, options: Toml) -> Choice:
    known = {name: getattr(table, name) for name in type(table).model_fields}
    # TOML has no None; the default stands for it.
    values = {name: _absolute(value) for name, value in options.items() if value is not None}
    return type(table)(**known, **values)


def _absolute(value: object) -> object:
    """A path as text, absolute: a run may be resumed from anywhere."""
    if isinstance(value, Mapping):
        return {key: _absolute(item) for key, item in value.items()}
    return str(value.expanduser().resolve()) if isinstance(value, Path) else value


def make_trials(recipe: Recipe, *, origin: str = "recipe") -> tuple[Trial, ...]:
    """The main method and those beside it; each may override parts of [train]."""
    tables = {"method": recipe.method} | {f"compare.{number}": table for number, table in enumerate(recipe.compare)}
    trials = tuple(_make_trial(recipe, table, f"{origin}: [{place}") for place, table in tables.items())
    names = [trial.name for trial in trials]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{origin}: two methods of the run are called {twice!r}; give one of them a label of its own.")
    return trials


def _make_trial(recipe: Recipe, table: MethodTable, place: str) -> Trial:
    train = checked(TrainTable, recipe.train.model_dump() | table.train, origin=f"{place}.train]")
    descriptions = checked(
        DescriptionsTable, recipe.descriptions.model_dump() | table.descriptions, origin=f"{place}.descriptions]"
    )
    server = resolve_server(train.server, place=f"{place}.train.server]")
    if train.sharing != "federated":
        server = at_home(server)
    make_server(server, table.name, weighting=train.weighting)  # parts that exclude each other are refused here
    loop = {"fraction", "weighting", "sharing"}
    settings = Settings(seed=recipe.seed, privacy=sample_privacy(server), **train.model_dump(exclude={*loop, "server"}))
    return Trial(
        table.title,
        table.name,
        table.options,
        settings,
        descriptions=descriptions,
        server=server,
        **train.model_dump(include=loop),
    )


def _told(trial: Trial, dataset: Dataset) -> Trial:
    """The trial with what its method wants to know of the data; a recipe that says so itself is believed."""
    names = [dataset.space.names[label] for label in dataset.base]
    said = {name: value for name, value in trial.options.items() if value}
    return replace(trial, options={**trial.options, **methods.told(methods.load(trial.method), names), **said})


def load_backbone(table: BackboneTable) -> Clip:
    """The CLIP that the table names, on the device it names, with its memory."""
    device = ("cuda" if torch.cuda.is_available() else "cpu") if table.device == "auto" else table.device
    folder = Path(table.disk).expanduser() if table.disk else None
    cache = FeatureCache(memory_bytes=int(table.memory_gb * 2**30), folder=folder)
    path = weights_folder() if table.path == DEMO else table.path
    return Clip.load(path, cache=cache, device=device, batch=table.batch, workers=table.workers)


def load_dataset(table: DataTable, *, on_step: OnStep | None = None) -> Dataset:
    """The data set that [data] names; a reader that lists many files tells `on_step` how far it is."""
    builder = _source(table)
    options = check_options(builder, table.options, place="recipe: [data]", supplied=SUPPLIED)
    if "on_step" in inspect.signature(builder).parameters:
        options["on_step"] = on_step
    dataset: Dataset = builder(**options)
    return dataset


def make_partition(recipe: Recipe, dataset: Dataset) -> Partition:
    """Deal the training pictures out to clients by the rule that [partition] names."""
    builder = _rule(recipe)
    options = check_options(builder, recipe.partition.options, place="recipe: [partition]")
    if isinstance(dataset, JoinedDataset):
        return dataset.partition_parts(lambda part: builder(part, **options))
    partition: Partition = builder(dataset, **options)
    return partition


def hide_labels(recipe: Recipe, dataset: Dataset) -> tuple[Dataset, Tensor | None]:
    """The data set as [annotation] leaves it, and which labels that hides."""
    form, rate = recipe.annotation.form, recipe.annotation.missing
    if not rate:
        return dataset, None
    hidden = draw_missing(dataset, form=form, rate=rate, seed=recipe.seed)
    return mask_labels(dataset, hidden, form=form), hidden


def make_method(trial: Trial, clip: Clip) -> Method:
    """A fresh method: the same seed draws the same initial state, whatever else the run holds."""
    kind = methods.load(trial.method)
    if trial.sharing == "local":  # every tensor is personal: nothing leaves a client
        kind = type(kind.__name__, (kind,), {"personal": ("",), "__module__": kind.__module__})
    options = check_options(kind, trial.options, place=trial.name, supplied=SUPPLIED)
    return kind(clip, **options, generator=stream(trial.settings.seed, "method")).to(clip.device)
