"""Data sets with several domains in DomainBed's and Dassl's layouts, `<domain>/<class>/<image>`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from fedprompt.data.folder import DatasetFolder
from fedprompt.data.published.layouts import split_json
from fedprompt.data.published.layouts.camera_traps import Sighting, read_sightings
from fedprompt.data.published.listing import Listing
from fedprompt.data.splits import FRACTIONS, draw_stratified_splits
from fedprompt.errors import UserError

LISTS = {"train": "train", "crossval": "val", "test": "test"}
# DomainNet's own lists leave out case, "_" and "-" when sorting; FedMVP's files and DomainBed do not.
ORDERS: Mapping[str, Callable[[str], str]] = {
    "bytewise": lambda name: name,
    "official": lambda name: name.lower().replace("_", "").replace("-", ""),
}


@dataclass(frozen=True)
class DomainImage:
    """A file with its domain and class folder; `split` is "" where none is published."""

    file: str
    domain: str
    class_folder: str
    split: str = ""


def read(  # noqa: PLR0913  (five data sets come in three layouts each)
    folder: DatasetFolder,
    *,
    domains: Mapping[str, Sequence[str]],
    classes: Sequence[str] = (),
    numbered: bool = False,
    inner: Sequence[str] = (".",),
    json: str = "",
    lists: Sequence[str] = (),
    first_label: int = 0,
    order: Literal["bytewise", "official"] = "bytewise",
    exclude: Sequence[str] = (),
    camera_traps: Sequence[str] = (),
    fractions: tuple[float, float] = FRACTIONS,
    seed: int = 1,
) -> Listing:
    """Read every domain under the first of its names that exists, by the first of these that exists:

    a split JSON per domain (`json`, FedMVP's), official lists (`lists`, with {domain} and {split}), or the folders, of
    which each class of each domain is split by `fractions` from the seed. Labels come from a path's class folder;
    integers in a list are only verified (`first_label`, `order`). `classes` are those of the data set where its
    folders may lack some or, `numbered`, may be called 0, 1, .... `inner` is a folder between domain and classes.
    `camera_traps` are annotation files that replace a missing tree, with locations as domains.
    """
    places = {name: next((alias for alias in aliases if folder.has(alias)), "") for name, aliases in domains.items()}
    if camera_traps and not any(places.values()):
        return _from_sightings(
            folder, read_sightings(folder, camera_traps, domains, classes), classes, fractions=fractions, seed=seed
        )
    lost = [name for name, place in places.items() if not place]
    if lost:
        tried = ", ".join(domains[lost[0]])
        raise UserError(f"{folder.path} has no folder for the domain {lost[0]!r} (looked for {tried}).")
    files = {
        name: json.format(plain=name.replace("_", ""), folder=place.rpartition("/")[2])
        for name, place in places.items()
    }
    if json and all(folder.has(f"{places[name]}/{file}") for name, file in files.items()):
        return _from_json(folder, places, files, inner)
    wanted = {name: name for name in classes}
    if numbered:  # in one layout of two
        wanted |= {str(number): name for number, name in enumerate(classes)}
    images = list(_listed(folder, places, lists)) if lists and _lists_exist(folder, places, lists) else []
    files_exist = not images
    if files_exist:
        images = list(_walk(folder, places, inner))
    images = [image for image in images if image.file not in exclude]
    names = tuple(classes) or tuple(sorted({image.class_folder for image in images}, key=ORDERS[order]))
    if foreign := next((one for one in images if wanted and one.class_folder not in wanted), None):
        raise UserError(
            f"{folder.path / foreign.file} lies in {foreign.class_folder!r}, which is none of the classes {names}."
        )
    if not files_exist:
        _verify_labels(folder, places, lists, names, first_label=first_label)
    found = [replace(one, class_folder=wanted.get(one.class_folder, one.class_folder)) for one in images]
    return _listing(folder, found, names, fractions=fractions, seed=seed, files_exist=files_exist)


def _walk(folder: DatasetFolder, places: Mapping[str, str], inner: Sequence[str]) -> Iterable[DomainImage]:
    for domain, place in places.items():
        # A folder `full` holds what train, crossval and test hold once more.
        top = next((path for path in (_join(place, name) for name in inner) if folder.has(path)), place)
        keys = folder.folders(top)
        if not keys:
            raise UserError(f"{folder.path / top} has no class folders; see `fedprompt data info` for the tree.")
        for key, own in zip(keys, folder.images_of([f"{top}/{key}" for key in keys]), strict=True):
            yield from (DomainImage(file, domain, key) for file in own)


def _join(place: str, name: str) -> str:
    return place if name == "." else f"{place}/{name}"


def _list_files(place: str, lists: Sequence[str], split: str) -> list[str]:
    return [path.format(domain=place.rpartition("/")[2], split=split) for path in lists]


def _lists_exist(folder: DatasetFolder, places: Mapping[str, str], lists: Sequence[str]) -> bool:
    return all(any(folder.has(file) for file in _list_files(place, lists, "train")) for place in places.values())


def _lines(folder: DatasetFolder, place: str, lists: Sequence[str]) -> Iterable[tuple[str, str, int]]:
    for split in LISTS:
        file = next((path for path in _list_files(place, lists, split) if folder.has(path)), None)
        for line in folder.lines(file) if file else []:
            path, _, number = line.rpartition(" ")
            yield split, path, int(number)


def _listed(folder: DatasetFolder, places: Mapping[str, str], lists: Sequence[str]) -> Iterable[DomainImage]:
    for domain, place in places.items():
        above = place.rpartition("/")[0]
        for split, path, _ in _lines(folder, place, lists):
            yield DomainImage(f"{above}/{path}" if above else path, domain, path.split("/")[-2], LISTS[split])


def _verify_labels(
    folder: DatasetFolder, places: Mapping[str, str], lists: Sequence[str], names: Sequence[str], *, first_label: int
) -> None:
    """UserError unless a list's integers fit one order of the classes, the bytewise or the official one."""
    orders = [list(names), sorted(names), sorted(names, key=ORDERS["official"])]
    seen: dict[str, set[int]] = {}
    for place in places.values():
        for _, path, number in _lines(folder, place, lists):
            seen.setdefault(path.split("/")[-2], set()).add(number - first_label)
    if not any(all(numbers == {order.index(key)} for key, numbers in seen.items()) for order in orders):
        key = next((key for key, numbers in seen.items() if len(numbers) > 1), next(iter(seen)))
        raise UserError(
            f"The lists of {folder.path} number the class {key!r} {sorted(seen[key])}, which fits no order of its "
            f"{len(names)} classes; lists and folders are from different versions."
        )


def _from_json(
    folder: DatasetFolder, places: Mapping[str, str], files: Mapping[str, str], inner: Sequence[str]
) -> Listing:
    tables = {name: split_json.items(folder, f"{places[name]}/{file}") for name, file in files.items()}
    names = split_json.classes(
        {f"{name} {split}": rows for name, table in tables.items() for split, rows in table.items()}, str(folder.path)
    )
    found = []
    for name, table in tables.items():
        place = next((path for path in (_join(places[name], part) for part in inner) if folder.has(path)), places[name])
        found += [
            DomainImage(f"{place}/{path}", name, names[label], split)
            for split, rows in table.items()
            for path, label, _ in rows
        ]
    return _listing(folder, found, names, fractions=FRACTIONS, seed=0, files_exist=False)


def _from_sightings(
    folder: DatasetFolder,
    sightings: Sequence[Sighting],
    classes: Sequence[str],
    *,
    fractions: tuple[float, float],
    seed: int,
) -> Listing:
    found = [DomainImage(sighting.file, sighting.location, sighting.species) for sighting in sightings]
    return _listing(folder, found, tuple(classes), fractions=fractions, seed=seed, files_exist=False)


def _listing(
    folder: DatasetFolder,
    found: Sequence[DomainImage],
    names: tuple[str, ...],
    *,
    fractions: tuple[float, float],
    seed: int,
    files_exist: bool,
) -> Listing:
    label = {name: number for number, name in enumerate(names)}
    splits = [image.split for image in found]
    if not any(splits):
        groups = [(image.domain, image.class_folder) for image in found]
        # differs: FedMVP's splits of these sets are unpublished; ours follow from the seed and each image's path
        splits = draw_stratified_splits([image.file for image in found], groups, seed=seed, fractions=fractions)
    return Listing(
        names=names,
        files=tuple(image.file for image in found),
        targets=torch.tensor([label[image.class_folder] for image in found], dtype=torch.int64),
        splits=tuple(splits),
        domains=tuple(image.domain for image in found),
        dependencies=folder.dependencies,
        notes=tuple(folder.notes),
        files_exist=files_exist,
    )
