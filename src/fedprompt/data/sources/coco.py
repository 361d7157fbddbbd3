"""Multi-label images with COCO annotations: one JSON per split with images, annotations and categories."""

from __future__ import annotations

from pathlib import Path

from fedprompt.data.dataset import Dataset
from fedprompt.data.decode import Bands, Window
from fedprompt.data.file_source import FileSource
from fedprompt.data.folder import DatasetFolder, OnStep
from fedprompt.data.labels import LabelSpace, distinct_names
from fedprompt.data.published.layouts.coco_json import read
from fedprompt.data.splits import draw_stratified_splits
from fedprompt.errors import UserError


def coco(  # noqa: PLR0913  (every option has a default, and a recipe names them all)
    *,
    path: Path,
    train: str = "annotations/train.json",
    test: str = "",
    train_images: str = "images",
    test_images: str = "",
    crowds: bool = False,
    min_area: float = 0.0,
    include_unlabelled: bool = True,
    template: str = "a photo of a {}.",
    window: Window | None = None,
    bands: Bands | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> Dataset:
    """Read annotation files below the folder `path`; a label is present if a region in the image is annotated with it.

    Classes are sorted by category id. Without a `test` file 30% of the images are drawn for testing and 20% for
    validation. Raises UserError for files that are missing or of another form.
    """
    root = Path(path).expanduser()
    annotations = {"train": train, **({"test": test} if test else {})}
    images = {"train": train_images, "test": test_images or train_images}
    folder = DatasetFolder(root, on_step=on_step)
    listing = read(
        folder,
        annotations={split: (file,) for split, file in annotations.items()},
        images={split: (images[split],) for split in annotations},
        crowds=crowds,
        min_area=min_area,
        include_unlabelled=include_unlabelled,
    )
    if missing := folder.missing(listing.files):
        first = listing.files[min(missing)]
        raise UserError(f"{len(missing)} images of {root} do not exist, for example {first}; add them.")
    splits = listing.splits if test else draw_stratified_splits(listing.files, [""] * len(listing.files), seed=seed)
    names = distinct_names(listing.names, str(root))
    return Dataset(
        name=root.resolve().name,
        source=FileSource(root, listing.files, window, bands=bands),
        space=LabelSpace(names, kind="multi", template=template),
        targets=listing.targets,
        splits=splits,
        domains=listing.domains,
        base=tuple(range(len(names))),
    )
