"""PASCAL VOC (Everingham et al., 2007): a list of ids a split and, for every class, a list of who shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from fedprompt.data.folder import Folder, Listing
from fedprompt.errors import UserError

Difficult = Literal["ignore", "negative", "positive"]


def read(
    folder: Folder,
    *,
    classes: Sequence[str],
    train: Sequence[str],
    test: Sequence[str],
    train_list: str = "trainval",
    difficult: Difficult = "ignore",
) -> Listing:
    """Read `ImageSets/Main` of the training and the testing tree, which may be one.

    A label 0 marks a class that shows only as "difficult": unknown if ignored, else absent (FedMPT) or present.
    `train_list` "train" is the half that FedMPT's release really trains on.
    """
    # differs: the release goes through trainval but reads labels of train, which drops half of the pictures
    value = {"1": 1, "-1": 0, "0": {"ignore": -1, "negative": 0, "positive": 1}[difficult]}
    files: list[str] = []
    splits: list[str] = []
    targets: list[list[int]] = []
    for word, choices, phase in (("train", train, train_list), ("test", test, "test")):
        tree = folder.find((f"{choice}/ImageSets/Main/{phase}.txt" for choice in choices), f"VOC's list of {phase}")
        place = tree.removesuffix(f"/ImageSets/Main/{phase}.txt")
        ids = [line.split()[0] for line in folder.lines(tree)]
        columns = [_column(folder, f"{place}/ImageSets/Main/{name}_{phase}.txt", ids, value) for name in classes]
        files += [f"{place}/JPEGImages/{key}.jpg" for key in ids]
        splits += [word] * len(ids)
        targets += [list(row) for row in zip(*columns, strict=True)]
    marks = torch.tensor(targets, dtype=torch.int8)
    return Listing(tuple(classes), tuple(files), marks, tuple(splits), ("",) * len(files), folder.stamps)


def _column(folder: Folder, file: str, ids: Sequence[str], value: dict[str, int]) -> list[int]:
    # Two spaces stand before a value that is not negative.
    pairs = [line.split() for line in folder.lines(file)]
    if [pair[0] for pair in pairs] != list(ids):
        raise UserError(f"{folder.path / file} lists other pictures than its split; it belongs to another one.")
    if wrong := next((pair for pair in pairs if pair[-1] not in value), None):
        raise UserError(f"{folder.path / file} has the line {' '.join(wrong)!r}; values are 1, -1 and 0.")
    return [value[pair[-1]] for pair in pairs]
