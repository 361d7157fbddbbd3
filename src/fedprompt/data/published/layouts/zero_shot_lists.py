"""Lists for zero-shot multi-label recognition (Tan et al., 2025, RAM): one JSON of images and classes per class set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from fedprompt.data.dataset import multi_hot
from fedprompt.data.folder import DatasetFolder
from fedprompt.data.published.listing import Listing
from fedprompt.errors import UserError, plural


def read(folder: DatasetFolder, *, lists: Mapping[str, Sequence[str]], images: Sequence[str]) -> Listing:
    """Read one list per split; the first is for training and its classes are seen, all others are candidates of tests.

    A list has `classes` and `images`, pairs of a path on its authors' disk, of which the last part counts, and names
    that may repeat. Classes are those of the lists in their order; a name that is no class of its list is left out.
    """
    tables = {split: _table(folder, folder.find(files, f"The list of {split}")) for split, files in lists.items()}
    names = tuple(dict.fromkeys(str(name) for table in tables.values() for name in table["classes"]))
    label = {name: number for number, name in enumerate(names)}
    where = _places(folder, images)
    files: list[str] = []
    splits: list[str] = []
    labels: list[list[int]] = []
    missing = 0
    for split, table in tables.items():
        own = set(map(str, table["classes"]))
        for path, present in cast(Sequence[tuple[str, Sequence[str]]], table["images"]):
            file = where.get(path.replace("\\", "/").rpartition("/")[2])
            if file is None:
                missing += 1
                continue
            files.append(file)
            splits.append(split)
            labels.append([label[name] for name in present if name in own])
    if not files:
        raise UserError(f"None of the listed images is in {folder.path}; look at the expected tree.")
    first, *others = tables
    candidates = {
        split: tuple(label[str(name)] for name in dict.fromkeys(table["classes"])) for split, table in tables.items()
    }
    return Listing(
        names=names,
        files=tuple(files),
        targets=multi_hot(labels, len(names)),
        splits=tuple(splits),
        domains=("",) * len(files),
        dependencies=folder.dependencies,
        missing_note=f"Left out, as they do not exist: {plural(missing, 'listed image')}." if missing else "",
        files_exist=True,
        test_candidates={split: candidates[split] for split in others},
        base=candidates[first],
    )


def _table(folder: DatasetFolder, file: str) -> Mapping[str, Sequence[object]]:
    table = folder.json(file)
    if not isinstance(table, dict) or not {"images", "classes"} <= table.keys():
        raise UserError(f"{folder.path / file} should be an object with images and classes; download it again.")
    return cast(Mapping[str, Sequence[object]], table)


def _places(folder: DatasetFolder, images: Sequence[str]) -> Mapping[str, str]:
    """File name -> path, of the images in the folders and in their own folders."""
    tops = [top for top in images if folder.has(top)]
    if not tops:
        raise UserError(f"None of the folders of images {', '.join(images)} is in {folder.path}.")
    places = [place for top in tops for place in (top, *(f"{top}/{name}" for name in folder.folders(top)))]
    return {file.rpartition("/")[2]: file for own in folder.images_of(places) for file in own}
