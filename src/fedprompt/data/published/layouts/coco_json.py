"""COCO annotations (Lin et al., 2014): images, annotations and categories in one JSON per split; also Objects365."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from fedprompt.data.dataset import multi_hot
from fedprompt.data.folder import DatasetFolder, JsonObject
from fedprompt.data.published.listing import Listing
from fedprompt.errors import UserError


def read(  # noqa: PLR0913  (where copies keep the two splits, and which images count)
    folder: DatasetFolder,
    *,
    annotations: Mapping[str, Sequence[str]],
    images: Mapping[str, Sequence[str]],
    crowds: bool = False,
    min_area: float = 0.0,
    include_unlabelled: bool = True,
    min_labels: int = 0,
    exclude: Sequence[str] = (),
) -> Listing:
    """Read one JSON per split; the classes are the categories in the order of their ids, never of the file.

    A class is present if a region of it is annotated, of at least `min_area` square pixels; crowd regions count only
    with `crowds`. `min_labels` leaves out images of the training split with fewer classes; `exclude` are annotated
    files that no copy has.
    """
    tables = {
        split: _CocoFile(folder, folder.find(files, f"The annotations of {split}"))
        for split, files in annotations.items()
    }
    names = _shared_categories(folder, tables)
    label = {key: number for number, key in enumerate(names)}
    files: list[str] = []
    splits: list[str] = []
    labels: list[set[int]] = []
    for split, table in tables.items():
        place = folder.find(images[split], f"The folder of {split} images")
        present = table.classes_by_image(label, crowds=crowds, min_area=min_area)
        least = max(min_labels if split == "train" else 0, 0 if include_unlabelled else 1)
        for key, file in table.files():
            # differs: the FedMPT release keeps images of five classes or more in training and in testing
            if file.rpartition("/")[2] not in exclude and len(present[key]) >= least:
                files.append(f"{place}/{file}".removeprefix("./"))
                splits.append(split)
                labels.append(present[key])
    targets = multi_hot(labels, len(names))
    return Listing(tuple(names.values()), tuple(files), targets, tuple(splits), ("",) * len(files), folder.dependencies)


class _CocoFile:
    def __init__(self, folder: DatasetFolder, file: str) -> None:
        table = folder.json(file)
        if not isinstance(table, dict) or not {"images", "annotations", "categories"} <= table.keys():
            raise UserError(f"{folder.path / file} lacks images, annotations or categories; it is not a COCO file.")
        self.images, self.annotations, self.categories = (
            cast(Sequence[JsonObject], table[part]) for part in ("images", "annotations", "categories")
        )

    def names(self) -> dict[int, str]:
        return dict(sorted((int(str(row["id"])), str(row["name"]).strip()) for row in self.categories))

    def files(self) -> Iterator[tuple[object, str]]:
        return ((row["id"], str(row["file_name"])) for row in self.images)

    def classes_by_image(self, label: Mapping[int, int], *, crowds: bool, min_area: float) -> Mapping[object, set[int]]:
        found: dict[object, set[int]] = defaultdict(set)
        for row in self.annotations:
            large = not min_area or float(str(row.get("area", 0))) >= min_area
            if large and (crowds or not row.get("iscrowd", 0)):
                found[row["image_id"]].add(label[int(str(row["category_id"]))])
        return found


def _shared_categories(folder: DatasetFolder, tables: Mapping[str, _CocoFile]) -> dict[int, str]:
    first, *others = (table.names() for table in tables.values())
    if any(other != first for other in others):
        raise UserError(f"The annotation files in {folder.path} have different categories; they are from two versions.")
    return {number: " ".join(name.split()) for number, name in first.items()}
