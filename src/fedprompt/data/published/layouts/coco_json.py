"""COCO annotations (Lin et al., 2014): images, annotations and categories in one JSON per split; also Objects365."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from fedprompt.data.dataset import multi_hot
from fedprompt.data.folder import DatasetFolder, JsonObject
from fedprompt.data.intake.class_names import normal_name
from fedprompt.data.intake.ids import Ids, flag, index_ids, joined, repeated
from fedprompt.data.intake.paths import below
from fedprompt.data.intake.report import Mistakes
from fedprompt.data.published.listing import Listing
from fedprompt.errors import UserError
from fedprompt.text_files import load_json, read_text


@dataclass(frozen=True)
class Regions:
    """Which annotations count: crowd regions only with `crowds`, and those of at least `min_area` square pixels."""

    crowds: bool = False
    min_area: float = 0.0


@dataclass(frozen=True)
class CocoFile:
    """One annotation file: its image files, the names of the classes of each, and all class names in order of ids."""

    file: str
    files: tuple[str, ...]
    present: tuple[frozenset[str], ...]
    names: tuple[str, ...]
    groups: tuple[str, ...] = ()  # names that only group others (Roboflow writes one), which no image has


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
        split: read_file(folder, folder.find(files, f"The annotations of {split}"), Regions(crowds, min_area))
        for split, files in annotations.items()
    }
    names = shared_names(folder, tables)
    label = {name: number for number, name in enumerate(names)}
    files: list[str] = []
    splits: list[str] = []
    labels: list[set[int]] = []
    for split, table in tables.items():
        place = folder.find(images[split], f"The folder of {split} images")
        own = located(folder, table, place, links=True)
        least = max(min_labels if split == "train" else 0, 0 if include_unlabelled else 1)
        for file, present in zip(own, table.present, strict=True):
            # differs: the FedMPT release keeps images of five classes or more in training and in testing
            if file.rpartition("/")[2] not in exclude and len(present) >= least:
                files.append(file)
                splits.append(split)
                labels.append({label[name] for name in present})
    targets = multi_hot(labels, len(names))
    return Listing(names, tuple(files), targets, tuple(splits), ("",) * len(files), folder.dependencies)


def read_file(folder: DatasetFolder, file: str, regions: Regions) -> CocoFile:
    """Read one annotation file. Ids are compared as text in a normal form.

    Raises UserError with all mistakes: ids that are none or repeated, annotations of images or categories that are not
    there, images without a file name or listed twice.
    """
    folder.has(file)
    mistakes = Mistakes(folder.path / file)
    images, annotations, categories = _tables(folder, file, mistakes)
    class_names = [_name(row) for row in categories]
    if nameless := [row for row, name in enumerate(class_names) if not name]:
        some = "1 category has" if len(nameless) == 1 else f"{len(nameless):,} categories have"
        mistakes.add(f"{some} no name, the one with the id {categories[nameless[0]].get('id')!r} for one")
    by_category = index_ids(
        categories, key=lambda row: row.get("id"), content=_name, what="categories", mistakes=mistakes
    )
    by_image = index_ids(
        images,
        key=lambda row: row.get("id"),
        content=lambda row: row.get("file_name"),
        what="images",
        mistakes=mistakes,
    )
    rows = sorted(by_image.rows.values())
    files = _file_names(images, rows, folder.path, mistakes)
    present = _classes_by_image(annotations, by_image, by_category, regions, mistakes)
    mistakes.check()
    ordered = [class_names[row] for row in _by_id(by_category)]
    annotated = {row for own in present.values() for row in own}
    groups = _groups(categories, sorted(by_category.rows.values()), {class_names[row] for row in annotated})
    return CocoFile(
        file,
        tuple(files),
        tuple(frozenset(class_names[category] for category in present.get(row, ())) for row in rows),
        tuple(ordered),
        groups,
    )


def _tables(folder: DatasetFolder, file: str, mistakes: Mistakes) -> tuple[list[JsonObject], ...]:
    """The three lists of objects of a COCO file."""
    path = folder.path / file
    try:
        table = load_json(read_text(path)[0])
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"The file {path} is not valid JSON ({error}); it is damaged, or a web page saved under its name: correct "
            "it or download it again."
        ) from error
    parts = ("images", "annotations", "categories")
    if not isinstance(table, Mapping) or not set(parts) <= table.keys():
        raise UserError(f"{path} lacks images, annotations or categories; it is not a COCO file.")
    found = []
    for part in parts:
        rows = table[part]
        if not isinstance(rows, list) or not rows:
            what = "is empty" if rows == [] else "is null" if rows is None else "is not a list"
            mistakes.refuse(f"{part!r} {what}; give a file with annotated images")
        if wrong := sum(not isinstance(row, Mapping) for row in rows):
            mistakes.refuse(f"{wrong:,} of {len(rows):,} {part} are not objects")
        found.append(cast("list[JsonObject]", rows))
    return tuple(found)


def _name(category: JsonObject) -> str:
    name = category.get("name")
    return normal_name(name) if isinstance(name, str) else ""


def _file_names(images: Sequence[JsonObject], rows: Sequence[int], root: Path, mistakes: Mistakes) -> list[str]:
    names = [images[row].get("file_name") for row in rows]
    if lost := [row for row, name in zip(rows, names, strict=True) if not isinstance(name, str) or not name.strip()]:
        shown = images[lost[0]].get("id")
        mistakes.add(f"{len(lost):,} of {len(rows):,} images have no file_name, the one with the id {shown!r} for one")
    files = [name for name in names if isinstance(name, str) and name.strip()]
    repeated(files, what="image files", mistakes=mistakes)
    for name in files:
        if wrong := below(root, name, links=True)[1]:
            mistakes.add(wrong, fix="correct file_name")
    return files


def _classes_by_image(
    annotations: Sequence[JsonObject], images: Ids, categories: Ids, regions: Regions, mistakes: Mistakes
) -> dict[int, set[int]]:
    """Image row -> rows of the categories that are annotated in it."""
    of_image = joined(
        (row.get("image_id") for row in annotations), images, what="annotations", to="images", mistakes=mistakes
    )
    of_category = joined(
        (row.get("category_id") for row in annotations),
        categories,
        what="annotations",
        to="categories",
        mistakes=mistakes,
    )
    crowds = [flag(row.get("iscrowd")) for row in annotations]
    if odd := [row for row, crowd in enumerate(crowds) if crowd is None]:
        some = "annotation has" if len(odd) == 1 else "annotations have"
        mistakes.add(f"{len(odd):,} {some} an iscrowd like {annotations[odd[0]].get('iscrowd')!r}; write 0 or 1")
    areas = [_area(row) for row in annotations] if regions.min_area else []
    if lost := [row for row, area in enumerate(areas) if area is None]:
        shown = annotations[lost[0]].get("area")
        mistakes.add(f"{len(lost):,} annotations have no area, {shown!r} for one, and min_area needs one of each")
    found: dict[int, set[int]] = {}
    for row, (image, category) in enumerate(zip(of_image, of_category, strict=True)):
        large = not areas or (areas[row] or 0.0) >= regions.min_area
        if large and (regions.crowds or not crowds[row]):
            found.setdefault(image, set()).add(category)
    return found


def _area(annotation: JsonObject) -> float | None:
    """The area in square pixels, as number or text; of the bounding box if there is no other; None for none."""
    area, box = annotation.get("area"), annotation.get("bbox")
    if area is None and isinstance(box, list) and len(box) == 4:
        return float(box[2]) * float(box[3]) if all(isinstance(side, int | float) for side in box) else None
    try:
        return float(area) if isinstance(area, int | float | str) and not isinstance(area, bool) else None
    except ValueError:
        return None


def _by_id(categories: Ids) -> list[int]:
    """Rows in the order of their ids: as numbers if all are, else as text."""
    numeric = all(key.lstrip("-").isdecimal() for key in categories.rows)
    ordered = sorted(categories.rows, key=int) if numeric else sorted(categories.rows)
    return [categories.rows[key] for key in ordered]


def _groups(categories: Sequence[JsonObject], rows: Sequence[int], annotated: set[str]) -> tuple[str, ...]:
    """A category that is never annotated and stands over all others: no class, but the name of the export."""
    for row in rows:
        name = _name(categories[row])
        others = {categories[other].get("supercategory") for other in rows if other != row}
        if name not in annotated and others == {categories[row].get("name")}:
            return (name,)
    return ()


def shared_names(folder: DatasetFolder, tables: Mapping[str, CocoFile]) -> tuple[str, ...]:
    """The class names of several files, which must have the same; in the order of the first."""
    groups = set.intersection(*(set(table.groups) for table in tables.values()))
    first, *others = tables.values()
    for other in others:
        if differ := set(first.names) ^ set(other.names):
            raise UserError(
                f"The annotation files {first.file} and {other.file} in {folder.path} have different categories, "
                f"{min(differ)!r} for one; they are from two versions."
            )
    return tuple(name for name in first.names if name not in groups)


def located(folder: DatasetFolder, table: CocoFile, place: str, *, links: bool) -> list[str]:
    """The files of a table below the data set's folder; UserError for names that lead out of `place`."""
    mistakes = Mistakes(folder.path / table.file)
    prefix = "" if place == "." else f"{place}/"
    files = []
    for name in table.files:
        own, wrong = below(folder.path / place, name, links=links)
        if wrong:
            mistakes.add(wrong)
        files.append(prefix + own)
    mistakes.check(fix="correct file_name")
    return files
