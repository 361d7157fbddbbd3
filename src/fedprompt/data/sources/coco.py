"""One's own COCO annotations: a JSON a split with images, annotations and categories."""

from __future__ import annotations

from pathlib import Path

from fedprompt.data.dataset import Dataset
from fedprompt.data.decode import Bands, Window
from fedprompt.data.labels import LabelSpace
from fedprompt.data.published.catalog import distinct
from fedprompt.data.published.layouts.coco_json import read
from fedprompt.data.published.listing import Folder, absent
from fedprompt.data.sources.image_folder import FileSource, OnStep
from fedprompt.data.splits import draw_splits
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
    """Read annotation files below the folder `path` as many labels a picture: those with a region in it.

    Classes are sorted by category id. Without a `test` file 30% of the pictures are drawn for testing and 20% for
    validation. Raises UserError for files that are missing or of another form.
    """
    root = Path(path).expanduser()
    splits = {"train": train, **({"test": test} if test else {})}
    images = {"train": train_images, "test": test_images or train_images}
    folder = Folder(root, on_step=on_step)
    listing = read(
        folder,
        annotations={word: (file,) for word, file in splits.items()},
        images={word: (images[word],) for word in splits},
        crowds=crowds,
        min_area=min_area,
        include_unlabelled=include_unlabelled,
    )
    if lost := absent(folder, listing.files):
        raise UserError(f"{len(lost)} pictures of {root} are not there, {listing.files[min(lost)]} for one; add them.")
    words = listing.splits if test else draw_splits(listing.files, [""] * len(listing.files), seed=seed)
    names = distinct(listing.names, str(root))
    return Dataset(
        name=root.resolve().name,
        source=FileSource(root, listing.files, window, bands=bands),
        space=LabelSpace(names, kind="multi", template=template),
        targets=listing.targets,
        splits=words,
        domains=listing.domains,
        base=tuple(range(len(names))),
    )
