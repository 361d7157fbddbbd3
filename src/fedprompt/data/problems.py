"""Problems with images and labels, found before a run: unreadable files, leaks between splits, missing labels."""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from fedprompt.data.dataset import Dataset
from fedprompt.data.decode_workers import Workers
from fedprompt.data.file_source import FileSource
from fedprompt.data.images import Images, ImageSource, OnStep
from fedprompt.data.intake.given_images import Unreadable
from fedprompt.data.intake.label_cells import UNKNOWN
from fedprompt.data.near_duplicates import perceptual_hash
from fedprompt.errors import UserError, plural, series

BATCH = 16  # images that a process opens at a time


@dataclass(frozen=True)
class ImageScan:
    """The result of opening images, by row: a digest of size and pixels, or why the image is unreadable.

    `sizes` are width and height; `hashes` are the perceptual hashes of images with some contrast, if they were asked
    for.
    """

    digests: Mapping[int, bytes]
    unreadable: Mapping[int, str]
    sizes: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    hashes: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Scanned:
    """What was found of one image."""

    digest: bytes = b""
    reason: str = ""
    size: tuple[int, int] = (0, 0)
    perceptual: int | None = None


def scan_images(
    source: ImageSource,
    rows: Sequence[int],
    *,
    workers: int = 0,
    perceptual: bool = False,
    on_step: OnStep | None = None,
) -> ImageScan:
    """Open each image once, in `workers` processes or in this one; `on_step(done, total)` reports progress.

    With `perceptual`, perceptual hashes are computed too, which takes a millisecond per image.
    """
    batches = [Images(source, tuple(rows[start : start + BATCH])) for start in range(0, len(rows), BATCH)]
    found: dict[int, _Scanned] = {}
    for batch, results in zip(batches, _scan_batches(batches, workers, perceptual=perceptual), strict=True):
        found |= zip(batch.rows, results, strict=True)
        if on_step is not None:
            on_step(len(found), len(rows))
    read = {row: one for row, one in found.items() if not one.reason}
    return ImageScan(
        {row: one.digest for row, one in read.items()},
        {row: one.reason for row, one in found.items() if one.reason},
        {row: one.size for row, one in read.items()},
        {row: one.perceptual for row, one in read.items() if one.perceptual is not None},
    )


def find_unreadable(source: FileSource, rows: Sequence[int]) -> dict[int, Unreadable]:
    """The images among these rows that cannot be read."""
    reasons = scan_images(source, rows).unreadable
    return {
        row: Unreadable(source.describe(row), str(source.root / source.files[row]), reason)
        for row, reason in reasons.items()
    }


def _scan_batches(batches: Sequence[Images], workers: int, *, perceptual: bool) -> Iterator[list[_Scanned]]:
    scan = functools.partial(_scan_batch, perceptual=perceptual)
    if not workers or len(batches) == 1:
        yield from map(scan, batches)
        return
    pool = Workers(workers, scan)
    try:
        yield from pool.map(batches)
    finally:
        pool.close()


def _scan_batch(images: Images, *, perceptual: bool) -> list[_Scanned]:
    results = []
    for position in range(len(images)):
        try:
            image = images.decode(position)
        except UserError as error:
            results.append(_Scanned(reason=str(error)))
            continue
        digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
        looks = perceptual_hash(image) if perceptual else None
        results.append(_Scanned(digest, size=image.size, perceptual=looks))
    return results


@dataclass(frozen=True)
class Problem:
    """One problem: a sentence for the user, and the rows it is about."""

    kind: Literal["unreadable", "leak", "attributes", "labels"]
    rows: tuple[int, ...]
    message: str


def find_problems(dataset: Dataset, scan: ImageScan) -> list[Problem]:
    """All problems of a data set, as far as its images were opened.

    These are unreadable images, images (equal after decoding) that are both in the training split and in another, or
    have different labels, classes without attributes where others have some, and, for multi-label data, images without
    any known label and base classes without a positive training image.
    """
    problems = [Problem("unreadable", (row,), reason) for row, reason in scan.unreadable.items()]
    problems += _leaks(dataset, copies := _copies(dataset, scan))
    problems += _contradictions(dataset, copies)
    bare = [name for name in dataset.space.names if not dataset.space.attributes.get(name)]
    if dataset.space.attributes and bare:
        some = f"{len(bare)} of {len(dataset.space)} classes have no attributes, for example {bare[0]!r}"
        problems.append(Problem("attributes", (), f"{some}; add phrases for them or go without attributes."))
    return problems + (_label_problems(dataset) if dataset.space.kind == "multi" else [])


def _copies(dataset: Dataset, scan: ImageScan) -> list[tuple[int, ...]]:
    """The rows of each image that is there more than once, without those that are in no split any more."""
    rows_of: dict[bytes, list[int]] = defaultdict(list)
    for row, digest in sorted(scan.digests.items()):
        if row not in dataset.excluded:
            rows_of[digest].append(row)
    return [tuple(rows) for rows in rows_of.values() if len(rows) > 1]


def leaking_rows(dataset: Dataset, scan: ImageScan) -> list[tuple[int, ...]]:
    """The rows of each image that is both in the training split and in another one."""
    return [rows for rows in _copies(dataset, scan) if _is_leak({dataset.splits[row] for row in rows})]


def _is_leak(splits: Collection[str]) -> bool:
    return len(splits) > 1 and "train" in splits


def _leaks(dataset: Dataset, copies: Iterable[tuple[int, ...]]) -> Iterator[Problem]:
    for rows in copies:
        if _is_leak({dataset.splits[row] for row in rows}):
            where = ", ".join(f"{dataset.source.describe(row)} ({dataset.splits[row]})" for row in rows)
            yield Problem("leak", rows, f"The same image is in several splits: {where}; keep one.")


def _contradictions(dataset: Dataset, copies: Iterable[tuple[int, ...]]) -> Iterator[Problem]:
    for rows in copies:
        targets = dataset.targets[list(rows)].reshape(len(rows), -1)  # [R, 1] or [R, C]
        known = torch.where(targets == UNKNOWN, targets.max(dim=0).values, targets)
        if bool((known != known[0]).any()):
            where = series(f"{dataset.source.describe(row)} ({_label(dataset, row)})" for row in rows)
            yield Problem("labels", rows, f"The same image has different labels: {where}; keep the right one.")


def _label(dataset: Dataset, row: int) -> str:
    """The label or the labels of an image."""
    target = dataset.targets[row]
    present = [int(target)] if target.ndim == 0 else (target == 1).nonzero().flatten().tolist()
    return ", ".join(dataset.space.names[label] for label in present) or "none"


def _label_problems(dataset: Dataset) -> list[Problem]:
    problems = []
    unknown = (dataset.targets == -1).all(dim=1).nonzero().flatten().tolist()
    unlabelled = [row for row in unknown if row not in dataset.excluded]
    if unlabelled:
        have, they_are = ("has", "it is") if len(unlabelled) == 1 else ("have", "they are")
        some = f"{plural(len(unlabelled), 'image')} {have} no known label"
        named = f"for example {dataset.source.describe(unlabelled[0])}"
        message = f"{some}, {named}; {they_are} neither trained nor tested on."
        problems.append(Problem("labels", tuple(unlabelled), message))
    positive = (dataset.targets[dataset.rows(split="train")] == 1).any(dim=0)
    unseen = [dataset.space.names[label] for label in dataset.base if not positive[label]]
    if unseen:
        some = f"{len(unseen)} of {len(dataset.base)} classes are on no training image, for example {unseen[0]!r}"
        problems.append(Problem("labels", (), f"{some}; a model learns that they are always absent."))
    return problems
