"""Train/val/test splits drawn from a seed and each image's path where none is given."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from unicodedata import normalize

from fedprompt.errors import UserError
from fedprompt.seeding import seed_for

FRACTIONS = (0.5, 0.2)  # train and val of every class; the rest is for testing
DRAWN = "drawn"  # how an origin of splits begins that no file has given
STRATIFIED_ORIGIN = f"{DRAWN} with the seed {{seed}}, {1 - sum(FRACTIONS):.0%} test and {FRACTIONS[1]:.0%} validation"
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


def draw_test_splits(
    files: Sequence[str],
    groups: Sequence[Hashable],
    *,
    test_fraction: float,
    seed: int,
    labels: Sequence[Sequence[int]] = (),
    contents: Sequence[int] = (),
) -> list[str]:
    """Stratified split in two: `test_fraction` of each group (a class, or a class of a domain) is for testing, rounded.

    Each image has a number drawn from the seed and its own path, and those with the smallest are for testing: adding a
    file moves one other of its group at most. A group of two or more images has one for training and one for testing,
    unless the fraction is 0. With `labels` ([N, C], 1 where an image has the label) groups are domains, and each label
    is stratified in its group, the rarest first, since common ones can be balanced by images that are left (Sechidis
    et al., "On the Stratification of Multi-Label Data", 2011). Paths count in Unicode NFC. Rows with the same number in
    `contents` are copies of one image: the first of their paths is drawn, and the others follow it.
    """
    drawn = _first_copies(files, contents)
    draws = [seed_for(seed, "split", *normalize("NFC", file).split("/")) for file in files]
    rows_by_group = defaultdict(list)
    for row, group in enumerate(groups):
        if drawn[row] == row:
            rows_by_group[group].append(row)
    splits = ["train"] * len(files)
    for rows in rows_by_group.values():
        rows.sort(key=draws.__getitem__)
        own = {row: [label for label, value in enumerate(labels[row]) if value == 1] for row in rows} if labels else {}
        for row in _stratified(rows, own, test_fraction) if own else rows[: _tested(len(rows), test_fraction)]:
            splits[row] = "test"
    return _followed(splits, drawn, files, groups)


def _tested(images: int, fraction: float) -> int:
    """How many of so many images are for testing: at least one of two or more, and never all."""
    return 0 if fraction <= 0 or images < 2 else min(images - 1, max(1, round(fraction * images)))


def _stratified(rows: Sequence[int], labels: Mapping[int, Sequence[int]], fraction: float) -> list[int]:
    """The rows for testing, of those in the order of their draws, such that each label has its share of them."""
    having = defaultdict(list)
    for row in rows:
        for label in labels[row]:
            having[label].append(row)
    tested: set[int] = set()
    dealt: set[int] = set()
    for label in sorted(having, key=lambda label: (len(having[label]), label)):
        wanted = _tested(len(having[label]), fraction) - sum(row in tested for row in having[label])
        left = [row for row in having[label] if row not in dealt]
        tested.update(left[: max(0, wanted)])
        dealt.update(left)
    without = [row for row in rows if row not in dealt]
    tested.update(without[: round(fraction * len(without))])
    if not tested:
        return list(rows[: _tested(len(rows), fraction)])
    return [row for row in rows if row in tested][: max(len(rows) - 1, 1)]


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
    """Where a split comes from that `draw_test_splits` has drawn, in words."""
    return f"{DRAWN} with the seed {seed}, {100 * test_fraction:g}% of each class for testing"


def is_drawn(origins: Mapping[str, str]) -> bool:
    """Whether `draw_test_splits` has drawn a split, by where the parts of a data set come from in words."""
    return origins.get("splits", "").startswith(DRAWN)


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
