"""Whether a download is complete and right, in seconds and without opening a picture, and what to do if it is not."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from fedprompt.data.published.catalog import list_set, odd_counts, other_version, reader, row, tally
from fedprompt.data.published.layouts.natives import NATIVES
from fedprompt.data.published.listing import Folder, Listing
from fedprompt.data.sources.image_folder import OnStep
from fedprompt.errors import UserError

FEW = 3


@dataclass(frozen=True)
class Examination:
    """What was found: counts by split and domain, problems with what to do, and remarks that stop nothing."""

    name: str
    folder: Path
    classes: int
    splits: Mapping[str, int]
    domains: Mapping[str, int]
    problems: tuple[str, ...]
    remarks: tuple[str, ...]


def examine(
    name: str, root: Path, *, options: Mapping[str, JsonValue] | None = None, on_step: OnStep | None = None
) -> Examination:
    """List a data set and compare it with the table; UserError where it cannot be listed at all, saying why.

    Pictures that are missing are a problem, as are classes or numbers of pictures other than published, classes
    without pictures, and an order of classes other than the download's own lists have.
    """
    path, listing, _ = list_set(name, root, options or {}, skip_missing=True, on_step=on_step)
    odd = odd_counts(name, listing)
    lost = [note for note in listing.notes if "are not there" in note]
    return Examination(
        name=name,
        folder=path,
        classes=len(listing.names),
        splits=Counter(listing.splits),
        domains={word: count for word, count in Counter(listing.domains).items() if word},
        problems=(
            *(
                f"{note} Unpack the archive again; runs can go on without them by data.missing = 'skip'."
                for note in lost
            ),
            *odd,
            *([f"This is another version or an incomplete copy: get it from {row(name).origin}."] if odd else []),
            *_bare(listing),
            *_other_order(name, path, listing),
        ),
        remarks=(*(note for note in listing.notes if note not in lost), *other_version(name, listing)),
    )


def _bare(listing: Listing) -> list[str]:
    bare = [name for name, count in zip(listing.names, tally(listing).tolist(), strict=True) if not count]
    if not bare:
        return []
    some = ", ".join(bare[:FEW])
    return [f"{len(bare)} class(es) have no picture, {some} for one; look for their folders in the archive."]


def _other_order(name: str, path: Path, listing: Listing) -> list[str]:
    """Where a published split stands beside the original lists, both must name the classes alike."""
    options = row(name).options
    if "native" not in inspect.signature(reader(row(name))).parameters:
        return []
    images, more = options.get("images", ["."]), options.get("options", {})
    folder = Folder(path)
    try:
        place = folder.find(images if isinstance(images, list) else [str(images)], "The folder of pictures")  # type: ignore[arg-type]
        names = NATIVES[str(options["native"])](folder, place, **(more if isinstance(more, dict) else {})).names
    except (UserError, KeyError, ValueError, IndexError):
        return []  # the original lists are not needed for the split
    wrong = next(
        (label for label, (one, other) in enumerate(zip(names, listing.names, strict=False)) if one != other), -1
    )
    if wrong < 0:
        return []
    return [
        f"The split calls label {wrong} {listing.names[wrong]!r}, the download's own lists {names[wrong]!r}: the split "
        "file is of another order of classes. Get it from CoOp's DATASETS.md."
    ]
