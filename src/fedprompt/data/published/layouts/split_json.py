"""Published few-shot splits as JSON (Zhou et al., 2022, CoOp): lists of [path, label, class name] per split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import cast

import torch
from pydantic import JsonValue

from fedprompt.data.folder import DatasetFolder
from fedprompt.data.published.layouts.original_lists import ORIGINAL_LISTS, OriginalLists
from fedprompt.data.published.listing import Listing
from fedprompt.data.splits import draw_stratified_splits, draw_validation
from fedprompt.errors import UserError

SPLITS = ("train", "val", "test")
Items = list[tuple[str, int, str]]  # path, label, class name


def read(  # noqa: PLR0913  (what differs between nine data sets)
    folder: DatasetFolder,
    *,
    split: str,
    images: Sequence[str] = (".",),
    original: str,
    options: Mapping[str, JsonValue] | None = None,
    make_split: bool = False,
    seed: int = 1,
) -> Listing:
    """Read the split, or with `make_split` draw one of our own, to which no published figure belongs.

    `original` names the reader of the download's own lists, for a drawn split and to verify the JSON's class order.
    """
    place = folder.find(images, "The folder of images")
    if make_split:
        # differs: CoOp drew its splits without a seed, so they cannot be drawn again; ours follow from seed and paths
        table = draw(ORIGINAL_LISTS[original](folder, place, **(options or {})), seed=seed)
    elif folder.has(split):
        table = items(folder, split)
    else:
        raise UserError(
            f"{folder.path / split} is missing: it defines which images are for training. Get it from CoOp's "
            "DATASETS.md or from the Hub repository zhengli97/prompt_learning_dataset, or set make_split = true for a "
            "split of our own, whose results are not comparable with published ones."
        )
    names = classes(table, f"{folder.path / split}")
    rows = [(part, item) for part in SPLITS for item in table[part]]
    note = (f"The split was drawn here from seed {seed}; no published figure is comparable.",) if make_split else ()
    prefix = "" if place == "." else f"{place}/"
    return Listing(
        names=names,
        files=tuple(prefix + path for _, (path, _, _) in rows),
        targets=torch.tensor([label for _, (_, label, _) in rows]),
        splits=tuple(part for part, _ in rows),
        domains=("",) * len(rows),
        dependencies=folder.dependencies,
        notes=note,
    )


def items(folder: DatasetFolder, name: str) -> dict[str, Items]:
    """The three splits of a file, paths with forward slashes; UserError if it is of another form."""
    table = cast(Mapping[str, Sequence[tuple[str, int, str]]], folder.json(name))
    try:
        return {
            split: [(path.replace("\\", "/"), int(label), str(title)) for path, label, title in table[split]]
            for split in SPLITS
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder.path / name} is not a split: it should hold train, val and test, each a list of "
            f"[path, label, class name] ({error!r})."
        ) from error


def classes(table: Mapping[str, Items], origin: str) -> tuple[str, ...]:
    """Class names in label order over all three splits; UserError unless labels run from 0 and have one name each."""
    found: dict[int, str] = {}
    for _, label, name in chain(*table.values()):
        if found.setdefault(label, name) != name:
            raise UserError(f"{origin} gives the label {label} two names, {found[label]!r} and {name!r}; get it again.")
    if sorted(found) != list(range(len(found))):
        lost = next(label for label in range(len(found)) if label not in found)
        raise UserError(f"{origin} has no image of the label {lost}; labels must run from 0 without a gap.")
    return tuple(found[label] for label in sorted(found))


def draw(lists: OriginalLists, *, seed: int) -> dict[str, Items]:
    """A stratified split in CoOp's proportions: 50/20/30 per class, or the official test split and a fifth for val."""
    files, labels = [path for path, _, _ in lists.images], [label for _, label, _ in lists.images]
    official = [split for _, _, split in lists.images]
    splits = (
        draw_validation(files, labels, official, seed=seed)
        if any(official)
        else draw_stratified_splits(files, labels, seed=seed)
    )
    rows = sorted(zip(splits, labels, files, strict=True))
    return {split: [(file, label, lists.names[label]) for own, label, file in rows if own == split] for split in SPLITS}
