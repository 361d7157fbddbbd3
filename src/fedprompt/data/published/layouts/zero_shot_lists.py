"""Lists of pictures and labels for zero-shot recognition of many labels (Tan et al., 2025, RAM): JSON, by class set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from fedprompt.data.dataset import multi_hot
from fedprompt.data.published.listing import Folder, Listing
from fedprompt.errors import UserError


def read(folder: Folder, *, lists: Mapping[str, Sequence[str]], images: Sequence[str]) -> Listing:
    """Read one list a split; the first is for training and its classes are seen, all others are candidates of tests.

    A list has `classes` and `images`, pairs of a path on its authors' disk, of which the last part counts, and names
    that may repeat. Classes are those of the lists in their order; a name that is no class of its list is left out.
    """
    tables = {word: _table(folder, folder.find(files, f"The list of {word}")) for word, files in lists.items()}
    names = tuple(dict.fromkeys(str(name) for table in tables.values() for name in table["classes"]))
    label = {name: number for number, name in enumerate(names)}
    where = _places(folder, images)
    files: list[str] = []
    splits: list[str] = []
    labels: list[list[int]] = []
    lost = 0
    for word, table in tables.items():
        own = set(map(str, table["classes"]))
        for path, shown in cast(Sequence[tuple[str, Sequence[str]]], table["images"]):
            file = where.get(path.replace("\\", "/").rpartition("/")[2])
            if file is None:
                lost += 1
                continue
            files.append(file)
            splits.append(word)
            labels.append([label[name] for name in shown if name in own])
    if not files:
        raise UserError(f"None of the listed pictures is in {folder.path}; look at the expected tree.")
    first, *others = tables
    candidates = {
        word: tuple(label[str(name)] for name in dict.fromkeys(table["classes"])) for word, table in tables.items()
    }
    return Listing(
        names=names,
        files=tuple(files),
        targets=multi_hot(labels, len(names)),
        splits=tuple(splits),
        domains=("",) * len(files),
        stamps=folder.stamps,
        notes=(f"{lost} listed picture(s) are not there and were left out.",) if lost else (),
        walked=True,
        tests={word: candidates[word] for word in others},
        base=candidates[first],
    )


def _table(folder: Folder, file: str) -> Mapping[str, Sequence[object]]:
    table = folder.json(file)
    if not isinstance(table, dict) or not {"images", "classes"} <= table.keys():
        raise UserError(f"{folder.path / file} should be an object with images and classes; download it again.")
    return cast(Mapping[str, Sequence[object]], table)


def _places(folder: Folder, images: Sequence[str]) -> Mapping[str, str]:
    """File name -> path, of the pictures in the folders and in their own folders."""
    tops = [top for top in images if folder.has(top)]
    if not tops:
        raise UserError(f"None of the folders of pictures {', '.join(images)} is in {folder.path}.")
    places = [place for top in tops for place in (top, *(f"{top}/{name}" for name in folder.folders(top)))]
    return {file.rpartition("/")[2]: file for own in folder.pictures_of(places) for file in own}
