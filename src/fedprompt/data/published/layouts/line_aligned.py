"""NUS-WIDE (Chua et al., 2009): a list of images, and one file of 0/1 per concept, aligned by line number alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedprompt.data.folder import DatasetFolder
from fedprompt.data.published.listing import Listing
from fedprompt.errors import UserError

SPLITS = ("train", "test")


def read(
    folder: DatasetFolder,
    *,
    concepts: Sequence[str],
    lists: Sequence[str],
    labels: Sequence[str],
    images: Sequence[str],
    min_labels: int = 0,
) -> Listing:
    """Read both splits; each option names the places where copies of the data set keep that part.

    `lists` and `labels` have {split} (Train, Test), `labels` also {concept}. `min_labels` leaves out images of the
    training split with fewer labels.
    """
    names = tuple(folder.lines(folder.find(concepts, "The list of concepts")))
    place = folder.find(images, "The folder of images")
    files: list[str] = []
    splits: list[str] = []
    targets: list[Tensor] = []
    for split in SPLITS:
        listed = folder.find((path.format(split=split.title()) for path in lists), f"The list of {split} images")
        own = [line.strip().replace("\\", "/") for line in folder.lines(listed)]
        table = torch.stack([_column(folder, labels, split, name, len(own)) for name in names], dim=1)  # [N, C]
        # differs: the release keeps images of five labels or more in training and in testing
        keep = table.sum(dim=1) >= (min_labels if split == "train" else 0)
        files += [f"{place}/{file}" for file, kept in zip(own, keep.tolist(), strict=True) if kept]
        splits += [split] * int(keep.sum())
        targets.append(table[keep])
    return Listing(names, tuple(files), torch.cat(targets), tuple(splits), ("",) * len(files), folder.dependencies)


def _column(folder: DatasetFolder, labels: Sequence[str], split: str, concept: str, length: int) -> Tensor:
    file = folder.find(
        (path.format(split=split.title(), concept=concept) for path in labels), f"The labels of {concept!r}"
    )
    lines = [line.strip() for line in folder.lines(file)]
    if len(lines) != length or not set(lines) <= {"0", "1"}:
        raise UserError(
            f"{folder.path / file} has {len(lines)} lines of 0 or 1 for a list of {length} images; they belong "
            "together by line number, so one of the two was changed: download both again."
        )
    return torch.tensor([line == "1" for line in lines], dtype=torch.int8)
