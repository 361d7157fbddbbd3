"""One's own pictures annotated as VOC XML, as most tools for drawing boxes write it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fedprompt.data.dataset import Dataset
from fedprompt.data.decode import Bands, Window
from fedprompt.data.labels import LabelSpace
from fedprompt.data.published.catalog import distinct
from fedprompt.data.published.layouts.voc_lists import Difficult, annotated, marked, values
from fedprompt.data.published.listing import Folder
from fedprompt.data.sources.image_folder import FileSource, OnStep
from fedprompt.data.splits import draw_splits
from fedprompt.errors import UserError

LISTS = {"train": ("train", "trainval"), "val": ("val",), "test": ("test",)}  # the first that is there is read


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
    """Read pictures below `path/images` as many labels each: the objects that `path/annotations/<name>.xml` has.

    `classes` are those of the data set in label order; without them, all that are annotated, sorted. `difficult` says
    what objects count as that are all marked so. Splits are those of `ImageSets/Main/{train,val,test}.txt`, where
    `trainval` may stand for train and val for a missing test; without lists 30% of the pictures are drawn for testing
    and 20% for validation. Raises UserError for a picture without annotation, for two of one name, and for lists that
    leave nothing to test.
    """
    root = Path(path).expanduser()
    folder = Folder(root, on_step=on_step)
    files: dict[str, str] = {}
    for file in folder.pictures(images):
        if twin := files.get(Path(file).stem):
            raise UserError(f"{root} has {twin} and {file}, for which there is one annotation; rename one of them.")
        files[Path(file).stem] = file
    splits = _splits(folder, list(files), seed)
    for key in splits.keys() - files.keys():
        raise UserError(f"A list of {root} names the picture {key!r}, which is not in {images}; add or strike it.")
    found = annotated(folder, annotations, list(splits), classes)
    names = distinct(classes or sorted({name for marks in found for name in marks}), str(root))
    columns = marked(found, names, values(difficult))
    return Dataset(
        name=root.resolve().name,
        source=FileSource(root, tuple(files[key] for key in splits), window, bands=bands),
        space=LabelSpace(names, kind="multi", template=template),
        targets=torch.tensor(columns, dtype=torch.int8).T.contiguous(),
        splits=tuple(splits.values()),
        domains=("",) * len(splits),
        base=tuple(range(len(names))),
    )


def _splits(folder: Folder, keys: Sequence[str], seed: int) -> dict[str, str]:
    """The split of every picture by its name."""
    found: dict[str, str] = {}
    for word, phases in LISTS.items():
        places = (f"ImageSets/Main/{phase}.txt" for phase in phases)
        if place := next(filter(folder.has, places), ""):
            found |= {line.split()[0]: word for line in folder.lines(place)}
    if not found:
        return dict(zip(keys, draw_splits(keys, [""] * len(keys), seed=seed), strict=True))
    if "test" not in found.values():
        found = {key: "test" if word == "val" else word for key, word in found.items()}
    if "test" not in found.values():
        raise UserError(f"The lists of {folder.path} leave nothing to test; add ImageSets/Main/val.txt or test.txt.")
    return found
