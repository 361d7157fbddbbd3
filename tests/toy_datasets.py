"""Small data sets without files, for tests of partition rules and annotation."""

from __future__ import annotations

import torch
from PIL import Image

from fedprompt.data.dataset import Dataset
from fedprompt.data.labels import LabelSpace
from fedprompt.seeding import stream


class Blank:
    """A source of that many grey images."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.fingerprint = f"blank-{length}"

    def __len__(self) -> int:
        return self.length

    def open(self, row: int) -> Image.Image:
        return Image.new("RGB", (8, 8), (row % 256,) * 3)

    def describe(self, row: int) -> str:
        return f"row {row}"


def single_label(
    classes: int, *, each: int = 3, domains: tuple[str, ...] = ("",), new: int = 0, unseen: tuple[str, ...] = ()
) -> Dataset:
    """`each` training images and one test image of every class in every domain."""
    rows = [
        (label, domain, split)
        for label in range(classes + new)
        for domain in domains
        for split in ["train"] * each + ["test"]
    ]
    return Dataset(
        name="toy",
        source=Blank(len(rows)),
        space=LabelSpace(tuple(f"class {label}" for label in range(classes + new))),
        targets=torch.tensor([label for label, _, _ in rows]),
        splits=tuple(split for _, _, split in rows),
        domains=tuple(domain for _, domain, _ in rows),
        base=tuple(range(classes)),
        new=tuple(range(classes, classes + new)),
        unseen_domains=unseen,
    )


def multi_label(
    seed: int = 0,
    *,
    classes: int = 5,
    rows: int = 60,
    new: int = 0,
    domains: tuple[str, ...] = ("",),
    unseen: tuple[str, ...] = (),
) -> Dataset:
    """Two groups of co-occurring labels, some images without any, some labels unknown; a third is for testing."""
    draws = torch.rand(rows, classes + new, generator=stream(seed, "labels"))
    group = torch.arange(rows)[:, None] % 2
    targets = (draws < torch.where(torch.arange(classes + new) // 3 == group, 0.6, 0.05)).to(torch.int8)
    targets[draws > 0.97] = -1
    return Dataset(
        name="toy",
        source=Blank(rows),
        space=LabelSpace(tuple(f"class {label}" for label in range(classes + new)), kind="multi"),
        targets=targets,
        splits=tuple("test" if row % 3 == 2 else "train" for row in range(rows)),
        domains=tuple(domains[row % len(domains)] for row in range(rows)),
        base=tuple(range(classes)),
        new=tuple(range(classes, classes + new)),
        unseen_domains=unseen,
    )
