"""What is worth a look in a data set and is no mistake: near-duplicates, imbalance, tiny classes, small images."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fedprompt.data.dataset import Dataset
from fedprompt.data.images import OnStep
from fedprompt.data.near_duplicates import near_duplicates
from fedprompt.data.problems import ImageScan
from fedprompt.errors import first_names, plural, untested

FEW = 5  # training images of a class; with fewer it is tiny
NAMED = 3  # classes that a sentence names
IMBALANCE = 10  # times as many training images in the largest class as in the smallest
SMALL = 2  # times smaller than what the backbone reads


def quality_warnings(
    dataset: Dataset, scan: ImageScan, *, input_side: int, on_step: OnStep | None = None
) -> tuple[str, ...]:
    """A sentence each on near-duplicates, class counts and image sizes, as far as images were opened.

    `input_side` is the side in pixels of the images that the backbone reads. Near-duplicates are looked for if the scan
    has perceptual hashes.
    """
    return (
        *figure_warnings(dataset, scan, on_step=on_step),
        *_imbalance(dataset),
        *_small_images(scan, input_side, dataset),
    )


def figure_warnings(dataset: Dataset, scan: ImageScan, *, on_step: OnStep | None = None) -> tuple[str, ...]:
    """A sentence each on what makes figures too high, or silent about a class: near-duplicates and class counts."""
    return (*_near_duplicates(dataset, scan, on_step), *_untested(dataset), *_tiny(dataset))


def _near_duplicates(dataset: Dataset, scan: ImageScan, on_step: OnStep | None) -> Iterator[str]:
    train = {row: own for row, own in scan.hashes.items() if dataset.splits[row] == "train"}
    other = {row: own for row, own in scan.hashes.items() if dataset.splits[row] != "train"}
    pairs = [
        (first, second)
        for first, second, _ in near_duplicates(train, other, on_step=on_step)
        if scan.digests[first] != scan.digests[second]  # the same pixels are a problem of their own
    ]
    if pairs:
        first, second = pairs[0]
        looks = "image that is not for training looks" if len(pairs) == 1 else "images that are not for training look"
        yield (
            f"{len(pairs):,} {looks} almost like a training image; if they show the same, figures are too high: "
            f"{dataset.source.describe(second)} ({dataset.splits[second]}) and {dataset.source.describe(first)} (train)"
            f"{' for one' if len(pairs) > 1 else ''}."
        )


def _counts(dataset: Dataset, split: str) -> list[tuple[int, str]]:
    """The number of images of a split with each class, whether it is trained on or not, fewest first."""
    targets = dataset.targets[dataset.rows(split=split)]
    if dataset.space.kind == "single":
        counts = torch.bincount(targets, minlength=len(dataset.space)).tolist()
    else:
        counts = (targets == 1).sum(dim=0).tolist()
    return sorted(zip(counts, dataset.space.names, strict=True))


def _untested(dataset: Dataset) -> Iterator[str]:
    counts = _counts(dataset, "test")
    missing = [name for count, name in counts if not count]
    if missing and len(missing) < len(counts):  # without any test image, something else is said
        yield untested(missing, len(counts), NAMED)


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


def _small_images(scan: ImageScan, input_side: int, dataset: Dataset) -> Iterator[str]:
    small = [row for row, size in scan.sizes.items() if SMALL * min(size) <= input_side]
    if small:
        row = min(small, key=lambda one: min(scan.sizes[one]))
        width, height = scan.sizes[row]
        number = "is" if len(small) == 1 else "are"
        yield (
            f"{len(small):,} of {plural(len(scan.sizes), 'image')} {number} at most half as large as what the backbone "
            f"reads ({input_side} x {input_side} pixels), and {number} enlarged: {dataset.source.describe(row)} has "
            f"{width} x {height}."
        )
