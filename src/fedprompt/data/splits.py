"""Splits drawn by us where none was published: from the seed and each picture's own path, never stored by hand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

from fedprompt.seeding import seed_for

FRACTIONS = (0.5, 0.2)  # train and val of every class; the rest is for testing
VALIDATION = 0.2  # of an official training part


def draw_splits(
    files: Sequence[str],
    groups: Sequence[Hashable],
    *,
    seed: int,
    fractions: tuple[float, float] = FRACTIONS,
) -> list[str]:
    """Within each group (a class, or a class of a domain) the first shares by their draws are for train and val.

    The order of the files does not matter. A group of two or more pictures has one for training and one for testing.
    """
    splits = ["test"] * len(files)
    for rows in _shuffled(files, groups, seed).values():
        train = max(1, round(fractions[0] * len(rows)))
        val = min(round(fractions[1] * len(rows)), max(0, len(rows) - train - 1))
        for place, row in enumerate(rows[: train + val]):
            splits[row] = "train" if place < train else "val"
    return splits


def draw_validation(
    files: Sequence[str], groups: Sequence[Hashable], official: Sequence[str], *, seed: int
) -> list[str]:
    """Keep the official test part and move a fifth of every group's training part to val."""
    splits = list(official)
    training = [row for row, word in enumerate(official) if word == "train"]
    drawn = _shuffled([files[row] for row in training], [groups[row] for row in training], seed)
    for rows in drawn.values():
        for place in rows[: round(VALIDATION * len(rows))]:
            splits[training[place]] = "val"
    return splits


def _shuffled(files: Sequence[str], groups: Sequence[Hashable], seed: int) -> dict[Hashable, list[int]]:
    rows = defaultdict(list)
    for row, group in enumerate(groups):
        rows[group].append(row)
    return {group: sorted(own, key=lambda row: seed_for(seed, "split", files[row])) for group, own in rows.items()}
