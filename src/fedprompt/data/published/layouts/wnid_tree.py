"""ImageNet (Deng et al., 2009) and its test variants: one folder per WordNet id, names in `classnames.txt`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fedprompt.data.folder import DatasetFolder
from fedprompt.data.published.listing import Listing
from fedprompt.errors import UserError


def read(
    folder: DatasetFolder,
    *,
    places: Mapping[str, Sequence[str]],
    classnames: Sequence[str] = ("classnames.txt",),
    numbered: bool = False,
    subset: bool = False,
    distinct: Mapping[str, str] | None = None,
) -> Listing:
    """Read `<place>/<wnid>/*` in the first place of each split that exists.

    Labels are the lines of `classnames.txt`, never the order of folders. `numbered`: folders are called 0, 1, ..., 999
    instead, and 10 comes after 9. `subset`: the folders are some of the ids and their candidates are these alone.
    `distinct` gives a wnid another name than the list does, because two classes of the list have the same name.
    """
    keys, names = read_names(folder, folder.find(classnames, "The list of class names"), distinct or {})
    files: list[str] = []
    labels: list[int] = []
    splits: list[str] = []
    for split, choices in places.items():
        place = folder.find(choices, f"The folder of {split} images")
        found = folder.folders(place)
        label = {str(number): number for number in range(len(keys))} if numbered else keys
        foreign = [name for name in found if name not in label]
        if foreign or not found:
            wrong = f"the folder {foreign[0]!r}, which is no class" if foreign else "no class folders: it is still flat"
            raise UserError(f"{folder.path / place} holds {wrong}; see `fedprompt data info` for the expected tree.")
        for name, own in zip(found, folder.images_of([f"{place}/{name}" for name in found]), strict=True):
            files += own
            labels += [label[name]] * len(own)
            splits += [split] * len(own)
    targets = torch.tensor(labels, dtype=torch.int64)
    if subset:
        # differs: the release scores A and R over a table of 200 classes; here the 200 are those that have a folder
        kept = torch.tensor(sorted(set(labels)))  # ascending: the order of the 1000
        names, targets = tuple(names[number] for number in kept.tolist()), torch.searchsorted(kept, targets)
    return Listing(
        names, tuple(files), targets, tuple(splits), ("",) * len(files), folder.dependencies, files_exist=True
    )


def read_names(folder: DatasetFolder, file: str, distinct: Mapping[str, str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """WordNet id -> label, and names in label order, made distinct by `distinct` where two are the same."""
    lines = [line.partition(" ") for line in folder.lines(file)]
    keys = {key: label for label, (key, _, _) in enumerate(lines)}
    if list(keys) != sorted(keys) or len(keys) < len(lines):
        raise UserError(f"{folder.path / file} is not in the order of the WordNet ids, one line each; get it again.")
    names = [name.strip() for _, _, name in lines]
    for key, label in keys.items():
        # Only where two names are the same: in some copies of the list they are not.
        if key in distinct and names.count(names[label]) > 1:
            names[label] = distinct[key]
    for label, name in enumerate(names):
        if names.index(name) < label:  # a pair without an entry in `distinct`: the WordNet id is appended
            names[label] = f"{name} {lines[label][0]}"
    return keys, tuple(names)
