"""One row per image and one 0/1 column per class, as in remote sensing data sets (MultiScene, MLRSNet)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from fedprompt.data.folder import DatasetFolder
from fedprompt.data.intake.tables import csv_records
from fedprompt.data.published.listing import Listing
from fedprompt.data.splits import draw_stratified_splits
from fedprompt.errors import UserError

HALVES = 2  # "halves": the first half of the tables, in bytewise order, is for training


def read(  # noqa: PLR0913  (where two data sets keep what, and how ours is split)
    folder: DatasetFolder,
    *,
    images: Sequence[str],
    tables: Mapping[str, str] | None = None,
    by_category: Sequence[str] = (),
    partition: Literal["drawn", "halves"] = "drawn",
    fractions: tuple[float, float] = (0.4, 0.1),
    min_labels: int = 0,
    seed: int = 1,
) -> Listing:
    """Read one CSV per split (`tables`), or one CSV per category (`by_category`: the folder of those CSVs).

    Without official splits, each category is split by `fractions` (the MLRSNet paper's 40/10/50) from the seed;
    "halves" trains on the first half of the categories and tests on the second, as FedMPT meant to.
    `min_labels` leaves out images of the training split with fewer labels.
    """
    place = folder.find(images, "The folder of images")
    if tables is not None:
        parts = [(file, split, "") for split, file in tables.items()]
    else:
        where = folder.find(by_category, "The folder of label files")
        found = sorted(path.stem for path in (folder.path / where).glob("*.csv"))
        parts = [(f"{where}/{name}.csv", _half(row, len(found)), name) for row, name in enumerate(found)]
    names: tuple[str, ...] = ()
    files: list[str] = []
    splits: list[str] = []
    groups: list[str] = []
    targets: list[Tensor] = []
    for file, split, category in parts:
        header, own, table = _table(folder, file)
        if names and header != names:
            raise UserError(
                f"{folder.path / file} has other classes than the tables before it; one is from another version."
            )
        names = header
        files += [_path(folder, place, category, name) for name in own]
        splits += [split] * len(own)
        groups += [category] * len(own)
        targets.append(table)
    joined = torch.cat(targets)
    if tables is None and partition == "drawn":
        # differs: the release tests MLRSNet on its training half
        splits = draw_stratified_splits(files, groups, seed=seed, fractions=fractions)
    keep = [
        split != "train" or enough for split, enough in zip(splits, (joined.sum(1) >= min_labels).tolist(), strict=True)
    ]
    rows = [row for row, kept in enumerate(keep) if kept]
    return Listing(
        names,
        tuple(files[row] for row in rows),
        joined[rows],
        tuple(splits[row] for row in rows),
        ("",) * len(rows),
        folder.dependencies,
    )


def _half(row: int, count: int) -> str:
    return "train" if HALVES * row < count else "test"


def _path(folder: DatasetFolder, place: str, category: str, name: str) -> str:
    parts = (place, category, name if "." in name else f"{name}.jpg")
    return "/".join(part for part in parts if part)


def _table(folder: DatasetFolder, file: str) -> tuple[tuple[str, ...], list[str], Tensor]:
    rows = [cells for _, cells in csv_records(folder.path / file, folder.text(file), ",")]
    if (
        not rows
        or any(len(row) != len(rows[0]) for row in rows)
        or not set().union(*(row[1:] for row in rows[1:]))
        <= {
            "0",
            "1",
        }
    ):
        raise UserError(f"{folder.path / file} is not a table of images and 0/1 columns; download it again.")
    values = torch.tensor([[int(cell) for cell in row[1:]] for row in rows[1:]], dtype=torch.int8)
    return tuple(rows[0][1:]), [row[0] for row in rows[1:]], values.reshape(len(rows) - 1, len(rows[0]) - 1)
