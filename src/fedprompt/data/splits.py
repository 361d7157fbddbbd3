"""Train/val/test splits drawn from a seed and each image's path where none is given."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Sequence
from unicodedata import normalize

from fedprompt.errors import UserError
from fedprompt.seeding import seed_for

FRACTIONS = (0.5, 0.2)  # train and val of every class; the rest is for testing
STRATIFIED_ORIGIN = f"drawn with the seed {{seed}}, {1 - sum(FRACTIONS):.0%} test and {FRACTIONS[1]:.0%} validation"
VALIDATION = 0.2  # of an official training split


def draw_stratified_splits(
    files: Sequence[str],
    groups: Sequence[Hashable],
    *,
    seed: int,
    fractions: tuple[float, float] = FRACTIONS,
    contents: Sequence[int] = (),
) -> list[str]:
    """Stratified split: of each group (a class, or a class of a domain) exactly these fractions are train and val.

    The order of the files does not matter, but adding one may move others. A group of two or more images has at least
    one for training and one for testing. Rows with the same number in `contents` are copies of one image: one of them
    is drawn, and the others follow it.
    """
    splits = ["test"] * len(files)
    drawn = _first_copies(files, contents)
    for rows in _shuffled(files, groups, seed, among=set(drawn)).values():
        train = max(1, round(fractions[0] * len(rows)))
        val = min(round(fractions[1] * len(rows)), max(0, len(rows) - train - 1))
        for place, row in enumerate(rows[: train + val]):
            splits[row] = "train" if place < train else "val"
    return _followed(splits, drawn, files, groups)


def draw_independent_splits(
    files: Sequence[str],
    groups: Sequence[Hashable],
    *,
    test_fraction: float,
    seed: int,
    contents: Sequence[int] = (),
) -> list[str]:
    """Each image is for testing with probability `test_fraction`, whatever other images there are.

    Adding a file therefore moves no other, except that each group keeps at least one image for training and, if it has
    two, one for testing. Paths count in Unicode NFC. Rows with the same number in `contents` are copies of one image:
    the first of their paths is drawn, and the others follow it.
    """
    drawn = _first_copies(files, contents)
    draws = [seed_for(seed, "split", *normalize("NFC", file).split("/")) / 2**63 for file in files]  # uniform in [0, 1)
    splits = ["test" if draw < test_fraction else "train" for draw in draws]
    rows_by_group = defaultdict(list)
    for row, group in enumerate(groups):
        if drawn[row] == row:
            rows_by_group[group].append(row)
    for rows in rows_by_group.values():
        rows.sort(key=draws.__getitem__)
        if test_fraction > 0:
            splits[rows[0]] = "test"
        splits[rows[-1]] = "train"
    return _followed(splits, drawn, files, groups)


def _first_copies(files: Sequence[str], contents: Sequence[int]) -> list[int]:
    """For each row the one among its copies whose path comes first; itself without `contents`."""
    if not contents:
        return list(range(len(files)))
    first: dict[int, int] = {}
    for row in sorted(range(len(files)), key=lambda row: normalize("NFC", files[row])):
        first.setdefault(contents[row], row)
    return [first[content] for content in contents]


def _followed(
    splits: Sequence[str], drawn: Sequence[int], files: Sequence[str], groups: Sequence[Hashable]
) -> list[str]:
    """The split of each row's first copy; a group that is left without a training image gets one, with its copies."""
    found = [splits[row] for row in drawn]
    trained = {group for group, split in zip(groups, found, strict=True) if split == "train"}
    for row in sorted(range(len(files)), key=files.__getitem__) if len(trained) < len(set(groups)) else ():
        if groups[row] not in trained:
            copies = [other for other, first in enumerate(drawn) if first == drawn[row]]
            trained.update(groups[other] for other in copies)
            for other in copies:
                found[other] = "train"
    return found


def draw_validation(
    files: Sequence[str], groups: Sequence[Hashable], official: Sequence[str], *, seed: int
) -> list[str]:
    """Stratified validation split: a fifth of each group's official training images; the test split is kept."""
    splits = list(official)
    training = [row for row, split in enumerate(official) if split == "train"]
    drawn = _shuffled([files[row] for row in training], [groups[row] for row in training], seed)
    for rows in drawn.values():
        for place in rows[: round(VALIDATION * len(rows))]:
            splits[training[place]] = "val"
    return splits


def _shuffled(
    files: Sequence[str], groups: Sequence[Hashable], seed: int, *, among: Collection[int] | None = None
) -> dict[Hashable, list[int]]:
    rows = defaultdict(list)
    for row, group in enumerate(groups):
        if among is None or row in among:
            rows[group].append(row)
    return {group: sorted(own, key=lambda row: seed_for(seed, "split", files[row])) for group, own in rows.items()}


def drawn_origin(test_fraction: float, seed: int) -> str:
    """Where a split comes from that `draw_independent_splits` has drawn, in words."""
    return f"drawn with the seed {seed}, {100 * test_fraction:g}% for testing"


def check_test_fraction(fraction: float, *, name: str = "test_fraction") -> None:
    """UserError unless 0 <= fraction < 1; `name` is that of the option."""
    if not 0 <= fraction < 1:
        raise UserError(f"{name} must be at least 0 and less than 1, not {fraction}.")


def first_half(classes: int) -> tuple[int, ...]:
    """The label ids of the base classes in base-to-new evaluation, the larger half."""
    return tuple(range(-(-classes // 2)))


def base_and_new(classes: int, base: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Label ids of base and new classes: the first half and the second ("half"), or all and none ("all")."""
    known = first_half(classes) if base == "half" else tuple(range(classes))
    return known, tuple(range(len(known), classes))
