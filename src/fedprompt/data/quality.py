"""What is worth a look in a data set and is no mistake: near-duplicates, imbalance, tiny classes, small images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import NamedTuple

import torch

from fedprompt.data.copies import file_stem
from fedprompt.data.dataset import Dataset
from fedprompt.data.images import OnStep
from fedprompt.data.near_duplicates import near_duplicates
from fedprompt.data.problems import ImageScan, leaking_rows
from fedprompt.errors import first_names, plural, untested

RARE = 3  # images of a class, up to which its name may be a mistake
MOST_RARE = 200  # of these whose names are compared
TIMES = 10  # times as many images that a class has whose name was meant
ALIKE = 0.79  # of two names, as difflib measures: two letters of five that changed places are 0.8
THIN = 2  # test images of a class that say little about it
FEW = 5  # training images of a class; with fewer it is tiny
NAMED = 3  # classes that a sentence names
IMBALANCE = 10  # times as many training images in the largest class as in the smallest
SMALL = 2  # times smaller than what the backbone reads


class Pair(NamedTuple):
    """The rows of a training image and of another one that almost looks like it."""

    train: int
    other: int


class Remark(NamedTuple):
    """A sentence on what is worth a look, and the rows that it is about, of near-duplicates those not for training."""

    message: str
    rows: tuple[int, ...] = ()


class Ways(NamedTuple):
    """What a user can do, in the words of whoever asked: a clause on where all pairs are, and a command.

    `together` is how images of one file name are put in one split, empty where they cannot be.
    """

    all_pairs: str = ""
    together: str = ""


def quality_warnings(
    dataset: Dataset,
    scan: ImageScan,
    *,
    input_side: int,
    pairs: Sequence[Pair] | None = None,
    ways: Ways = Ways(),  # noqa: B008  (a named tuple)
) -> tuple[Remark, ...]:
    """A sentence each on near-duplicates, class names and counts, and image sizes, as far as images were opened.

    `input_side` is the side in pixels of the images that the backbone reads, and `pairs` are near-duplicates that were
    found already.
    """
    found = near_pairs(dataset, scan) if pairs is None else pairs
    return (
        *figure_warnings(dataset, found, ways=ways),
        *_same_names(dataset, [*found, *leaking_rows(dataset, scan)], ways.together),
        *map(Remark, _imbalance(dataset)),
        *_small_images(scan, input_side, dataset),
    )


def figure_warnings(dataset: Dataset, pairs: Sequence[Pair], *, ways: Ways) -> tuple[Remark, ...]:
    """A sentence each on what makes figures too high, or silent about a class: near-duplicates, class names, counts."""
    sentences = (*_alike_names(dataset), *_untested(dataset), *_tiny(dataset))
    return (*_near_duplicates(dataset, pairs, ways.all_pairs), *map(Remark, sentences))


def near_pairs(dataset: Dataset, scan: ImageScan, *, on_step: OnStep | None = None) -> list[Pair]:
    """The training image that each other image almost looks like, if the scan has perceptual hashes."""
    train = {row: own for row, own in scan.hashes.items() if dataset.splits[row] == "train"}
    other = {row: own for row, own in scan.hashes.items() if dataset.splits[row] != "train"}
    return [
        Pair(first, second)
        for first, second, _ in near_duplicates(train, other, on_step=on_step)
        if scan.digests[first] != scan.digests[second]  # the same pixels are a problem of their own
    ]


def near_tests(dataset: Dataset, pairs: Sequence[Pair]) -> tuple[int, int]:
    """How many test images look almost like a training image, and how many of these have its file's name."""
    tested = [pair for pair in pairs if dataset.splits[pair.other] == "test"]
    describe = dataset.source.describe
    named = [pair for pair in tested if file_stem(describe(pair.train)) == file_stem(describe(pair.other))]
    return len({pair.other for pair in tested}), len({pair.other for pair in named})


def _near_duplicates(dataset: Dataset, pairs: Sequence[Pair], all_pairs: str) -> Iterator[Remark]:
    if pairs:
        first, second = pairs[0]
        looks = "image that is not for training looks" if len(pairs) == 1 else "images that are not for training look"
        yield Remark(
            f"{len(pairs):,} {looks} almost like a training image; if they show the same, figures are too high: "
            f"{dataset.source.describe(second)} ({dataset.splits[second]}) and {dataset.source.describe(first)} (train)"
            f"{' for one' if len(pairs) > 1 else ''}{f'; {all_pairs}' if all_pairs else ''}.",
            tuple(pair.other for pair in pairs),
        )


def _same_names(dataset: Dataset, groups: Sequence[tuple[int, ...]], together: str) -> Iterator[Remark]:
    """That most images which are in several splits, or almost, are files of one name, and how to keep these together.

    A group are the rows of images that are equal, or almost.
    """
    named = [rows for rows in groups if len({file_stem(dataset.source.describe(row)) for row in rows}) < len(rows)]
    if together and named and 2 * len(named) >= len(groups):
        first, second = (dataset.source.describe(row) for row in named[0][:2])
        yield Remark(
            f"Most images that are the same in several splits, or almost, have the same file name, such as {first} and "
            f"{second}. To keep files of one name in one split: {together}."
        )


def _alike_names(dataset: Dataset) -> Iterator[str]:
    """Classes with very few images whose name is almost that of one with many: perhaps a mistake in writing."""
    counts = _counts(dataset, None)
    rare = [(count, name) for count, name in counts if 0 < count <= RARE][:MOST_RARE]
    found = []
    for count, name in rare:
        common = {_letters(other): (many, other) for many, other in counts if many >= TIMES * count}
        for letters in get_close_matches(_letters(name), common, n=1, cutoff=ALIKE):
            many, other = common[letters]
            if _digits(name) == _digits(other):
                found.append(f"{name} ({plural(count, 'image')}) and {other} ({many:,})")
    if found:
        yield f"Are these the same class, written in two ways? {first_names(found, NAMED)}."


def _letters(name: str) -> str:
    return name.casefold().replace("_", " ")


def _digits(name: str) -> str:
    return "".join(filter(str.isdecimal, name))


def _counts(dataset: Dataset, split: str | None) -> list[tuple[int, str]]:
    """The number of images of a split, or of all, with each class, whether it is trained on or not, fewest first."""
    targets = dataset.targets if split is None else dataset.targets[dataset.rows(split=split)]
    if dataset.space.kind == "single":
        counts = torch.bincount(targets, minlength=len(dataset.space)).tolist()
    else:
        counts = (targets == 1).sum(dim=0).tolist()
    return sorted(zip(counts, dataset.space.names, strict=True))


def _untested(dataset: Dataset) -> Iterator[str]:
    counts = _counts(dataset, "test")
    missing = [name for count, name in counts if not count]
    if len(missing) == len(counts):  # without any test image, something else is said
        return
    if missing:
        yield untested(missing, len(counts), NAMED)
    if thin := [(count, name) for count, name in counts if 0 < count <= THIN]:
        yield (
            f"{len(thin):,} of {plural(len(counts), 'class')} {'has' if len(thin) == 1 else 'have'} only one or two "
            f"test images, which say little: {first_names([f'{name} ({count})' for count, name in thin], NAMED)}."
        )


def _tiny(dataset: Dataset) -> Iterator[str]:
    counts = _counts(dataset, "train")
    if tiny := [(count, name) for count, name in counts if 0 < count < FEW]:
        yield (
            f"{len(tiny):,} of {plural(len(counts), 'class')} {'has' if len(tiny) == 1 else 'have'} fewer than {FEW} "
            f"training images: {first_names([f'{name} ({count})' for count, name in tiny], NAMED)}."
        )


def _imbalance(dataset: Dataset) -> Iterator[str]:
    named = [one for one in _counts(dataset, "train") if one[0]]
    if len(named) > 1 and named[-1][0] >= IMBALANCE * named[0][0]:
        (few, rare), (many, common) = named[0], named[-1]
        yield (
            f"The classes are imbalanced: {common} has {plural(many, 'training image')} and {rare} has {few:,}; see "
            "the figures per class."
        )


def _small_images(scan: ImageScan, input_side: int, dataset: Dataset) -> Iterator[Remark]:
    small = [row for row, size in scan.sizes.items() if SMALL * min(size) <= input_side]
    if small:
        row = min(small, key=lambda one: min(scan.sizes[one]))
        width, height = scan.sizes[row]
        number = "is" if len(small) == 1 else "are"
        yield Remark(
            f"{len(small):,} of {plural(len(scan.sizes), 'image')} {number} at most half as large as what the backbone "
            f"reads ({input_side} x {input_side} pixels), and {number} enlarged: {dataset.source.describe(row)} has "
            f"{width} x {height}.",
            tuple(small),
        )
