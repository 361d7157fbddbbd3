"""PASCAL VOC (Everingham et al., 2007): image ids per split, and labels from lists per class or from XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from fedprompt.data.folder import DatasetFolder
from fedprompt.data.intake.class_names import normal_name
from fedprompt.data.intake.ids import flag
from fedprompt.data.intake.report import Mistakes
from fedprompt.data.published.listing import Listing
from fedprompt.errors import UserError, did_you_mean

Difficult = Literal["ignore", "negative", "positive"]
ClassMarks = Mapping[str, str]  # class -> "1", or "0" if only difficult objects; absent classes are not in it


def read(
    folder: DatasetFolder,
    *,
    classes: Sequence[str],
    train: Sequence[str],
    test: Sequence[str],
    train_list: str = "trainval",
    difficult: Difficult = "ignore",
) -> Listing:
    """Read `ImageSets/Main` of the training and the testing tree, which may be one.

    Where the lists per class are missing, `Annotations/<id>.xml` are read. A label 0 stands for a class of which all
    objects are marked "difficult": unknown if ignored, else absent (FedMPT) or present.
    `train_list` "train" is the half that FedMPT's release actually trains on.
    """
    # differs: the release goes through trainval but reads labels of train, which drops half of the images
    value = mark_values(difficult)
    files: list[str] = []
    splits: list[str] = []
    targets: list[list[int]] = []
    for split, choices, phase in (("train", train, train_list), ("test", test, "test")):
        tree = folder.find((f"{choice}/ImageSets/Main/{phase}.txt" for choice in choices), f"VOC's list of {phase}")
        place = tree.removesuffix(f"/ImageSets/Main/{phase}.txt")
        ids = [line.split()[0] for line in folder.lines(tree)]
        lists = [f"{place}/ImageSets/Main/{name}_{phase}.txt" for name in classes]
        if not any(map(folder.has, lists)) and folder.has(f"{place}/Annotations"):
            columns = label_columns(read_objects(folder, f"{place}/Annotations", ids, classes), classes, value)
        else:
            columns = [_column(folder, file, ids, value) for file in lists]
        files += [f"{place}/JPEGImages/{key}.jpg" for key in ids]
        splits += [split] * len(ids)
        targets += [list(row) for row in zip(*columns, strict=True)]
    marks = torch.tensor(targets, dtype=torch.int8)
    return Listing(tuple(classes), tuple(files), marks, tuple(splits), ("",) * len(files), folder.dependencies)


def _column(folder: DatasetFolder, file: str, ids: Sequence[str], value: Mapping[str, int]) -> list[int]:
    # Two spaces stand before a value that is not negative.
    pairs = [line.split() for line in folder.lines(file)]
    if [pair[0] for pair in pairs] != list(ids):
        raise UserError(f"{folder.path / file} lists other images than its split; it is from another version.")
    if wrong := next((pair for pair in pairs if pair[-1] not in value), None):
        raise UserError(f"{folder.path / file} has the line {' '.join(wrong)!r}; values are 1, -1 and 0.")
    return [value[pair[-1]] for pair in pairs]


def mark_values(difficult: Difficult) -> Mapping[str, int]:
    """VOC's marks -> 1 present, 0 absent, -1 unknown."""
    return {"1": 1, "-1": 0, "0": {"ignore": -1, "negative": 0, "positive": 1}[difficult]}


def read_objects(
    folder: DatasetFolder, place: str, ids: Sequence[str], classes: Sequence[str] = ()
) -> Sequence[ClassMarks]:
    """The marks of each image from the objects in `<place>/<id>.xml`, by the names as they are spelled there.

    Raises UserError with all files that are missing or not such XML, that have an object without a name, or that name a
    class other than `classes`, if there are some.
    """
    mistakes = Mistakes(folder.path)
    known = {normal_name(name) for name in classes}
    found = []
    for key in ids:
        file = f"{place}/{key}.xml"
        marks: dict[str, str] = {}
        for name, mark in _objects(folder, file, mistakes):
            if classes and normal_name(name) not in known:
                hint = did_you_mean(name, classes)
                mistakes.add(f"{file} names the class {name!r}{hint or ', which is not among `classes`'}")
            marks[name] = max(marks.get(name, "0"), mark)
        found.append(marks)
    mistakes.check(fix="correct that file")
    return found


def _objects(folder: DatasetFolder, file: str, mistakes: Mistakes) -> list[tuple[str, str]]:
    """Name and mark of every object in an XML file, "0" for a difficult one."""
    if not folder.has(file):
        mistakes.add(f"there is no annotation {file}")
        return []
    try:
        objects = ET.fromstring(folder.content(file)).findall("object")  # bytes: the XML says its own encoding
    except (ET.ParseError, LookupError, ValueError, RecursionError) as error:
        mistakes.add(f"{file} is not XML ({error})")
        return []
    found = []
    for thing in objects:
        name, difficult = thing.findtext("name", ""), flag(thing.findtext("difficult", "0"))
        if not normal_name(name):
            mistakes.add(f"{file} has an object without a name")
        elif difficult is None:
            mistakes.add(f"{file} says difficult = {thing.findtext('difficult')!r}; write 0 or 1")
        else:
            found.append((name, "0" if difficult else "1"))
    return found


def label_columns(images: Sequence[ClassMarks], classes: Sequence[str], value: Mapping[str, int]) -> list[list[int]]:
    """Labels per class, [C][N]; spellings of one name in an image count as the stronger of their marks."""
    merged: list[dict[str, str]] = []
    for marks in images:
        own: dict[str, str] = {}
        for spelling, mark in marks.items():
            name = normal_name(spelling)
            own[name] = max(own.get(name, "0"), mark)
        merged.append(own)
    return [[value[marks.get(normal_name(name), "-1")] for marks in merged] for name in classes]
