"""Class names and official splits from a download's original lists, for data sets whose published split is a JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

from fedprompt.data.folder import DatasetFolder
from fedprompt.errors import UserError


class OriginalLists(NamedTuple):
    """Class names in label order, and images as (path below the image folder, label, official split or "")."""

    names: tuple[str, ...]
    images: Sequence[tuple[str, int, str]]


def class_tree(
    folder: DatasetFolder, place: str, *, drop: Sequence[str] = (), rename: Mapping[str, str] | None = None
) -> OriginalLists:
    """One folder per class in bytewise order of the folders' own names; renaming comes after sorting."""
    kept = [name for name in folder.folders(place) if name not in drop]
    files = folder.images_of([f"{place}/{name}" for name in kept])
    images = [(file.removeprefix(f"{place}/"), label, "") for label, own in enumerate(files) for file in own]
    return OriginalLists(tuple((rename or {}).get(name, name) for name in kept), images)


def breed_lists(folder: DatasetFolder, place: str) -> OriginalLists:
    """OxfordPets: lines "Egyptian_Mau_12 8 1 5" whose second column is the class from 1 on."""
    names: dict[int, str] = {}
    images = []
    for split, file in (("train", "trainval"), ("test", "test")):
        for line in folder.lines(f"annotations/{file}.txt"):
            if line.startswith("#"):
                continue
            key, number = line.split()[:2]
            # The breed has underscores too: only the last one stands before the image's number.
            names[int(number) - 1] = key.rpartition("_")[0].lower()
            images.append((f"{key}.jpg", int(number) - 1, split))
    return OriginalLists(tuple(names[label] for label in sorted(names)), images)


def flower_labels(folder: DatasetFolder, place: str) -> OriginalLists:
    """Flowers102: the i-th label, from 1 on, belongs to image_{i+1:05d}.jpg; names stand under their numbers."""
    table = folder.json("cat_to_name.json")
    if not isinstance(table, dict):
        raise UserError(f"{folder.path / 'cat_to_name.json'} should be an object of names by class number.")
    numbers = sorted(int(key) for key in table)  # as text, "10" would come before "2"
    label_of = {number: label for label, number in enumerate(numbers)}
    # The labels are bytes, in which 0 - 1 is 255.
    labels = [label_of[int(number)] for number in folder.matrix("imagelabels.mat", "labels")]
    images = [(f"image_{row:05d}.jpg", label, "") for row, label in enumerate(labels, start=1)]
    return OriginalLists(tuple(str(table[str(number)]) for number in numbers), images)


def car_annotations(folder: DatasetFolder, place: str) -> OriginalLists:
    """StanfordCars: MATLAB structs with a class from 1 on; the model's year moves to the front of its name."""
    names = [str(name) for name in folder.matrix("devkit/cars_meta.mat", "class_names")]
    parts = (
        ("train", "cars_train", "devkit/cars_train_annos.mat"),
        ("test", "cars_test", "cars_test_annos_withlabels.mat"),
    )
    images = []
    for split, top, file in parts:
        for row in folder.matrix(file, "annotations"):
            fields = cast(Mapping[str, object], row)
            images.append((f"{top}/{fields['fname']}", int(str(fields["class"])) - 1, split))
    return OriginalLists(tuple(_year_first(name) for name in names), images)


def _year_first(name: str) -> str:
    rest, _, year = name.rpartition(" ")
    return f"{year} {rest}" if year.isdigit() else name


def scene_lists(folder: DatasetFolder, place: str) -> OriginalLists:
    """SUN397: "/a/apartment_building/outdoor" is called "outdoor apartment_building"; partition 01 is the split."""
    keys = folder.lines("ClassName.txt")
    label = {key: number for number, key in enumerate(keys)}
    images = [
        (line.lstrip("/"), label[line.rpartition("/")[0]], split)
        for split, file in (("train", "Training_01.txt"), ("test", "Testing_01.txt"))
        for line in folder.lines(file)
    ]
    return OriginalLists(tuple(" ".join(reversed(key.split("/")[2:])) for key in keys), images)


def action_lists(folder: DatasetFolder, place: str) -> OriginalLists:
    """The lists of UCF101, of whose videos the middle frames are kept; classes are in the order of classInd.txt.

    The line "HammerThrow/v_HammerThrow_g01_c01.avi" is the image Hammer_Throw/v_HammerThrow_g01_c01.jpg.
    """
    # A folder's name and the class in a file's name may differ in capitals: each is taken from its own place.
    keys = [line.split()[1] for line in folder.lines("ucfTrainTestlist/classInd.txt")]
    label = {key: number for number, key in enumerate(keys)}
    images = []
    for split in ("train", "test"):
        for line in folder.lines(f"ucfTrainTestlist/{split}list01.txt"):
            key, _, file = line.split()[0].partition("/")
            images.append((f"{split_camel_case(key)}/{file.removesuffix('.avi')}.jpg", label[key], split))
    return OriginalLists(tuple(map(split_camel_case, keys)), images)


def split_camel_case(name: str) -> str:
    """ApplyLipstick as Apply_Lipstick."""
    return "_".join(re.findall("[A-Z][^A-Z]*", name)) or name


ORIGINAL_LISTS: Mapping[str, Callable[..., OriginalLists]] = {
    "class_tree": class_tree,
    "breed_lists": breed_lists,
    "flower_labels": flower_labels,
    "car_annotations": car_annotations,
    "scene_lists": scene_lists,
    "action_lists": action_lists,
}
