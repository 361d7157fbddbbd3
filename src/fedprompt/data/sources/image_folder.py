"""Single-label images in class folders, or in domain and class folders: `<class>/*` or `<domain>/<class>/*`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from fedprompt.data.dataset import Dataset
from fedprompt.data.decode import Bands, Window
from fedprompt.data.descriptions import known_class, read_attributes
from fedprompt.data.file_source import FileSource
from fedprompt.data.folder import SUFFIXES, OnStep, is_image, nfc, visible
from fedprompt.data.labels import LabelSpace
from fedprompt.data.splits import SPLIT_NAMES, base_and_new, check_test_fraction, draw_independent_splits
from fedprompt.errors import UserError

DEPTHS = {"classes": 2, "domains": 3}  # path parts of an image below the root (or below a split folder)

Parts = tuple[str, ...]  # a path below the root
Layout = Literal["auto", "classes", "domains"]


def image_folder(  # noqa: PLR0913  (every option has a default, and a recipe names them all)
    *,
    path: Path,
    seed: int = 0,
    test_fraction: float = 0.25,
    layout: Layout = "auto",
    base: Literal["half", "all"] | tuple[str, ...] = "half",
    unseen_domains: tuple[str, ...] = (),
    template: str = "a photo of a {}.",
    window: Window | None = None,
    bands: Bands | None = None,
    on_step: OnStep | None = None,
) -> Dataset:
    """Read `path/<class>/*` or `path/<domain>/<class>/*`, either also below `train` and `test` (or `val`) folders.

    Classes and domains are the folder names in bytewise order (Unicode NFC). Without split folders an image is drawn
    for testing with probability `test_fraction` from the seed and its own path, so adding files moves no other, except
    that of two or more images of a class (and domain) one is always for training and one for testing.
    `base` are the classes seen in training: the first half (the larger one), all, or those named. An `attributes.json`
    beside the class folders, `{"class name": ["phrase", ...]}`, gives attributes. Hidden files, and files without the
    suffix of an image format, are ignored. Raises UserError for a folder that is missing, empty, or ambiguous.
    """
    root = Path(path).expanduser()
    check_test_fraction(test_fraction)
    images, empty = _walk(root, on_step)
    splits = _split_folders(root, images)
    places = [parts[1:] for parts in images] if splits else images
    depth = _depth(root, places, layout)
    classes = [nfc(parts[depth - 2]) for parts in places]
    domains = [nfc(parts[0]) if depth == DEPTHS["domains"] else "" for parts in places]
    names = tuple(sorted(set(classes)))
    _refuse_empty(root, empty, names)
    labels = {name: label for label, name in enumerate(names)}
    known, new = _base_and_new(labels, base)
    files = tuple("/".join(parts) for parts in images)
    if not splits:
        groups = list(zip(domains, classes, strict=True))
        splits = draw_independent_splits(files, groups, test_fraction=test_fraction, seed=seed)
    return Dataset(
        name=root.resolve().name,
        source=FileSource(root, files, window, bands=bands),
        space=LabelSpace(names, template=template, attributes=read_attributes(root, names)),
        targets=torch.tensor([labels[name] for name in classes]),
        splits=tuple(splits),
        domains=tuple(domains),
        base=known,
        new=new,
        unseen_domains=unseen_domains,
    )


def _walk(root: Path, on_step: OnStep | None) -> tuple[list[Parts], list[Parts]]:
    """All images, sorted, and all folders that hold neither images nor folders."""
    if not root.is_dir():
        raise UserError(f"There is no folder {root}; give the folder that holds one folder of images per class.")
    images: list[Parts] = []
    empty: list[Parts] = []
    total = 1  # folders known so far
    walk = os.walk(root, onerror=_refuse_unreadable, followlinks=True)
    for number, (folder, folders, files) in enumerate(walk, start=1):
        parts = Path(folder).relative_to(root).parts
        # No layout is deeper, and a link to a folder above would never end.
        folders[:] = [name for name in folders if visible(name)] if len(parts) <= DEPTHS["domains"] else []
        found = [(*parts, name) for name in files if visible(name) and is_image(name)]
        images += found
        if not found and not folders:
            empty.append(parts)
        total += len(folders)
        if on_step is not None:
            on_step(number, total)
    if not images:
        raise UserError(f"{root} holds no images ({' '.join(SUFFIXES)}); give it one folder of them per class.")
    for parts in images:
        if any("\ud800" <= letter <= "\udfff" for letter in "".join(parts)):
            raise UserError(f"The name {'/'.join(parts)!r} in {root} is not valid UTF-8; rename that file or folder.")
    return sorted(images), empty


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(f"The folder {error.filename} cannot be read ({error.strerror}); check its permissions.") from error


def _refuse_empty(root: Path, empty: Sequence[Parts], names: Sequence[str]) -> None:
    # A class may be missing in one domain or split, not in all of them.
    for parts in empty:
        if nfc(parts[-1]) not in names:
            kinds = " ".join(SUFFIXES)
            raise UserError(f"The folder {root.joinpath(*parts)} holds no images ({kinds}); add some or remove it.")


def _split_folders(root: Path, images: Sequence[Parts]) -> list[str]:
    """The split of every image if the top folders are splits, else nothing."""
    by_folder = {parts[0]: SPLIT_NAMES.get(parts[0].lower(), "") for parts in images}
    found = set(by_folder.values())
    if "" in found:
        return []
    if len(found) == 1 or "train" not in found:
        have = " and ".join(sorted(by_folder))
        raise UserError(
            f"{root} holds {have} and nothing else: add a train and a test folder, "
            "or give the folder inside it, from which a test split is drawn."
        )
    if "test" not in found:
        by_folder = {folder: "test" if split == "val" else split for folder, split in by_folder.items()}
    return [by_folder[parts[0]] for parts in images]


def _depth(root: Path, places: Sequence[Parts], layout: Layout) -> int:
    """The number of parts of an image's path below its split folder; UserError if the layout is ambiguous."""
    depths = {len(parts): "/".join(parts) for parts in places}
    if layout != "auto":
        for wrong in depths.keys() - {DEPTHS[layout]}:
            raise UserError(f"{depths[wrong]} in {root} does not fit the layout {layout!r}; move it or change that.")
        return DEPTHS[layout]
    if len(depths) > 1 or not depths.keys() <= set(DEPTHS.values()):
        shown = " and ".join(depths[depth] for depth in sorted(depths))
        raise UserError(
            f"It is not clear which folders of {root} are classes, with images at {shown}; "
            "put all of them into <class>/ or all into <domain>/<class>/."
        )
    depth = next(iter(depths))
    folders = {parts[:-1] for parts in places}
    if depth == DEPTHS["domains"] and len({nfc(name) for _, name in folders}) == len(folders):
        raise UserError(
            f"It is not clear which folders of {root} are classes: no inner folder, like {'/'.join(min(folders))}, "
            "occurs in two outer ones. Set layout to 'domains' if the outer ones are domains, or give an inner folder."
        )
    return depth


def _base_and_new(
    labels: Mapping[str, int], base: Literal["half", "all"] | Sequence[str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if isinstance(base, str):
        return base_and_new(len(labels), base)
    known = tuple(labels[known_class(name, labels, "base")] for name in base)
    return known, tuple(sorted(set(labels.values()) - set(known)))
