"""A data set is a value: pictures, words, labels, domains and splits, each addressed by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprompt.data.images import Images, ImageSource
from fedprompt.data.labels import LabelSpace


@dataclass(frozen=True)
class Examples:
    """Pictures with targets over one candidate list: what a client trains on and what a score is computed from."""

    images: Images
    targets: Tensor  # [B] int64 positions in space.names, or [B, C] int8 in {1, 0, -1 unknown}
    space: LabelSpace

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Dataset:
    """All pictures of one data set. `base` are the class ids seen in training, `new` the held-out ones (may be empty)."""

    name: str
    source: ImageSource
    space: LabelSpace
    targets: Tensor  # [N] int64, or [N, C] int8 in {1, 0, -1}
    splits: tuple[str, ...]  # [N] "train", "test", ... one word a row
    domains: tuple[str, ...]  # [N] one word a row; all "" where the data set has no domains
    base: tuple[int, ...]
    new: tuple[int, ...] = ()
    unseen_domains: tuple[str, ...] = ()  # domains that no client may train on

    def rows(self, *, split: str, classes: Sequence[int] | None = None, domains: Sequence[str] | None = None) -> Tensor:
        """Row numbers, ascending, of a split, restricted to classes (single label) and domains."""
        keep = torch.tensor([word == split for word in self.splits], dtype=torch.bool)
        if domains is not None:
            wanted = set(domains)
            keep &= torch.tensor([domain in wanted for domain in self.domains], dtype=torch.bool)
        if classes is not None:
            keep &= torch.isin(self.targets, torch.tensor(list(classes), dtype=torch.int64))
        return keep.nonzero().flatten()

    def examples(self, rows: Tensor, classes: Sequence[int] | None = None) -> Examples:
        """The rows over the sub-space of `classes` (all classes if None), targets re-indexed to that candidate list.

        Single label: every row's class must be among `classes`. Multi label: target columns are selected.
        """
        images = Images(self.source, tuple(rows.tolist()))
        if classes is None:
            return Examples(images, self.targets[rows], self.space)
        order = torch.tensor(list(classes), dtype=torch.int64)
        if self.space.kind == "multi":
            return Examples(images, self.targets[rows][:, order], self.space.take(classes))
        position = torch.full((len(self.space),), -1, dtype=torch.int64)
        position[order] = torch.arange(len(order))
        targets = position[self.targets[rows]]
        assert bool((targets >= 0).all()), "a row's class is not among the candidates"
        return Examples(images, targets, self.space.take(classes))
