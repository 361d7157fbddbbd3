"""Data sets as immutable values: images, labels, domains and splits, one row per image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from typing import Any, Self

import torch
from torch import Tensor

from fedprompt.data.images import Images, ImageSource
from fedprompt.data.intake.report import PARTS, Intake, IntakeReport, counted, html_table
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError, did_you_mean, plural
from fedprompt.text_files import json_text


@dataclass(frozen=True, eq=False)
class Examples:
    """B images with targets over C candidate classes: what a client trains on and what is evaluated.

    `dataset.examples(rows, classes)` makes them. `targets` are int64 [B], positions in `space.names`; with several
    labels per image int8 [B, C]: 1 present, 0 absent, -1 unknown.
    """

    images: Images
    targets: Tensor  # [B] int64 positions in space.names, or [B, C] int8 in {1, 0, -1 unknown}
    space: LabelSpace

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        classes = plural(len(self.space), "candidate class")
        return f"Examples: {plural(len(self), 'image')} over {classes}"


@dataclass(frozen=True, eq=False)
class Dataset:
    """All images of one data set. `base` are the class ids seen in training, `new` those held out (may be empty).

    `templates` are prompt templates of domains that have their own, `test_candidates` the candidate classes of further
    test splits (all base classes if a split has none), `intake` what the source says about the files it has read,
    `excluded` rows that belong to no split any more, with the reason in words ("unreadable"), and `groups` numbers that
    are equal for rows of the same thing, which intervals do not take for independent images.
    Raises UserError if the columns differ in length or a class or an unseen domain does not exist.
    """

    name: str
    source: ImageSource
    space: LabelSpace
    targets: Tensor  # [N] int64, or [N, C] int8 in {1, 0, -1}
    splits: Sequence[str]  # [N] "train", "val", "test", ... per row
    domains: Sequence[str]  # [N] domain per row; all "" where the data set has no domains
    base: tuple[int, ...]
    new: tuple[int, ...] = ()
    unseen_domains: tuple[str, ...] = ()  # domains that no client may train on
    templates: Mapping[str, str] = field(default_factory=dict)  # domain -> template
    test_candidates: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # split -> class ids
    intake: Intake = Intake()  # noqa: RUF009  (frozen)
    excluded: Mapping[int, str] = field(default_factory=dict)
    groups: Sequence[int] = ()  # [N] equal for rows that show the same; empty if every row is taken by itself
    table: Mapping[str, Any] = field(default_factory=dict)  # a recipe's [data] that reads it, if it is known

    def __post_init__(self) -> None:
        lengths = {"targets": len(self.targets), "splits": len(self.splits), "domains": len(self.domains)}
        lengths |= {"groups": len(self.groups)} if self.groups else {}
        for column, length in lengths.items():
            if length != len(self.source):
                raise UserError(
                    f"The data set {self.name!r} has {len(self.source)} images but {length} {column}; "
                    "every image needs one."
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

    def __repr__(self) -> str:
        return f"{self.name}: {self.report.sentence()}"

    def __len__(self) -> int:
        """Images in a split: all of the source, without those that are excluded."""
        return len(self.splits) - len(self.excluded)

    def _repr_html_(self) -> str:
        return html_table(self.report.table())

    @property
    def report(self) -> IntakeReport:
        """What was read, in numbers and sentences, without the images that were excluded since."""
        kept = [row for row in range(len(self.splits)) if row not in self.excluded]
        domains = counted(filter(None, (self.domains[row] for row in kept)))
        origins = {what: origin for what, origin in self.intake.origins.items() if what != "domains" or domains}
        intake = replace(
            self.intake, left_out={**self.intake.left_out, **counted(self.excluded.values())}, origins=origins
        )
        return IntakeReport(
            images=len(kept),
            classes=self.space.names,
            splits=counted(self.splits[row] for row in kept),
            domains=domains,
            **vars(intake),
        )

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
        """[M] ascending row numbers of a split, restricted to domains and to classes.

        `classes` are numbers, positions in `space.names`; without images of a split of a usual name (train, val, test)
        there are no rows. With several labels per image no row is of one class: all classes of `base`, with or without
        others, leave every row. Raises UserError for any other split, a domain or a class that is not there, and there
        for fewer classes.
        """
        self._require_known("split", (split,), (*self._splits[0], *PARTS))
        if len(self):  # what domains there are is not known of images that stay at their sites
            self._require_known("domain", domains or (), (*self._domains[0], ""))
        self._require_known("class", () if classes is None else classes, range(len(self.space)))
        keep = _is_among(self._splits, (split,))
        keep[list(self.excluded)] = False
        if domains is not None:
            keep &= _is_among(self._domains, domains)
        if classes is not None and self.space.kind == "multi":
            self._require_all_base(classes)
        elif classes is not None:
            keep &= torch.isin(self.targets, torch.tensor(list(classes), dtype=torch.int64))
        return keep.nonzero().flatten()

    def _require_all_base(self, classes: Sequence[int]) -> None:
        """UserError for classes that would choose among images which have several."""
        if lacking := [label for label in self.base if label not in set(classes)]:
            raise UserError(
                f"The images of {self.name!r} have several labels each, so that no row is of one class; give "
                f"classes=data.base or leave `classes` out (the base class {self.space.names[lacking[0]]!r} is missing "
                "here), and choose the candidates by data.examples(rows, classes)."
            )

    def _require_known(self, what: str, given: Iterable[object], known: Collection[object]) -> None:
        wrong = next((one for one in given if not isinstance(one, Hashable) or one not in known), None)
        if wrong is None:
            return
        if what == "class":
            names = f"give the numbers of classes, from 0 to {len(self.space) - 1}, as in data.base"
            raise UserError(f"The data set {self.name!r} has no class {wrong!r}; {names}.")
        words = [str(one) for one in dict.fromkeys(known) if one != ""]
        hint = did_you_mean(str(wrong), words)
        raise UserError(f"The data set {self.name!r} has no {what} {wrong!r}{hint} ({', '.join(words) or 'none'}).")

    @property
    def parts(self) -> tuple[Dataset, ...]:
        """The data sets this one was joined from; itself alone otherwise."""
        return (self,)

    def part_of(self, row: int) -> int:
        """Which of the parts a row belongs to."""
        return 0

    def base_of(self, row: int) -> tuple[int, ...]:
        """The base classes of the part that a row belongs to."""
        return self.base

    def map_label_space(self, change: Callable[[LabelSpace], LabelSpace]) -> Self:
        """The same images with another label space, e.g. with other descriptions; of joined data sets, part by part."""
        return replace(self, space=change(self.space))

    def without(self, rows: Collection[int], *, reason: str = "by `without`") -> Self:
        """The data set with these rows in no split; all others keep their numbers, and so their cached features.

        `reason` is what the data set's sentence says of them: "2 left out (2 unreadable)". Raises UserError for a row
        that is not there.
        """
        wrong = [row for row in rows if not (isinstance(row, Integral) and 0 <= row < len(self.targets))]
        if wrong:
            raise UserError(
                f"The data set has no row {wrong[0]!r}; rows are whole numbers from 0 to {len(self.targets) - 1}."
            )
        excluded = {**dict.fromkeys(map(int, rows), reason), **self.excluded}
        return replace(self, excluded=excluded) if len(rows) else self

    @property
    def has_training_images(self) -> bool:
        """Whether there is anything to train on; a data set without is used for testing only."""
        return bool(len(self.rows(split="train", domains=self.seen_domains)))

    def examples(self, rows: Tensor, classes: Sequence[int] | None = None, *, domain: str = "") -> Examples:
        """The rows over the sub-space of `classes` (all classes if None), targets re-indexed to these candidates.

        Single label: every row's class must be among `classes`. Multi-label: target columns are selected. The space
        has the template of `domain`, if that domain has one of its own.
        """
        images = Images(self.source, tuple(rows.tolist()))
        space = replace(self.space, template=self.templates.get(domain, self.space.template))
        if classes is None:
            return Examples(images, self.targets[rows], space)
        order = torch.tensor(list(classes), dtype=torch.int64)
        if wrong := [label for label in order.tolist() if not 0 <= label < len(self.space)]:
            raise UserError(f"There is no class {wrong[0]}; classes are numbers from 0 to {len(self.space) - 1}.")
        if self.space.kind == "multi":
            return Examples(images, self.targets[rows][:, order], space.take(classes))
        position = torch.full((len(self.space),), -1, dtype=torch.int64)
        position[order] = torch.arange(len(order))
        targets = position[self.targets[rows]]
        if bool((targets < 0).any()):
            missed = int(rows[int((targets < 0).nonzero()[0])])
            name = self.space.names[int(self.targets[missed])]
            raise UserError(
                f"Row {missed} has the class {name!r}, which is no candidate; add it, or leave out the row."
            )
        return Examples(images, targets, space.take(classes))


def multi_hot(labels: Sequence[Collection[int]], classes: int) -> Tensor:
    """[N, C] int8: 1 where a row's labels include the class, else 0."""
    targets = torch.zeros(len(labels), classes, dtype=torch.int8)
    rows = [row for row, own in enumerate(labels) for _ in own]
    targets[rows, [label for own in labels for label in own]] = 1
    return targets


def fingerprints(dataset: Dataset) -> Mapping[str, str]:
    """A hash of each column that results depend on besides the images: labels, split, domains and classes."""
    classes = (dataset.space.names, dataset.base, dataset.new, sorted(dataset.test_candidates.items()))
    return {
        "labels": _digest(dataset.targets.contiguous().numpy().tobytes()),
        "split": _digest("\0".join(dataset.splits).encode()),
        "domains": _digest("\0".join((*dataset.domains, *sorted(dataset.unseen_domains))).encode()),
        "classes": _digest(json_text(classes).encode()),
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _encode(column: Sequence[str]) -> tuple[Mapping[str, int], Tensor]:
    """Dictionary encoding: value -> code in order of appearance, and [N] codes, so that strings are compared once."""
    codes = {value: code for code, value in enumerate(dict.fromkeys(column))}
    return codes, torch.tensor([codes[value] for value in column], dtype=torch.int64)


def _is_among(column: tuple[Mapping[str, int], Tensor], values: Iterable[str]) -> Tensor:
    codes, rows = column
    wanted = torch.zeros(len(codes), dtype=torch.bool)
    wanted[[codes[value] for value in values if value in codes]] = True
    return wanted[rows]
