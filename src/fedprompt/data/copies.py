"""Copies of images: files with the same bytes, which belong to the same split, and what is said of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import PurePosixPath
from unicodedata import normalize

TAIL = 4096  # bytes at the end of a file, which differ in most images of the same size


def same_content(count: int, keys: Iterable[Callable[[int], Hashable]]) -> tuple[int, ...]:
    """For each of `count` rows the first row with the same content, which is the row itself if it is no copy.

    `keys` say what rows have in common, the cheapest first; only rows that agree in one are asked for the next.
    """
    alike = [list(range(count))]
    for key in keys:
        finer: list[list[int]] = []
        for rows in alike:
            same: dict[Hashable, list[int]] = defaultdict(list)
            for row in rows:
                same[key(row)].append(row)
            finer += [own for own in same.values() if len(own) > 1]
        alike = finer
    first = list(range(count))
    for rows in alike:
        for row in rows:
            first[row] = rows[0]
    return tuple(first)


def with_same_names(contents: Sequence[int], files: Sequence[str]) -> tuple[int, ...]:
    """`contents`, where images whose files have the same name, in any folder, count as copies of one another too."""
    first = list(contents or range(len(files)))

    def root(row: int) -> int:
        while first[row] != row:
            row = first[row]
        return row

    named: dict[str, int] = {}
    for row, file in enumerate(files):
        other = root(named.setdefault(file_stem(file), row))
        own = root(row)
        first[max(own, other)] = min(own, other)
    return tuple(map(root, range(len(files))))


def file_stem(path: str) -> str:
    """The name of a file without folders and suffix, in Unicode NFC."""
    return PurePosixPath(normalize("NFC", path)).stem


def copies_remark(contents: Sequence[int], names: Sequence[str], *, place: str) -> tuple[str, ...]:
    """A sentence on the copies among images whose split is drawn, if there are any."""
    copies = [row for row, first in enumerate(contents) if row != first]
    if not copies:
        return ()
    row = copies[0]
    one = len(copies) == 1
    return (
        f"{place}: {len(copies):,} image{' is a copy' if one else 's are copies'} of another one, byte for byte: "
        f"{names[row]} of {names[contents[row]]}{'' if one else ' for one'}. All copies of an image are in the same "
        "split.",
    )
