"""Conformance tests of partition rules: deterministic, disjoint, training images of base classes only."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, get_type_hints

from fedprompt.config.blocks import option_parameters
from fedprompt.config.registry import PARTITION_RULES
from fedprompt.data.dataset import Dataset
from fedprompt.data.labels import Kind
from fedprompt.data.partition.base import Partition
from fedprompt.errors import UserError
from fedprompt.testing.properties import (
    assert_options_are_keywords,
    assert_refused,
    builder_of,
    check,
    impossible_values,
    untouched_generators,
)
from fedprompt.testing.tiny import tiny_dataset

MANY = 10**6  # more than a tiny data set has of anything


def check_partition_rule(rule: str | Callable[..., Partition], options: Mapping[str, object] | None = None) -> None:
    """Check that a partition rule has the properties that runs rely on, on the data sets of `tiny_dataset`.

    `rule` is a function, or a name as in a recipe's [partition]; `options` are those it is tested with. Raises
    AssertionError with a sentence about the first property that does not hold.
    """
    check(PartitionRuleTests, rule=rule, options=options or {})


class PartitionRuleTests:
    """The conformance tests, one per property: derive a class `Test...` from it, set `rule`, and run pytest.

    A rule may refuse single-label or multi-label data by a `UserError`, but not both.

    rule: a function `(dataset, *, options) -> Partition`, or a name as in a recipe's [partition].
    options: what it is tested with besides its defaults.
    """

    rule: ClassVar[str | Callable[..., Partition]]
    options: ClassVar[Mapping[str, object]] = {}

    def test_options_are_keywords_with_defaults(self) -> None:
        """The signature is `(dataset, *, options with types and defaults)`."""
        assert_options_are_keywords(self._rule, positional=("dataset",), defaults=True)

    def test_the_seed_alone_decides(self) -> None:
        """Two calls give equal partitions, whatever was drawn in between, and draw from no global generator."""
        for dataset, partition in self._partitions():
            with untouched_generators(self._name):
                again = self._assign(dataset)
            assert again == partition, (
                f"{self._name} assigns {_moved(partition, again)} of {_size(partition)} images to other clients when "
                "it is called again with the same seed; draw from fedprompt.seeding.stream(seed, ...)."
            )

    def test_the_seed_is_recorded(self) -> None:
        """The partition holds the seed that it was drawn with."""
        if "seed" in option_parameters(self._rule):
            for _, partition in self._partitions({"seed": 77}):
                assert partition.seed == 77, f"{self._name} drew with the seed 77 but records {partition.seed}."

    def test_clients_are_disjoint(self) -> None:
        """No image belongs to two clients or twice to one; every client has a name of its own and an image."""
        for _, partition in self._partitions():
            rows = [row for shard in partition.shards for row in shard.rows]
            assert len(set(rows)) == len(rows), f"{self._name} assigns {len(rows) - len(set(rows))} images twice."
            names = [shard.name for shard in partition.shards]
            assert len(set(names)) == len(names), f"{self._name} gives two clients the same name ({names})."
            empty = [shard.name for shard in partition.shards if not shard.rows]
            assert names and not empty, f"{self._name} leaves {empty or 'all'} clients without a training image."

    def test_only_training_images_of_base_classes_in_seen_domains_are_assigned(self) -> None:
        """Test images, new classes and unseen domains are what methods are evaluated on."""
        for dataset, partition in self._partitions():
            allowed = set(dataset.rows(split="train", domains=dataset.seen_domains).tolist())
            wrong = [row for shard in partition.shards for row in shard.rows if row not in allowed]
            assert not wrong, (
                f"{self._name} assigns {len(wrong)} images that are not of the training split in a seen domain, e.g. "
                f"row {wrong[0]} ({dataset.splits[wrong[0]]}, {dataset.domains[wrong[0]]}); take them from "
                'dataset.rows(split="train", classes=dataset.base, domains=dataset.seen_domains).'
            )
            for shard in partition.shards:
                foreign = set(shard.classes) - set(dataset.base)
                assert not foreign, f"The candidate classes of {shard.name} include {foreign}, not base classes."
                if dataset.space.kind == "single":
                    other = set(dataset.targets[list(shard.rows)].tolist()) - set(shard.classes)
                    assert not other, f"{shard.name} has images of {other}, which are not among its candidate classes."

    def test_assigned_test_images_are_test_images(self) -> None:
        """A rule that also assigns test images takes them from the test split, each for one client at most."""
        for dataset, partition in self._partitions():
            rows = [row for shard in partition.shards for row in shard.test or ()]
            wrong = set(rows) - set(dataset.rows(split="test").tolist())
            assert not wrong, f"{self._name} gives clients {len(wrong)} test images that are not of the test split."
            assert len(set(rows)) == len(rows), f"{self._name} gives two clients the same test image."

    def test_excluded_images_are_not_assigned(self) -> None:
        """Rows that the data set excludes, e.g. because they cannot be read, belong to nobody."""
        for dataset, partition in self._partitions():
            excluded = frozenset(partition.shards[0].rows[:1])
            found = self._assign(dataset.without(excluded))
            wrong = excluded & {row for shard in found.shards for row in shard.rows}
            assert not wrong, f"{self._name} assigns the rows {sorted(wrong)}, which the data set excludes."

    def test_a_partition_survives_json(self) -> None:
        """What is written to a run's folder reads back as the same partition."""
        for _, partition in self._partitions():
            read = Partition.from_json(partition.to_json())
            assert read == partition, (
                f"A partition by {self._name} reads back as another one; give a Shard tuples of int, not tensors or "
                "NumPy numbers."
            )

    def test_impossible_options_are_refused(self) -> None:
        """A negative number raises a `UserError` that names the option; one too large may too."""
        hints = get_type_hints(self._rule, include_extras=True)
        for (dataset, _), option in itertools.product(self._partitions(), option_parameters(self._rule)):
            values = impossible_values(hints[option]) if option != "seed" else ()
            for value in values:
                assert_refused(option, value, functools.partial(self._assign, dataset))
            if any(isinstance(value, int) for value in values):
                self._check_many(dataset, option)

    def _check_many(self, dataset: Dataset, option: str) -> None:
        try:
            partition = self._assign(dataset, {option: MANY})
        except UserError:
            return
        empty = sum(not shard.rows for shard in partition.shards)
        assert not empty, f"With {option} = {MANY}, {self._name} leaves {empty} clients without a training image."

    @property
    def _rule(self) -> Callable[..., Partition]:
        return builder_of(self, "rule", PARTITION_RULES)

    @property
    def _name(self) -> str:
        return self._rule.__name__

    def _assign(self, dataset: Dataset, options: Mapping[str, object] | None = None) -> Partition:
        return self._rule(dataset, **{**self.options, **(options or {})})

    def _partitions(self, options: Mapping[str, object] | None = None) -> Iterator[tuple[Dataset, Partition]]:
        """Data sets of the kinds that the rule accepts, each with its partition."""
        refusals = []
        kinds: tuple[Kind, ...] = ("single", "multi")
        for kind in kinds:
            dataset = tiny_dataset(kind)
            try:
                partition = self._assign(dataset, options)
            except UserError as error:
                refusals.append(str(error))
            else:
                yield dataset, partition
        assert len(refusals) < len(kinds), f"{self._name} accepts neither kind of data set: {' '.join(refusals)}"


def _size(partition: Partition) -> int:
    return sum(len(shard.rows) for shard in partition.shards)


def _moved(before: Partition, after: Partition) -> int:
    """The number of images that belong to other clients, or to none, afterwards."""
    owners = {row: shard.name for shard in after.shards for row in shard.rows}
    return sum(owners.get(row) != shard.name for shard in before.shards for row in shard.rows)
