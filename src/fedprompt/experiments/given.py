"""Objects that stand for what a recipe names: a backbone, a data set, clients, and methods that no module defines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedprompt import methods
from fedprompt.clip.model import Clip
from fedprompt.config.blocks import Block
from fedprompt.config.recipe import Recipe
from fedprompt.data.dataset import Dataset
from fedprompt.experiments.clients import Clients
from fedprompt.experiments.experiment import Backbone, with_absolute_backbone
from fedprompt.experiments.plan import Plan, resolve
from fedprompt.methods.base import Method


@dataclass(frozen=True)
class Given:
    """What a caller has opened or defined; what is None is opened as the recipe says. `methods` are classes by name."""

    clip: Clip | None = None
    data: Dataset | None = None
    clients: Clients | None = None
    methods: Mapping[str, type[Method]] = field(default_factory=dict)

    def find_method(self, name: str) -> type[Method]:
        """The class that was given under a name, else the method that the package knows by it."""
        return self.methods[name] if name in self.methods else methods.load(name)

    def plan(self, recipe: Recipe, *, origin: str) -> Plan:
        """The plan of a recipe with the given objects in it."""
        plan = resolve(with_absolute_backbone(recipe), origin=origin, find_method=self.find_method)
        if self.data is not None:
            plan = replace(plan, source=_constant(plan.source, self.data))
        if self.clients is not None:
            plan = replace(plan, clients=self.clients.partition)
        return plan

    @property
    def backbone(self) -> Backbone | None:
        """How a run opens its backbone, if one was given."""
        clip = self.clip
        return None if clip is None else lambda table: clip


NOTHING = Given()


def _constant(block: Block[Any], value: object) -> Block[Any]:
    """A block that returns the value, whatever its options; they stay in the recipe."""
    return replace(block, builder=lambda *_, **__: value)
