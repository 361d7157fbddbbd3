"""What a layout's reader returns: the image files of a published data set with labels, splits and domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedprompt.data.folder import DatasetFolder
from fedprompt.errors import UserError, plural

MAX_NAMED = 3  # missing files that a message names


@dataclass(frozen=True, eq=False)
class Listing:
    """Class names in label order and, per image, its file, target, split and domain.

    `dependencies` are the files and folders it was read from; when one of them changes, the listing is out of date.
    """

    names: tuple[str, ...]
    files: Sequence[str]  # below the data set's folder, "/" between folders
    targets: Tensor  # [N] int64, or [N, C] int8 in {1, 0, -1 unknown}
    splits: Sequence[str]
    domains: Sequence[str]
    dependencies: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what is unusual, in sentences
    missing_note: str = ""  # a sentence about listed images that do not exist and were left out
    files_exist: bool = False  # the files were found in their folders, not read from a list
    test_candidates: Mapping[str, tuple[int, ...]] | None = None  # further test split -> candidate classes
    base: tuple[int, ...] | None = None  # base classes, where the data set itself defines them

    @property
    def remarks(self) -> tuple[str, ...]:
        """The notes, and the one about missing images if there is one."""
        return (*self.notes, self.missing_note) if self.missing_note else self.notes

    def images_per_class(self) -> Tensor:
        """[C] int64."""
        if self.targets.ndim == 1:
            return torch.bincount(self.targets, minlength=len(self.names))
        return (self.targets == 1).sum(dim=0)

    def existing(self, folder: DatasetFolder, *, skip: bool) -> Listing:
        """The listing if all files exist, or, with `skip`, without those that do not; UserError otherwise."""
        missing = folder.missing(self.files)
        if not missing:
            return replace(self, dependencies=folder.dependencies)
        some = ", ".join(self.files[row] for row in sorted(missing)[:MAX_NAMED])
        if not skip:
            raise UserError(
                f"{len(missing)} of {len(self.files)} listed images are not in {folder.path}, for example {some}; "
                "unpack the archive again, or set missing = 'skip' to go on without them."
            )
        kept = [row for row in range(len(self.files)) if row not in missing]
        return replace(
            self,
            files=tuple(self.files[row] for row in kept),
            splits=tuple(self.splits[row] for row in kept),
            domains=tuple(self.domains[row] for row in kept),
            targets=self.targets[kept],
            missing_note=f"Left out, as they do not exist: {plural(len(missing), 'listed image')}, for example {some}.",
            dependencies=folder.dependencies,
        )
