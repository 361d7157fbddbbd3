"""Multi-label images with PASCAL VOC annotations, the XML that most tools for bounding boxes write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fedprompt.data.dataset import Dataset
from fedprompt.data.decode import Bands, Window
from fedprompt.data.file_source import FileSource
from fedprompt.data.folder import DatasetFolder, OnStep
from fedprompt.data.labels import LabelSpace, distinct_names
from fedprompt.data.published.layouts.voc_lists import Difficult, label_columns, mark_values, read_objects
from fedprompt.data.splits import draw_stratified_splits
from fedprompt.errors import UserError

LISTS = {"train": ("train", "trainval"), "val": ("val",), "test": ("test",)}  # the first that exists is read


def voc(  # noqa: PLR0913  (every option has a default, and a recipe names them all)
    *,
    path: Path,
    images: str = "JPEGImages",
    annotations: str = "Annotations",
    classes: tuple[str, ...] = (),
    difficult: Difficult = "ignore",
    template: str = "a photo of a {}.",
    window: Window | None = None,
    bands: Bands | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> Dataset:
    """Read images below `path/images`; the labels of each are the objects in `path/annotations/<name>.xml`.

    `classes` are those of the data set in label order; without them, all that are annotated, sorted. `difficult` is
    how a class counts of which all objects are marked difficult. Splits are those of
    `ImageSets/Main/{train,val,test}.txt`, where `trainval` may stand for train and val for a missing test; without
    lists 30% of the images are drawn for testing and 20% for validation.
    Raises UserError for an image without annotation, for two of the same name, and for lists that leave nothing to
    test.
    """
    root = Path(path).expanduser()
    folder = DatasetFolder(root, on_step=on_step)
    files: dict[str, str] = {}
    for file in folder.images(images):
        if other := files.get(Path(file).stem):
            raise UserError(f"{root} has {other} and {file}, for which there is one annotation; rename one of them.")
        files[Path(file).stem] = file
    splits = _splits(folder, list(files), seed)
    for key in splits.keys() - files.keys():
        raise UserError(
            f"A list of {root} names the image {key!r}, which is not in {images}; add the file or remove the line."
        )
    objects = read_objects(folder, annotations, list(splits), classes)
    names = distinct_names(classes or sorted({name for marks in objects for name in marks}), str(root))
    columns = label_columns(objects, names, mark_values(difficult))
    return Dataset(
        name=root.resolve().name,
        source=FileSource(root, tuple(files[key] for key in splits), window, bands=bands),
        space=LabelSpace(names, kind="multi", template=template),
        targets=torch.tensor(columns, dtype=torch.int8).T.contiguous(),
        splits=tuple(splits.values()),
        domains=("",) * len(splits),
        base=tuple(range(len(names))),
    )


def _splits(folder: DatasetFolder, keys: Sequence[str], seed: int) -> dict[str, str]:
    """The split of every image by its name."""
    found: dict[str, str] = {}
    for split, phases in LISTS.items():
        places = (f"ImageSets/Main/{phase}.txt" for phase in phases)
        if place := next(filter(folder.has, places), ""):
            found |= {line.split()[0]: split for line in folder.lines(place)}
    if not found:
        return dict(zip(keys, draw_stratified_splits(keys, [""] * len(keys), seed=seed), strict=True))
    if "test" not in found.values():
        found = {key: "test" if split == "val" else split for key, split in found.items()}
    if "test" not in found.values():
        raise UserError(f"The lists of {folder.path} leave nothing to test; add ImageSets/Main/val.txt or test.txt.")
    return found
