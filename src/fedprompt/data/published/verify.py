"""Verification of a download against the catalog, in seconds and without opening images, with a fix per problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from fedprompt.data.folder import DatasetFolder
from fedprompt.data.images import OnStep
from fedprompt.data.published.catalog import entry, layout_options, list_images
from fedprompt.data.published.layouts.original_lists import ORIGINAL_LISTS
from fedprompt.data.published.listing import Listing
from fedprompt.errors import UserError, plural

MAX_NAMED = 3  # classes that a message names


@dataclass(frozen=True)
class Verification:
    """Counts per split and domain, problems with what to do about them, and remarks that stop nothing."""

    name: str
    folder: Path
    classes: int
    splits: Mapping[str, int]
    domains: Mapping[str, int]
    problems: tuple[str, ...]
    remarks: tuple[str, ...]


def verify(
    name: str, root: Path, *, options: Mapping[str, JsonValue] | None = None, on_step: OnStep | None = None
) -> Verification:
    """List a data set and compare it with the catalog; UserError if it cannot be listed at all, saying why.

    Problems are missing images, numbers of classes or images other than published, classes without images, and an
    order of classes that differs from the download's own lists.
    """
    path, listing, _ = list_images(name, root, options or {}, skip_missing=True, on_step=on_step)
    counts = differences(name, listing)
    missing, unpack = listing.missing_note, "Unpack the archive again; data.missing = 'skip' runs without them."
    return Verification(
        name=name,
        folder=path,
        classes=len(listing.names),
        splits=Counter(listing.splits),
        domains={domain: count for domain, count in Counter(listing.domains).items() if domain},
        problems=(
            *([f"{missing} {unpack}"] if missing else []),
            *counts,
            *([f"This is another version or an incomplete copy: get it from {entry(name).origin}."] if counts else []),
            *_classes_without_images(listing),
            *_class_order_differences(name, path, listing),
        ),
        remarks=(*listing.notes, *other_version(name, listing)),
    )


def differences(name: str, listing: Listing) -> tuple[str, ...]:
    """How numbers of classes and images differ from the published version, in sentences; empty if they do not."""
    about = entry(name)
    found = []
    if about.classes and len(listing.names) != about.classes:
        found.append(f"{about.title} has {about.classes} classes, but {len(listing.names)} were found.")
    counts = Counter(listing.splits)
    wrong = [
        f"{split} {counts[split]:,} instead of {count:,}"
        for split, count in about.counts.items()
        if counts[split] != count
    ]
    if wrong:
        found.append(f"{about.title} has other numbers of images than published: {', '.join(wrong)}.")
    if about.test_halves is not None and (halves := _test_halves(listing)) != about.test_halves:
        found.append(f"{about.title} has {halves} test images of base and new classes instead of {about.test_halves}.")
    domains, total = Counter(listing.domains), len(listing.files)
    if about.domains and total not in (sum(about.domains.values()), *about.other_versions.values()):
        wrong = [
            f"{domain} {domains[domain]:,} ({count:,})"
            for domain, count in about.domains.items()
            if domains[domain] != count
        ]
        found.append(f"{about.title} has {total:,} images, unlike any known version: {', '.join(wrong)}.")
    return tuple(found)


def other_version(name: str, listing: Listing) -> tuple[str, ...]:
    """A sentence naming the version of a copy, if it is a known one other than the published."""
    about, total = entry(name), len(listing.files)
    version = next((version for version, count in about.other_versions.items() if count == total), "")
    return (f"{about.title} is {version} with {total:,} images; mention that with results.",) if version else ()


def _test_halves(listing: Listing) -> tuple[int, int]:
    half = -(-len(listing.names) // 2)
    labels = [label for label, split in zip(listing.targets.tolist(), listing.splits, strict=True) if split == "test"]
    return sum(label < half for label in labels), sum(label >= half for label in labels)


def _classes_without_images(listing: Listing) -> list[str]:
    counts = listing.images_per_class().tolist()
    empty = [name for name, count in zip(listing.names, counts, strict=True) if not count]
    if not empty:
        return []
    some = ", ".join(empty[:MAX_NAMED])
    count = plural(len(empty), "class")
    return [f"Without an image: {count}, for example {some}; look for their folders in the archive."]


def _class_order_differences(name: str, path: Path, listing: Listing) -> list[str]:
    """If a published split comes with the original lists, both must name the classes in the same order."""
    about = entry(name)
    if "original" not in layout_options(about):
        return []
    images, more = about.options.get("images", ["."]), about.options.get("options", {})
    folder = DatasetFolder(path)
    try:
        place = folder.find(images if isinstance(images, list) else [str(images)], "The folder of images")  # type: ignore[arg-type]
        read = ORIGINAL_LISTS[str(about.options["original"])]
        names = read(folder, place, **(more if isinstance(more, dict) else {})).names
    except (UserError, KeyError, ValueError, IndexError):
        return []  # the original lists are not needed for the split
    wrong = next(
        (label for label, (one, other) in enumerate(zip(names, listing.names, strict=False)) if one != other), -1
    )
    if wrong < 0:
        return []
    return [
        f"The split calls label {wrong} {listing.names[wrong]!r}, the download's own lists {names[wrong]!r}: the split "
        "file has another order of classes. Get it from CoOp's DATASETS.md."
    ]
