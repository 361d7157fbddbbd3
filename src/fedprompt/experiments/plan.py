"""The plan of a run: `resolve` checks a recipe once and binds every building block that it names to its options.

Everything that comes after calls the bound blocks; it looks up no name and checks no option.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from fedprompt import methods
from fedprompt.clip.backbone import Family
from fedprompt.clip.model import Clip
from fedprompt.clip.prompts import TEMPLATE
from fedprompt.config.blocks import Block, bind, has_keyword, options_that_fit, with_defaults
from fedprompt.config.recipe import Recipe, checked, recipe_key_hint
from fedprompt.config.recipe_tables import ClientTraining, DescriptionsTable, MethodTable, NamedBlock, Toml, TrainTable
from fedprompt.config.registry import PARTITION_RULES, SOURCES, Registry, is_at_sites
from fedprompt.config.tuned import PAPER, with_tuned
from fedprompt.data.dataset import Dataset
from fedprompt.data.joined import partitioned
from fedprompt.data.partition.base import Partition
from fedprompt.errors import UserError
from fedprompt.experiments.class_descriptions import with_absolute_paths
from fedprompt.experiments.keep import HELD_OUT, Keep
from fedprompt.experiments.server import REGISTRIES as SERVER_REGISTRIES
from fedprompt.experiments.server import ServerSetup, bind_server, set_up, write_out
from fedprompt.federated.aggregation.base import Weighting
from fedprompt.federated.client import TrainSettings, require_accounted
from fedprompt.methods.base import Method, Reads
from fedprompt.records.run_record import trial_label
from fedprompt.seeding import stream

Sharing = Literal["federated", "local", "pooled"]


@dataclass(frozen=True)
class Trial:
    """One method of a run with everything that it is trained with."""

    name: str
    builder: Block[Method]
    settings: TrainSettings
    setup: ServerSetup
    fraction: float = 1.0
    weighting: Weighting = "uniform"
    sharing: Sharing = "federated"
    descriptions: DescriptionsTable = field(default_factory=DescriptionsTable)

    @property
    def method(self) -> str:
        """The method's name."""
        return self.builder.name

    @property
    def label(self) -> str:
        """The trial's name in tables."""
        return trial_label(self.name, self.method, methods.method_summary(_class_of(self.builder)))

    @property
    def options(self) -> Mapping[str, Any]:
        """The method's options with every default, as a recipe writes them."""
        return self.builder.written

    @property
    def reads(self) -> Reads:
        """The class descriptions that the method depends on."""
        return _class_of(self.builder).reads

    def make_method(self, clip: Clip) -> Method:
        """A fresh method; its initial state depends on the seed alone.

        Raises UserError if the backbone cannot carry it, or if no privacy budget accounts for how it trains.
        """
        self.require_carried(clip.family)
        method = self.builder(clip, generator=stream(self.settings.seed, "method")).to(clip.device)
        require_accounted(method, self.settings)
        return method

    def refusal(self, family: Family) -> str:
        """Why a backbone of this family cannot carry the method, in a sentence; "" if it can."""
        return methods.refusal(_class_of(self.builder), family)

    def require_carried(self, family: Family) -> None:
        """Raise UserError if a backbone of this family cannot carry the method."""
        if reason := self.refusal(family):
            raise UserError(reason)

    def with_data(self, dataset: Dataset) -> Trial:
        """The trial with the options that depend on the data: classes that clients train on, and the template."""
        classes = [dataset.space.names[label] for label in dataset.base]
        found = methods.filled_options(_class_of(self.builder), self.builder.options, classes, dataset.space.template)
        if dataset.templates:  # those of domains, which no option stands for
            found.pop("template", None)
        return replace(self, builder=self.builder.with_options(found))

    def is_same(self, other: Trial) -> bool:
        """Whether the two differ in nothing but their names."""
        return replace(self, name=other.name, setup=other.setup) == other and self.setup.table == other.setup.table


@dataclass(frozen=True)
class Plan:
    """A recipe with every default written out, and what it names, bound; `trials` starts with the main method.

    `source(on_step=None)` reads the data set. `origin` names the recipe in messages. `clients` is a partition that was
    given in place of one by the rule.
    """

    recipe: Recipe
    origin: str
    source: Block[Dataset]
    rule: Block[Partition]
    trials: tuple[Trial, ...]
    keep: Keep = Keep()  # noqa: RUF009  (frozen)
    clients: Partition | None = None

    @property
    def data_at_sites(self) -> bool:
        """Whether the images lie at the sites of a federation, not in one place."""
        return is_at_sites(self.source.builder)

    @property
    def clients_are_sites(self) -> bool:
        """Whether the clients are the sites of a federation."""
        return is_at_sites(self.rule.builder)

    def partition(self, dataset: Dataset) -> Partition:
        """The partition of the training images, given or by the rule; UserError if it is not to be trained on."""
        if self.clients is not None:
            return self.clients.trainable(dataset)
        return partitioned(dataset, self.rule, name=self.rule.name)


FindMethod = Callable[[str], type[Method]]  # the method of a name; UserError for an unknown one


def resolve(recipe: Recipe, *, origin: str = "recipe", find_method: FindMethod = methods.load) -> Plan:
    """Check everything that a recipe names before any data is opened; UserError for an unknown name or option.

    Resolving a plan's recipe again gives the same plan. `find_method` looks methods up.
    """
    source = _bind_seeded(SOURCES, recipe.data, "source", place=f"{origin}: [data]", seed=recipe.seed).returning(
        Dataset
    )
    rule = _bind_seeded(PARTITION_RULES, recipe.partition, "rule", place=f"{origin}: [partition]", seed=recipe.seed)
    keep = Keep.of(recipe, origin=origin)
    evaluate = recipe.evaluate
    if keep.metric and "held_out" not in evaluate.model_fields_set:
        evaluate = evaluate.model_copy(update={"held_out": HELD_OUT})
    if recipe.defaults != PAPER and "threshold" not in evaluate.model_fields_set:
        evaluate = evaluate.model_copy(update={"threshold": "near_count"})
    server = recipe.train.server
    server = write_out(server, bind_server(server, place=f"{origin}: [train.server]"))
    named = {"method": recipe.method} | {f"compare.{number}": table for number, table in enumerate(recipe.compare)}
    tables = {key: _with_defaults(recipe, table) for key, table in named.items()}
    blocks = {
        key: bind_method(table.name, table.options, place=f"{origin}: [{key}]", find_method=find_method)
        for key, table in tables.items()
    }
    main, *others = (_write_out_method(tables[key], blocks[key], f"{origin}: [{key}]") for key in tables)
    recipe = recipe.model_copy(
        update={
            "data": with_defaults(recipe.data, source),
            "partition": with_defaults(recipe.partition, rule),
            "descriptions": with_absolute_paths(recipe.descriptions),
            "method": main,
            "train": recipe.train.model_copy(update={"server": server}),
            "evaluate": evaluate,
            "compare": tuple(others),
        }
    )
    places = (f"{origin}: [{key}" for key in tables)
    trials = tuple(map(_plan_trial, [recipe] * len(tables), (main, *others), blocks.values(), places))
    names = [trial.name for trial in trials]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{origin}: two methods of the run are called {twice!r}; give one of them a label of its own.")
    clients = rule.options.get("clients")
    if isinstance(clients, int) and clients > 0:  # as far as it is known before data are opened
        check_adversaries(trials, clients)
    return Plan(recipe, origin, source, rule, trials, keep)


def _with_defaults(recipe: Recipe, table: MethodTable) -> MethodTable:
    """The method's table with what `defaults` of the recipe says, if it names tuned ones."""
    table = with_tuned(table, recipe.defaults, recipe.train)
    options = block_options("method", table.name, {}) or ()
    stated = {"init", "n_ctx"} & set(table.options)  # a template has as many vectors as its words take
    if recipe.defaults != PAPER and "init" in options and not stated:
        return MethodTable.model_validate(table.model_dump(exclude_unset=True) | {"init": TEMPLATE})
    return table


def check_adversaries(trials: Sequence[Trial], clients: int) -> None:
    """Raise UserError if a trial simulates more malicious clients than there are clients."""
    for trial in trials:
        trial.setup.adversaries(clients=clients, seed=trial.settings.seed)


def bind_method(
    name: str, options: Mapping[str, Any], *, place: str, find_method: FindMethod = methods.load
) -> Block[Method]:
    """A method with checked options; UserError for an unknown method or option."""
    return bind(name, find_method(name), options, place=place, hint=recipe_key_hint)


def block_options(table: str, name: str, values: Toml) -> Collection[str] | None:
    """The options of the building block that a table ("partition") names; None for an unknown name.

    Those that cannot have their value among `values` are left out.
    """
    try:
        builder = methods.load(name) if table == "method" else _REGISTRIES[table].find(name, place=table)
    except UserError:
        return None
    return options_that_fit(builder, values)


_REGISTRIES: Mapping[str, Registry] = {
    "data": SOURCES,
    "partition": PARTITION_RULES,
    **{f"train.server.{part}": registry for part, registry in SERVER_REGISTRIES.items()},
}


def _class_of(block: Block[Method]) -> type[Method]:
    return cast("type[Method]", block.builder)


def _bind_seeded(registry: Registry, table: NamedBlock, key: str, *, place: str, seed: int) -> Block[Any]:
    """The block that a table names under a key; it takes the run's seed unless the table has another."""
    name = getattr(table, key)
    builder, options = registry.find(name, place=f"{place} {key}"), table.options
    if has_keyword(builder, "seed"):
        options.setdefault("seed", seed)
    return bind(name, builder, options, place=place, hint=recipe_key_hint)


def _write_out_method(table: MethodTable, block: Block[Method], place: str) -> MethodTable:
    own = with_absolute_paths(checked(DescriptionsTable, table.descriptions, origin=f"{place}.descriptions"))
    descriptions = own.model_dump(mode="json", include=set(table.descriptions))
    return with_defaults(table.model_copy(update={"descriptions": descriptions}), block)


def _plan_trial(recipe: Recipe, table: MethodTable, block: Block[Method], place: str) -> Trial:
    """The trial of a method, whose table may override keys of [train] and [descriptions]."""
    train = checked(TrainTable, recipe.train.model_dump() | table.train, origin=f"{place}.train]")
    descriptions = checked(
        DescriptionsTable, recipe.descriptions.model_dump() | table.descriptions, origin=f"{place}.descriptions]"
    )
    setup = set_up(
        train.server,
        _class_of(block),
        weighting=train.weighting,
        sends=train.sharing == "federated",
        place=f"{place}.train.server]",
    )
    settings = TrainSettings(
        seed=recipe.seed, privacy=setup.sample_privacy, **train.model_dump(include=set(ClientTraining.model_fields))
    )
    return Trial(
        table.title,
        _all_personal(block) if train.sharing == "local" else block,
        settings,
        setup,
        fraction=train.fraction,
        weighting=train.weighting,
        sharing=train.sharing,
        descriptions=descriptions,
    )


def _all_personal(block: Block[Method]) -> Block[Method]:
    """The same method with all tensors personal, so that nothing leaves a client."""
    kind = _class_of(block)
    local = type(kind.__name__, (kind,), {"personal": ("",), "__module__": kind.__module__})
    return replace(block, builder=local)
