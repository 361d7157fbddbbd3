"""Data sets from columns in memory: image files or images, labels, and splits and domains where they are known."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from fedprompt.arguments import shown
from fedprompt.data.copies import copies_remark, same_content
from fedprompt.data.dataset import Dataset
from fedprompt.data.file_source import FileSource
from fedprompt.data.image_formats import to_rgb
from fedprompt.data.images import ImageSource
from fedprompt.data.intake.class_names import normal_name
from fedprompt.data.intake.label_cells import is_missing
from fedprompt.data.intake.report import Intake, Mistakes
from fedprompt.data.intake.splits import understand_splits
from fedprompt.data.intake.typed_labels import Dialect, TypedLabels, read_typed_labels
from fedprompt.data.labels import LabelSpace
from fedprompt.data.splits import base_and_new, check_test_fraction, draw_test_splits, drawn_origin
from fedprompt.data.table_source import TableSource
from fedprompt.errors import UserError, a, plural
from fedprompt.file_system import is_file, obstacle


@dataclass(frozen=True, eq=False)
class MemorySource:
    """Decoded RGB images as an image source."""

    images: tuple[Image.Image, ...]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of sizes and pixels."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(repr(image.size).encode() + image.tobytes())
        return digest.hexdigest()[:32]

    def digest(self, row: int) -> str:
        """A hash of the size and the pixels of one image."""
        image = self.images[row]
        return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def open(self, row: int) -> Image.Image:
        """The image of a row."""
        return self.images[row]

    def take(self, rows: Sequence[int]) -> MemorySource:
        """A source of these images alone."""
        return MemorySource(tuple(self.images[row] for row in rows))

    def describe(self, row: int) -> str:
        """The row, since an image in memory has no path."""
        return f"image {row}"


def image_source(images: Sequence[object]) -> ImageSource:
    """The source of image files (paths), PIL images or arrays [H, W], [H, W, 3] or [H, W, 4] of 8 or 16 bits.

    Raises UserError for anything else, for a mixture of paths and images, and for files that do not exist.
    """
    if empty := [row for row, image in enumerate(images) if not isinstance(image, str) and is_missing(image)]:
        found = f"The image of row {empty[0]} is missing ({shown(images[empty[0]])})"
        raise UserError(f"{found}; give a path or an image there, or remove the row.")
    paths = [isinstance(image, str | os.PathLike) for image in images]
    if images and all(paths):
        return _file_source([Path(os.fspath(image)).expanduser().absolute() for image in images])  # type: ignore[call-overload]
    if any(paths):
        path, other = paths.index(True), paths.index(False)
        raise UserError(
            f"The image of row {path} is a path and that of row {other} is {a(type(images[other]).__name__)}; give "
            "either all paths or all images."
        )
    return MemorySource(tuple(as_image(image, name=f"image {row}") for row, image in enumerate(images)))


def _file_source(paths: Sequence[Path]) -> FileSource:
    """Files below the folder that all of them share, so that nothing depends on where that folder lies."""
    if wrong := [path for path in paths if not is_file(path)]:
        first = f"{wrong[0]} {obstacle(wrong[0], 'file')}"
        if len(paths) == 1:
            raise UserError(f"The image {first}; give the path of an image file.")
        raise UserError(
            f"Of {len(paths):,} images {len(wrong):,} cannot be opened, for example {first}; correct their "
            "paths, or leave them out."
        )
    root = Path(os.path.commonpath([path.parent for path in paths]))
    return FileSource(root, tuple(path.relative_to(root).as_posix() for path in paths))


def as_image(value: object, *, name: str) -> Image.Image:
    """A PIL image, or an array [H, W], [H, W, 3] or [H, W, 4], as 8-bit RGB; UserError, with `name`, for others."""
    if isinstance(value, Image.Image):
        _require_pixels(value.size[::-1], name)
        return to_rgb(value.copy(), name=name)
    array = value.numpy() if isinstance(value, torch.Tensor) else value
    if not isinstance(array, np.ndarray):
        raise UserError(f"{name} is a {type(value).__name__}; give a path, a PIL image or an array [H, W, 3].")
    if array.dtype not in (np.uint8, np.uint16) or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)):
        raise UserError(
            f"{name} is an array {list(array.shape)} of {array.dtype}; give [H, W], [H, W, 3] or [H, W, 4] of uint8 "
            "(or grey uint16)."
        )
    _require_pixels(array.shape, name)
    if array.dtype == np.uint16 and array.ndim == 3:
        raise UserError(f"{name} is a colour array of uint16; scale it to uint8.")
    return to_rgb(Image.fromarray(array), name=name)


def _require_pixels(shape: Sequence[int], name: str) -> None:
    if 0 in shape:
        raise UserError(f"{name} has no pixels ({' x '.join(map(str, shape[:2]))}); give an image of at least 1 x 1.")


def dataset_of_columns(  # noqa: PLR0913  (a column or an option each, all but two with a default)
    source: ImageSource,
    labels: Sequence[object],
    splits: Sequence[object] | None = None,
    domains: Sequence[object] | None = None,
    declared: Mapping[str, str] | None = None,
    *,
    name: str = "in memory",
    classes: Sequence[str] = (),
    base: Literal["half", "all"] = "all",
    unseen_domains: tuple[str, ...] = (),
    test_fraction: float = 0.25,
    template: str = "a photo of a {}.",
    seed: int = 1,
) -> Dataset:
    """The data set of N images with a label each (single-label), or a list of labels or a vector of 0 and 1 each.

    `classes` are the names in label order, needed only if labels are numbers. `splits` says train, val or test per
    image in any usual spelling, and `declared` what other values of it are; without it `test_fraction` of each class or
    label is drawn for testing, from `seed` and the paths below the folder that all files share or, of images in memory,
    their content. `domains` names a domain per image. Raises UserError for columns of different lengths,
    unreadable labels and paths that stand twice.
    """
    check_test_fraction(test_fraction)
    columns = {"labels": labels, "splits": splits, "domains": domains}
    for column, values in columns.items():
        if values is not None and len(values) != len(source):
            raise UserError(f"There are {len(source):,} images and {len(values):,} {column}; every image needs one.")
    if not len(source):
        raise UserError("There are no images; give at least two.")
    mistakes = Mistakes(name, place="row {}".format)
    found = read_typed_labels([_plain(label) for label in labels], classes, dialect=Dialect(), mistakes=mistakes)
    _refuse_repeats(source, mistakes)
    mistakes.check(fix="correct that row")
    _refuse_missing("domain", domains or (), fix="write the domain there, remove these rows, or leave the column out")
    outer = ["" if _is_empty(value) else normal_name(str(value)) for value in domains or [""] * len(source)]
    if splits is None or all(map(_is_empty, splits)):
        drawn = _drawn_splits(source, found, outer, test_fraction=test_fraction, seed=seed, name=name)
    else:
        drawn = _given_splits(splits, declared, name)
    known, new = base_and_new(len(found.names), "all" if found.multi else base)
    return Dataset(
        name=name,
        source=source,
        space=LabelSpace(found.names, "multi" if found.multi else "single", template),
        targets=torch.tensor(found.targets, dtype=torch.int8 if found.multi else torch.int64),
        splits=drawn.splits,
        domains=tuple(outer),
        base=known,
        new=new,
        unseen_domains=unseen_domains,
        intake=Intake(
            labels=found.form,
            origins={
                "images": "given in memory",
                "classes": "`classes`" if classes else "labels",
                "splits": drawn.origin,
            },
            warnings=(*found.remarks, *drawn.remarks),
        ),
    )


def _plain(label: object) -> object:
    """Numpy's and torch's numbers and vectors as Python's."""
    convert: Any = getattr(label, "tolist", None)
    return convert() if callable(convert) else label


def _refuse_repeats(source: ImageSource, mistakes: Mistakes) -> None:
    if not isinstance(source, FileSource):
        return
    first: dict[str, int] = {}
    for row, file in enumerate(source.files):
        if first.setdefault(file, row) != row:
            mistakes.add(
                f"the image {source.root / file} stands in row {first[file]} too",
                line=row,
                fix="keep one of the two rows",
            )


@dataclass(frozen=True)
class _Splits:
    """The splits of all rows, where they come from in words, and what is to be said of them."""

    splits: tuple[str, ...]
    origin: str
    remarks: tuple[str, ...] = ()


def _given_splits(given: Sequence[object], declared: Mapping[str, str] | None, name: str) -> _Splits:
    _refuse_missing("split", given, fix="write train, val or test there, remove these rows, or leave the column out")
    names = [str(value) for value in given]
    understood = understand_splits(names, place=name, kind="cells", declared=declared)
    if understood is None:
        raise UserError(f"The splits of {name} say {names[0]!r} and the like; write train, val or test.")
    return _Splits(tuple(understood.parts[own] for own in names), understood.origin)


def _is_empty(value: object) -> bool:
    return is_missing(value) or (isinstance(value, str) and not value.strip())


def _refuse_missing(column: str, values: Sequence[object], *, fix: str) -> None:
    """UserError if some values of a column are missing and others are not."""
    empty = [row for row, value in enumerate(values) if _is_empty(value)]
    if not empty or len(empty) == len(values):
        return
    others = f" and those of {plural(len(empty) - 1, 'other row')} are" if len(empty) > 1 else " is"
    raise UserError(f"The {column} of row {empty[0]}{others} missing; {fix}.")


def _drawn_splits(
    source: ImageSource, found: TypedLabels, domains: Sequence[str], *, test_fraction: float, seed: int, name: str
) -> _Splits:
    groups = [(domain, () if found.multi else label) for domain, label in zip(domains, found.targets, strict=True)]
    files, contents = _addresses(source)
    drawn = draw_test_splits(
        files, groups, labels=found.values, test_fraction=test_fraction, seed=seed, contents=contents
    )
    names = [source.describe(row) for row in range(len(source))]
    return _Splits(tuple(drawn), drawn_origin(test_fraction, seed), copies_remark(contents, names, place=name))


def _addresses(source: ImageSource) -> tuple[Sequence[str], Sequence[int]]:
    """What each image is drawn by, its path or its content, and for each row the first one with the same content."""
    if isinstance(source, FileSource):
        return source.files, source.contents
    assert isinstance(source, MemorySource | TableSource)
    digests = [source.digest(row) for row in range(len(source))]
    return digests, same_content(len(source), (digests.__getitem__,))
