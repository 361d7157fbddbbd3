"""Pictures that cannot be read: found before the first round, left out, listed, and too many of them refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from fedprompt.data.dataset import Dataset
from fedprompt.data.folder import OnStep
from fedprompt.data.images import ImageSource, JoinedSource
from fedprompt.data.partition.base import Partition
from fedprompt.data.problems import ImageScan, scan_images
from fedprompt.errors import UserError

UNASKED = ("train", "val")  # splits that nothing is tested on; of the first, the partition has what is used


class UnreadableError(UserError):
    """More pictures cannot be read than the recipe allows."""


@dataclass(frozen=True)
class LeftOut:
    """A picture that a run does without: whose it would have been, and why it cannot be read."""

    row: int
    picture: str
    place: str
    reason: str


def look_through(
    dataset: Dataset, partition: Partition, *, whole: bool, workers: int, on_step: OnStep | None = None
) -> ImageScan:
    """Open the pictures that a run uses, or all of the `whole` data set; what a program draws is always readable."""
    if _drawn(dataset.source):
        return ImageScan({}, {})
    used = sorted(set(chain.from_iterable(_places(dataset, partition).values())))
    rows = range(len(dataset.source)) if whole else used
    return scan_images(dataset.source, rows, workers=workers, on_step=on_step)


def sift(
    dataset: Dataset, partition: Partition, unreadable: Mapping[int, str], *, share: float
) -> tuple[Dataset, Partition, tuple[LeftOut, ...]]:
    """Data set and partition without the unreadable rows, and those that were used, each once.

    Nothing is dealt out or drawn again: who loses a picture has one less. Raises UnreadableError where a client's
    training pictures, or a data set's training or test pictures, lose more than `share` and more than one, any at all
    if `share` is 0, or all.
    """
    found: dict[int, LeftOut] = {}
    for place, rows in _places(dataset, partition).items() if unreadable else ():
        lost = [LeftOut(row, dataset.source.describe(row), place, unreadable[row]) for row in rows if row in unreadable]
        allowed = min(max(1, int(share * len(rows))), len(rows) - 1) if share else 0
        if lost and len(lost) > allowed:
            more = f" {len(lost) - 1} more are listed by: fedprompt check RECIPE." if len(lost) > 1 else ""
            raise UnreadableError(
                f"{len(lost)} of the {len(rows)} {place} cannot be read; with [data] unreadable = {share:g} a run does "
                f"without {allowed} at most. {lost[0].reason}{more}"
            )
        found = {one.row: one for one in lost} | found
    return dataset.without(found), partition.without(found), tuple(found[row] for row in sorted(found))


def _places(dataset: Dataset, partition: Partition) -> dict[str, Sequence[int]]:
    """The rows that a run uses: of every client, and of every data set for training and for testing."""
    words = dict.fromkeys(word for word in dataset.splits if word not in UNASKED)
    used = {
        "training": list(chain.from_iterable(shard.rows for shard in partition.shards)),
        "test": list(chain.from_iterable(dataset.rows(split=word).tolist() for word in words)),
    }
    places: dict[str, Sequence[int]] = {f"training pictures of {shard.name}": shard.rows for shard in partition.shards}
    for what, rows in used.items():
        owned: list[list[int]] = [[] for _ in dataset.parts]
        for row in rows:
            owned[dataset.part_of(row)].append(row)
        places |= {f"{what} pictures of {part.name}": own for part, own in zip(dataset.parts, owned, strict=True)}
    return places


def _drawn(source: ImageSource) -> bool:
    if isinstance(source, JoinedSource):
        return all(map(_drawn, source.sources))
    return bool(getattr(source, "drawn", False))
