"""A data set is a value: pictures, words, labels, domains and splits, each addressed by row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from fedprompt.data.images import Images, ImageSource
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError, did_you_mean


@dataclass(frozen=True, eq=False)
class Examples:
    """Pictures with targets over one candidate list: what a client trains on and what a score is computed from."""

    images: Images
    targets: Tensor  # [B] int64 positions in space.names, or [B, C] int8 in {1, 0, -1 unknown}
    space: LabelSpace

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Dataset:
    """All pictures of one data set. `base` are the class ids seen in training, `new` those held out (may be empty).

    `templates` are sentences for domains that have their own, `tests` the candidates of further test splits (all base
    classes if not named), `notes` what its reader found odd, for whoever starts a run, and `left_out` rows that are in
    no split any more.
    Raises UserError if the columns differ in length or a class or an unseen domain does not exist.
    """

    name: str
    source: ImageSource
    space: LabelSpace
    targets: Tensor  # [N] int64, or [N, C] int8 in {1, 0, -1}
    splits: Sequence[str]  # [N] "train", "test", ... one word a row
    domains: Sequence[str]  # [N] one word a row; all "" where the data set has no domains
    base: tuple[int, ...]
    new: tuple[int, ...] = ()
    unseen_domains: tuple[str, ...] = ()  # domains that no client may train on
    templates: Mapping[str, str] = field(default_factory=dict)  # domain -> template
    tests: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # split -> class ids
    notes: tuple[str, ...] = ()
    left_out: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        lengths = {"targets": len(self.targets), "splits": len(self.splits), "domains": len(self.domains)}
        for column, length in lengths.items():
            if length != len(self.source):
                raise UserError(
                    f"The data set {self.name!r} has {len(self.source)} pictures but {length} {column}; give each one."
                )
        labels = (*self.base, *self.new)
        if not self.base or len(set(labels)) < len(labels) or not set(labels) <= set(range(len(self.space))):
            raise UserError(
                f"The data set {self.name!r} needs base and new classes that are distinct ids from 0 to "
                f"{len(self.space) - 1}, and at least one base class; it has base {self.base} and new {self.new}."
            )
        for domain in self.unseen_domains:
            if domain not in self._domains[0]:
                known = ", ".join(map(repr, self._domains[0]))
                hint = did_you_mean(domain, self._domains[0])
                raise UserError(f"The data set {self.name!r} has no domain {domain!r}{hint} (domains: {known}).")

    @cached_property
    def _splits(self) -> tuple[Mapping[str, int], Tensor]:
        return _encode(self.splits)

    @cached_property
    def _domains(self) -> tuple[Mapping[str, int], Tensor]:
        return _encode(self.domains)

    @property
    def seen_domains(self) -> tuple[str, ...]:
        """The domains clients may train on, in order of appearance; `("",)` where the data set has no domains."""
        return tuple(domain for domain in self._domains[0] if domain not in self.unseen_domains)

    def rows(self, *, split: str, classes: Sequence[int] | None = None, domains: Sequence[str] | None = None) -> Tensor:
        """Row numbers, ascending, of a split, restricted to domains and (single label only) to classes."""
        keep = _among(self._splits, (split,))
        keep[list(self.left_out)] = False
        if domains is not None:
            keep &= _among(self._domains, domains)
        if classes is not None:
            assert self.space.kind == "single", "rows of a multi-label data set have no one class"
            keep &= torch.isin(self.targets, torch.tensor(list(classes), dtype=torch.int64))
        return keep.nonzero().flatten()

    @property
    def parts(self) -> tuple[Dataset, ...]:
        """The data sets it is made of: itself alone, unless several were joined."""
        return (self,)

    def part_of(self, row: int) -> int:
        """Which of the parts a row belongs to."""
        return 0

    def reworded(self, reword: Callable[[LabelSpace], LabelSpace]) -> Self:
        """The same pictures in other words; of several data sets, each in its own."""
        return replace(self, space=reword(self.space))

    def without(self, rows: Collection[int]) -> Self:
        """The data set without these rows in any split; all others keep their numbers, and so do their features."""
        return replace(self, left_out=self.left_out | frozenset(rows)) if rows else self

    @property
    def trains(self) -> bool:
        """Whether it has pictures to train on; one that has none is for testing alone."""
        return bool(len(self.rows(split="train", domains=self.seen_domains)))

    def examples(self, rows: Tensor, classes: Sequence[int] | None = None, *, domain: str = "") -> Examples:
        """The rows over the sub-space of `classes` (all classes if None), targets re-indexed to that candidate list.

        Single label: every row's class must be among `classes`. Multi label: target columns are selected. The space
        has the template of `domain`, if that domain has one of its own.
        """
        images = Images(self.source, tuple(rows.tolist()))
        space = replace(self.space, template=self.templates.get(domain, self.space.template))
        if classes is None:
            return Examples(images, self.targets[rows], space)
        order = torch.tensor(list(classes), dtype=torch.int64)
        if self.space.kind == "multi":
            return Examples(images, self.targets[rows][:, order], space.take(classes))
        position = torch.full((len(self.space),), -1, dtype=torch.int64)
        position[order] = torch.arange(len(order))
        targets = position[self.targets[rows]]
        assert bool((targets >= 0).all()), "a row's class is not among the candidates"
        return Examples(images, targets, space.take(classes))


def multi_hot(labels: Sequence[Collection[int]], classes: int) -> Tensor:
    """[N, C] int8: 1 where a row's labels name the class, else 0."""
    targets = torch.zeros(len(labels), classes, dtype=torch.int8)
    rows = [row for row, own in enumerate(labels) for _ in own]
    targets[rows, [label for own in labels for label in own]] = 1
    return targets


def _encode(words: Sequence[str]) -> tuple[Mapping[str, int], Tensor]:
    """The distinct words in order of appearance, each with its code, and [N] codes: words are compared once."""
    codes = {word: code for code, word in enumerate(dict.fromkeys(words))}
    return codes, torch.tensor([codes[word] for word in words], dtype=torch.int64)


def _among(column: tuple[Mapping[str, int], Tensor], words: Iterable[str]) -> Tensor:
    codes, rows = column
    wanted = torch.zeros(len(codes), dtype=torch.bool)
    wanted[[codes[word] for word in words if word in codes]] = True
    return wanted[rows]
