"""Unreadable images: found before the first round, left out of the run and listed; too many of them are an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from fedprompt.data.dataset import Dataset
from fedprompt.data.images import ImageSource, JoinedSource, OnStep
from fedprompt.data.partition.base import Partition
from fedprompt.data.problems import ImageScan, scan_images
from fedprompt.errors import UserError, wording

MOST_HASHED = 20_000  # images; hashing more would take longer than half a minute
UNREADABLE = "unreadable"  # the reason for which rows are excluded
VALIDATION = "val"  # a split that is used only where a round is chosen by it


class UnreadableError(UserError):
    """More images are unreadable than the recipe allows."""


@dataclass(frozen=True)
class UnreadableImage:
    """An image that a run leaves out: its row and name, where it was used, and why it cannot be read."""

    row: int
    picture: str
    place: str
    reason: str


def scan_used_images(
    dataset: Dataset,
    partition: Partition,
    *,
    whole: bool,
    workers: int,
    validates: bool = False,
    on_step: OnStep | None = None,
) -> ImageScan:
    """Open the images that a run uses, or all of the `whole` data set; images drawn by a program need no scan.

    Perceptual hashes are computed of `MOST_HASHED` images at most, as that takes a millisecond or two per image.

    A run that `validates` uses the validation part too.
    """
    if _drawn(dataset.source):
        return ImageScan({}, {})
    used = sorted(set(chain.from_iterable(_places(dataset, partition, validates=validates).values())))
    rows = range(len(dataset.source)) if whole else used
    return scan_images(dataset.source, rows, workers=workers, perceptual=len(rows) <= MOST_HASHED, on_step=on_step)


def exclude_unreadable(
    dataset: Dataset, partition: Partition, unreadable: Mapping[int, str], *, share: float, validates: bool = False
) -> tuple[Dataset, Partition, tuple[UnreadableImage, ...]]:
    """Data set and partition without the unreadable rows, and a list of those that the run would have used.

    Nothing is partitioned or drawn anew: a client that loses an image has one less. Raises UnreadableError if of a
    client's training images, or of a data set's training or test images, more than `share` and more than one are
    unreadable, or all; if `share` is 0, for a single one.
    """
    found: dict[int, UnreadableImage] = {}
    for place, rows in _places(dataset, partition, validates=validates).items() if unreadable else ():
        lost = [
            UnreadableImage(row, dataset.source.describe(row), place, unreadable[row])
            for row in rows
            if row in unreadable
        ]
        allowed = min(max(1, int(share * len(rows))), len(rows) - 1) if share else 0
        if lost and len(lost) > allowed:
            checker = "fedprompt check RECIPE" if wording() == "shell" else "fedprompt.check(data)"
            more = f" {len(lost) - 1} more are listed by: {checker}." if len(lost) > 1 else ""
            raise UnreadableError(
                f"{len(lost)} of the {len(rows)} {place} cannot be read; with [data] unreadable = {share:g} a run does "
                f"without {allowed} at most. {lost[0].reason}{more}"
            )
        found = {one.row: one for one in lost} | found
    return (
        dataset.without(found, reason=UNREADABLE),
        partition.without(found),
        tuple(found[row] for row in sorted(found)),
    )


def _places(dataset: Dataset, partition: Partition, *, validates: bool) -> dict[str, Sequence[int]]:
    """The rows that a run uses: per client, and per data set for training and for testing."""
    unused = ("train",) if validates else ("train", VALIDATION)  # of "train" the rows in the partition are used
    splits = dict.fromkeys(split for split in dataset.splits if split not in unused)
    used = {
        "training": list(chain.from_iterable(shard.rows for shard in partition.shards)),
        "test": list(chain.from_iterable(dataset.rows(split=split).tolist() for split in splits)),
    }
    places: dict[str, Sequence[int]] = {f"training images of {shard.name}": shard.rows for shard in partition.shards}
    for what, rows in used.items():
        owned: list[list[int]] = [[] for _ in dataset.parts]
        for row in rows:
            owned[dataset.part_of(row)].append(row)
        places |= {f"{what} images of {part.name}": own for part, own in zip(dataset.parts, owned, strict=True)}
    return places


def _drawn(source: ImageSource) -> bool:
    if isinstance(source, JoinedSource):
        return all(map(_drawn, source.sources))
    return bool(getattr(source, "drawn", False))
