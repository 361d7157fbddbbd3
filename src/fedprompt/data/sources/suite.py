"""Several data sets in one federation: some that clients hold, others that the result is only tested on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import JsonValue
from torch import Tensor

from fedprompt.data.dataset import Dataset, Examples
from fedprompt.data.images import JoinedSource
from fedprompt.data.labels import LabelSpace
from fedprompt.data.partition.base import Partition, Shard
from fedprompt.data.published.catalog import Options, folder_of, published_set, row
from fedprompt.data.sources.image_folder import OnStep
from fedprompt.errors import UserError


@dataclass(frozen=True, eq=False)
class Joined(Dataset):
    """Several data sets as one: rows and class ids run on from part to part, and examples are those of one part.

    Only classes of parts with training pictures are base or new; those of the others are candidates of their own part.
    """

    members: tuple[Dataset, ...] = ()

    @property
    def parts(self) -> tuple[Dataset, ...]:
        """The data sets that were joined."""
        return self.members

    def reworded(self, reword: Callable[[LabelSpace], LabelSpace]) -> Self:
        """The same pictures, each part in other words: examples are those of a part, and so are their words."""
        return replace(self, members=tuple(part.reworded(reword) for part in self.members))

    def without(self, rows: Collection[int]) -> Self:
        """The data sets without these rows in any split."""
        ends = [*_starts(self.members), len(self.source)]
        members = (
            part.without([row - start for row in rows if start <= row < end])
            for part, (start, end) in zip(self.members, pairwise(ends), strict=True)
        )
        return replace(super().without(rows), members=tuple(members))

    def part_of(self, row: int) -> int:
        """Which part a row belongs to."""
        return bisect_right(_starts(self.members), row) - 1

    def examples(self, rows: Tensor, classes: Sequence[int] | None = None, *, domain: str = "") -> Examples:
        """The rows of one part over its own classes; UserError for rows of several parts, which share no candidates."""
        places = {self.part_of(row) for row in rows.tolist()}
        if len(places) != 1:
            raise UserError("Pictures of several data sets have no candidates in common; ask about each by itself.")
        place = places.pop()
        part, first = self.members[place], _class_starts(self.members)[place]
        own = range(len(part.space)) if classes is None else [label - first for label in classes]
        return part.examples(rows - _starts(self.members)[place], own, domain=domain)

    def dealt(self, rule: Callable[[Dataset], Partition]) -> Partition:
        """Every part that has training pictures dealt out by a rule; client names begin with the part's."""
        shards: list[Shard] = []
        dealt = [(place, rule(part)) for place, part in enumerate(self.members) if part.trains]
        for place, partition in dealt:
            row, label = _starts(self.members)[place], _class_starts(self.members)[place]
            for shard in partition.shards:
                name = f"{self.members[place].name}-{shard.name.removeprefix('client-')}"
                rows = tuple(row + one for one in shard.rows)
                shards.append(replace(shard, name=name, rows=rows, classes=tuple(label + one for one in shard.classes)))
        first = dealt[0][1]
        return Partition(first.rule, first.seed, tuple(shards))


def _starts(parts: Sequence[Dataset]) -> list[int]:
    return list(accumulate((len(part.source) for part in parts[:-1]), initial=0))


def _class_starts(parts: Sequence[Dataset]) -> list[int]:
    return list(accumulate((len(part.space) for part in parts[:-1]), initial=0))


def join(parts: Sequence[Dataset]) -> Joined:
    """Put data sets of one label a picture side by side; UserError if one has many or none has training pictures."""
    if many := next((part for part in parts if part.space.kind == "multi"), None):
        raise UserError(f"Pictures of {many.name!r} have many labels, which a suite cannot join; run it by itself.")
    if not any(part.trains for part in parts):
        raise UserError(f"None of {', '.join(part.name for part in parts)} has training pictures; name one that has.")
    firsts = _class_starts(parts)
    trained = [(part, first) for part, first in zip(parts, firsts, strict=True) if part.trains]
    return Joined(
        name="+".join(part.name for part in parts),
        source=JoinedSource(tuple(part.source for part in parts)),
        space=LabelSpace(tuple(f"{part.name}: {name}" for part in parts for name in part.space.names)),
        targets=torch.cat([part.targets + first for part, first in zip(parts, firsts, strict=True)]),
        splits=tuple(chain.from_iterable(part.splits for part in parts)),
        domains=tuple(chain.from_iterable(part.domains for part in parts)),
        base=tuple(label + first for part, first in trained for label in part.base),
        new=tuple(label + first for part, first in trained for label in part.new),
        notes=tuple(note for part in parts for note in part.notes),
        members=tuple(parts),
    )


def _all_there(names: Sequence[str], root: Path) -> None:
    """Before the first one is listed, which may take long, look for all; UserError naming every one that is lost."""
    lost = [name for name in names if folder_of(name, root) is None]
    if len(lost) > 1:
        where = "".join(f"\n  {name}: {row(name).origin} ({row(name).size}; {row(name).licence})" for name in lost)
        raise UserError(
            f"{len(lost)} of {len(names)} data sets are not in {root}. `fedprompt data info NAME` has the tree that is "
            f"expected; get them:{where}"
        )


def suite(  # noqa: PLR0913  (every option has a default, and a recipe names them all)
    *,
    root: Path,
    sets: tuple[str, ...],
    targets: tuple[str, ...] = (),
    base: Literal["half", "all"] = "half",
    missing: Literal["refuse", "skip"] = "refuse",
    options: Mapping[str, Mapping[str, JsonValue]] | None = None,
    attributes: Path | None = None,
    seed: int = 1,
    on_step: OnStep | None = None,
) -> Joined:
    """Read `sets`, whose classes are dealt out to clients set by set, and `targets`, all classes, for testing alone.

    `options` are a data set's own by its name, `attributes` a folder with a file of phrases for each.
    Raises UserError for a set that is named twice or not there.
    """
    every = (*sets, *targets)
    if not sets or len(set(every)) < len(every):
        raise UserError(f"A suite needs different data sets, and one to train on; it has {', '.join(every) or 'none'}.")
    own: Mapping[str, Options] = options or {}
    if foreign := sorted(set(own) - set(every)):
        raise UserError(f"The options name {foreign[0]!r}, which is not in the suite; it has {', '.join(every)}.")
    _all_there(every, root)
    return join(
        [
            published_set(
                name=name,
                root=root,
                base=base if name in sets else "all",
                train=name in sets,
                missing=missing,
                options=own.get(name),
                attributes=attributes,
                seed=seed,
                on_step=on_step,
            )
            for name in every
        ]
    )
