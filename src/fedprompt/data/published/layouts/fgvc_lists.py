"""FGVC-Aircraft (Maji et al., 2013): a list of variants, and per split a list of "<7 digits> <variant>" lines."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedprompt.data.folder import DatasetFolder
from fedprompt.data.published.listing import Listing
from fedprompt.errors import UserError

SPLITS = ("train", "val", "test")


def read(folder: DatasetFolder, *, images: Sequence[str] = ("images",), level: str = "variant") -> Listing:
    """Read the three lists; `level` is variant (100 classes), family (70) or manufacturer (30), each its own task."""
    place = folder.find(images, "The folder of images")
    names = tuple(folder.lines({"family": "families"}.get(level, f"{level}s") + ".txt"))
    label = {name: number for number, name in enumerate(names)}
    rows = []
    for split in SPLITS:
        for line in folder.lines(f"images_{level}_{split}.txt"):
            key, _, name = line.partition(" ")  # names have spaces and slashes of their own
            if name not in label:
                raise UserError(
                    f"images_{level}_{split}.txt in {folder.path} names {name!r}, which no list of classes has."
                )
            rows.append((f"{place}/{key}.jpg", label[name], split))
    return Listing(
        names=names,
        files=tuple(file for file, _, _ in rows),
        targets=torch.tensor([number for _, number, _ in rows]),
        splits=tuple(split for _, _, split in rows),
        domains=("",) * len(rows),
        dependencies=folder.dependencies,
    )
