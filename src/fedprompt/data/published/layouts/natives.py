"""Classes and official lists as the original downloads have them, before anyone fixed a split."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

from fedprompt.data.published.listing import Folder
from fedprompt.errors import UserError


class Found(NamedTuple):
    """Class names in label order, and pictures as (path below the pictures' folder, label, official split or "")."""

    names: tuple[str, ...]
    pictures: Sequence[tuple[str, int, str]]


def class_tree(
    folder: Folder, images: str, *, drop: Sequence[str] = (), rename: Mapping[str, str] | None = None
) -> Found:
    """One folder a class in bytewise order of the folders' own names; renaming comes after sorting."""
    kept = [name for name in folder.folders(images) if name not in drop]
    files = folder.pictures_of([f"{images}/{name}" for name in kept])
    pictures = [(file.removeprefix(f"{images}/"), label, "") for label, own in enumerate(files) for file in own]
    return Found(tuple((rename or {}).get(name, name) for name in kept), pictures)


def breed_lists(folder: Folder, images: str) -> Found:
    """OxfordPets: lines "Egyptian_Mau_12 8 1 5" whose second column is the class from 1 on."""
    names: dict[int, str] = {}
    pictures = []
    for word, file in (("train", "trainval"), ("test", "test")):
        for line in folder.lines(f"annotations/{file}.txt"):
            if line.startswith("#"):
                continue
            key, number = line.split()[:2]
            # The breed has underscores too: only the last one stands before the picture's number.
            names[int(number) - 1] = key.rpartition("_")[0].lower()
            pictures.append((f"{key}.jpg", int(number) - 1, word))
    return Found(tuple(names[label] for label in sorted(names)), pictures)


def flower_labels(folder: Folder, images: str) -> Found:
    """Flowers102: the i-th label, from 1 on, belongs to image_{i+1:05d}.jpg; names stand under their numbers."""
    table = folder.json("cat_to_name.json")
    if not isinstance(table, dict):
        raise UserError(f"{folder.path / 'cat_to_name.json'} should be an object of names by class number.")
    numbers = sorted(int(key) for key in table)  # as text, "10" would come before "2"
    place = {number: label for label, number in enumerate(numbers)}
    # The labels are bytes, in which 0 - 1 is 255.
    labels = [place[int(number)] for number in folder.matrix("imagelabels.mat", "labels")]
    pictures = [(f"image_{row:05d}.jpg", label, "") for row, label in enumerate(labels, start=1)]
    return Found(tuple(str(table[str(number)]) for number in numbers), pictures)


def car_annotations(folder: Folder, images: str) -> Found:
    """StanfordCars: MATLAB structs with a class from 1 on; the model's year moves to the front of its name."""
    names = [str(name) for name in folder.matrix("devkit/cars_meta.mat", "class_names")]
    parts = (
        ("train", "cars_train", "devkit/cars_train_annos.mat"),
        ("test", "cars_test", "cars_test_annos_withlabels.mat"),
    )
    pictures = []
    for word, place, file in parts:
        for row in folder.matrix(file, "annotations"):
            fields = cast(Mapping[str, object], row)
            pictures.append((f"{place}/{fields['fname']}", int(str(fields["class"])) - 1, word))
    return Found(tuple(_year_first(name) for name in names), pictures)


def _year_first(name: str) -> str:
    rest, _, year = name.rpartition(" ")
    return f"{year} {rest}" if year.isdigit() else name


def scene_lists(folder: Folder, images: str) -> Found:
    """SUN397: "/a/apartment_building/outdoor" is called "outdoor apartment_building"; partition 01 is the split."""
    keys = folder.lines("ClassName.txt")
    label = {key: number for number, key in enumerate(keys)}
    pictures = [
        (line.lstrip("/"), label[line.rpartition("/")[0]], word)
        for word, file in (("train", "Training_01.txt"), ("test", "Testing_01.txt"))
        for line in folder.lines(file)
    ]
    return Found(tuple(" ".join(reversed(key.split("/")[2:])) for key in keys), pictures)


def action_lists(folder: Folder, images: str) -> Found:
    """UCF101's middle frames: "HammerThrow/v_HammerThrow_g01_c01.avi" lies in Hammer_Throw, order as in classInd."""
    # A folder's name and the class in a file's name may differ in capitals: each is taken from its own place.
    keys = [line.split()[1] for line in folder.lines("ucfTrainTestlist/classInd.txt")]
    label = {key: number for number, key in enumerate(keys)}
    pictures = []
    for word in ("train", "test"):
        for line in folder.lines(f"ucfTrainTestlist/{word}list01.txt"):
            key, _, file = line.split()[0].partition("/")
            pictures.append((f"{spaced(key)}/{file.removesuffix('.avi')}.jpg", label[key], word))
    return Found(tuple(map(spaced, keys)), pictures)


def spaced(name: str) -> str:
    """ApplyLipstick as Apply_Lipstick."""
    return "_".join(re.findall("[A-Z][^A-Z]*", name)) or name


NATIVES: Mapping[str, Callable[..., Found]] = {
    "class_tree": class_tree,
    "breed_lists": breed_lists,
    "flower_labels": flower_labels,
    "car_annotations": car_annotations,
    "scene_lists": scene_lists,
    "action_lists": action_lists,
}
