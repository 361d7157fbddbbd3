"""From a recipe to the values of an experiment: backbone, data, partition, clients and trials, each made by one small step."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch

from fedprompt import methods
from fedprompt.build.catalog import RULES, SOURCES, find
from fedprompt.clip.model import Clip
from fedprompt.clip.store import Store
from fedprompt.config import BackboneTable, MethodTable, Recipe, TrainTable, check_options, checked
from fedprompt.data.dataset import Dataset
from fedprompt.data.partition import Partition
from fedprompt.demo import weights_folder
from fedprompt.errors import UserError
from fedprompt.federated.aggregate import Weighting
from fedprompt.federated.client import Client, Settings
from fedprompt.methods.base import Method
from fedprompt.seeding import stream

SUPPLIED = ("seed", "generator")  # what the assembly passes itself
DEMO = "demo"


@dataclass(frozen=True)
class Trial:
    """One method of a run with all that it is trained with."""

    name: str
    method: str
    options: Mapping[str, Any]
    settings: Settings
    fraction: float
    weighting: Weighting


class Clients(Sequence[Client]):
    """The clients of a partition, made when asked for: ten thousand of them cost nothing until they train.

    A client's test pictures are those of its classes, from its domain where it has one and from the seen domains otherwise.
    """

    def __init__(self, dataset: Dataset, partition: Partition, *, test: bool) -> None:
        self.dataset = dataset
        self.partition = partition
        self._test = test
        self._test_rows = functools.cache(self._find_test_rows)

    def __len__(self) -> int:
        return len(self.partition.shards)

    @overload
    def __getitem__(self, index: int) -> Client: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Client]: ...
    def __getitem__(self, index: int | slice) -> Client | Sequence[Client]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        shard = self.partition.shards[number]
        train = self.dataset.examples(torch.tensor(shard.rows), shard.classes)
        test = None
        if self._test:
            rows = self._test_rows(shard.domain)
            rows = rows[torch.isin(self.dataset.targets[rows], torch.tensor(shard.classes))]
            test = self.dataset.examples(rows, shard.classes) if len(rows) else None
        return Client(number, shard.name, train, test, shard.domain)

    def _find_test_rows(self, domain: str) -> torch.Tensor:
        return self.dataset.rows(split="test", domains=(domain,) if domain else seen_domains(self.dataset))
