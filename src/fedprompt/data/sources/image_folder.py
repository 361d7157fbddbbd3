"""Data sets from files: a folder of class folders is a data set, with no code and no list of files to write."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from fedprompt.data.dataset import Dataset
from fedprompt.data.decode import Bands, Window, decode
from fedprompt.data.descriptions import read_descriptions
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError, did_you_mean
from fedprompt.seeding import seed_for

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
DEPTHS = {"classes": 2, "domains": 3}  # path parts of a picture below the root (or below a split folder)
HASHED_BYTES = 1 << 28  # the content of data sets up to this size is hashed: a second, once a process

OnStep = Callable[[int, int], None]  # told how many of how many are done, as far as that is known
Parts = tuple[str, ...]  # a path below the root
Layout = Literal["auto", "classes", "domains"]


@dataclass(frozen=True)
class FileSource:
    """Pictures in files below a folder, decoded by `decode` with its `window` for deep greys."""

    root: Path
    files: Sequence[str]  # relative, "/" between folders
    window: Window | None = None
    index: str = ""  # fingerprint of the index that lists these files with their sizes; it then stands for them
    bands: Bands | None = None  # of TIFFs that have more than three

    @cached_property
    def fingerprint(self) -> str:
        """A hash of relative paths, sizes and contents; above `HASHED_BYTES` in all, of times instead of contents.

        It is computed once. A large data set restored with other times has another one, and a change that keeps a
        large data set's sizes and times is not seen. Raises UserError for a file that is not there.
        """
        if self.index:
            return hashlib.sha256(self.index.encode() + self._seen_as()).hexdigest()[:32]
        try:
            paths = [os.path.join(self.root, file) for file in self.files]  # a Path a file would double the time
            stats = [os.stat(path) for path in paths]
            total = sum(stat.st_size for stat in stats)
            digest = hashlib.sha256(self._seen_as())
            for file, path, stat in zip(self.files, paths, stats, strict=True):
                content = hashlib.sha256(Path(path).read_bytes()).hexdigest() if total <= HASHED_BYTES else ""
                digest.update(json.dumps([file, stat.st_size, content or stat.st_mtime_ns]).encode())
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read ({error.strerror}); restore or remove it.") from error
        return digest.hexdigest()[:32]

    def _seen_as(self) -> bytes:
        return json.dumps([self.window, self.bands] if self.bands else self.window).encode()

    def __len__(self) -> int:
        return len(self.files)

    def open(self, row: int) -> Image.Image:
        """Decode one file to RGB; UserError naming it if that fails."""
        return decode(self.root / self.files[row], window=self.window, bands=self.bands)

    def take(self, rows: Sequence[int]) -> FileSource:
        """A source of these pictures alone, small enough to send to another process."""
        return replace(self, files=tuple(self.files[row] for row in rows), index="")

    def describe(self, row: int) -> str:
        """The path below the folder."""
        return self.files[row]


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

    Classes and domains are the folder names in bytewise order (Unicode NFC). Without split folders a picture is drawn
    for testing with probability `test_fraction` from the seed and its own path, so adding files moves no other, except
    that of two pictures or more of a class (and domain) one is always for training and one for testing.
    `base` are the classes seen in training: the first half (the larger one), all, or those named. An `attributes.json`
    beside the class folders, `{"class name": ["phrase", ...]}`, gives visual phrases. Hidden files, and files without
    a picture's suffix, are left alone. Raises UserError for a folder that is missing, empty, or open to two readings.
    """
    root = Path(path).expanduser()
    if not 0 <= test_fraction < 1:
        raise UserError(f"test_fraction = {test_fraction} is not a share; give 0 or more, and less than 1.")
    pictures, empty = _walk(root, on_step)
    splits = _split_folders(root, pictures)
    places = [parts[1:] for parts in pictures] if splits else pictures
    depth = _depth(root, places, layout)
    classes = [_nfc(parts[depth - 2]) for parts in places]
    domains = [_nfc(parts[0]) if depth == DEPTHS["domains"] else "" for parts in places]
    names = tuple(sorted(set(classes)))
    _refuse_empty(root, empty, names)
    labels = {name: label for label, name in enumerate(names)}
    known = _base(labels, base)
    return Dataset(
        name=root.resolve().name,
        source=FileSource(root, tuple("/".join(parts) for parts in pictures), window, bands=bands),
        space=LabelSpace(names, template=template, attributes=read_attributes(root, names)),
        targets=torch.tensor([labels[name] for name in classes]),
        splits=tuple(splits or draw_splits(pictures, domains, classes, fraction=test_fraction, seed=seed)),
        domains=tuple(domains),
        base=known,
        new=tuple(sorted(set(labels.values()) - set(known))),
        unseen_domains=unseen_domains,
    )


def _nfc(name: str) -> str:
    # One spelling for what looks the same: macOS hands out decomposed names, others composed ones.
    return unicodedata.normalize("NFC", name)


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _walk(root: Path, on_step: OnStep | None) -> tuple[list[Parts], list[Parts]]:
    """All pictures, sorted, and all folders that hold neither pictures nor folders."""
    if not root.is_dir():
        raise UserError(f"There is no folder {root}; give the folder that holds one folder of pictures a class.")
    pictures: list[Parts] = []
    empty: list[Parts] = []
    known = 1  # folders
    walk = os.walk(root, onerror=_refuse_unreadable, followlinks=True)
    for number, (folder, folders, files) in enumerate(walk, start=1):
        parts = Path(folder).relative_to(root).parts
        # No layout is deeper, and a link to a folder above would lead round in circles.
        folders[:] = [name for name in folders if _visible(name)] if len(parts) <= DEPTHS["domains"] else []
        found = [(*parts, name) for name in files if _visible(name) and name.lower().endswith(SUFFIXES)]
        pictures += found
        if not found and not folders:
            empty.append(parts)
        known += len(folders)
        if on_step is not None:
            on_step(number, known)
    if not pictures:
        raise UserError(f"{root} holds no pictures ({' '.join(SUFFIXES)}); give it one folder of them a class.")
    for parts in pictures:
        if any("\ud800" <= letter <= "\udfff" for letter in "".join(parts)):
            raise UserError(f"The name {'/'.join(parts)!r} in {root} is not valid UTF-8; rename that file or folder.")
    return sorted(pictures), empty


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(f"The folder {error.filename} cannot be read ({error.strerror}); check its permissions.") from error


def _refuse_empty(root: Path, empty: Sequence[Parts], names: Sequence[str]) -> None:
    # A class may be missing in one domain or split, not in all of them.
    for parts in empty:
        if _nfc(parts[-1]) not in names:
            kinds = " ".join(SUFFIXES)
            raise UserError(f"The folder {root.joinpath(*parts)} holds no pictures ({kinds}); add some or remove it.")


def _split_folders(root: Path, pictures: Sequence[Parts]) -> list[str]:
    """The split of every picture if the top folders are splits, else nothing."""
    words = {parts[0]: SPLITS.get(parts[0].lower(), "") for parts in pictures}
    found = set(words.values())
    if "" in found:
        return []
    if len(found) == 1 or "train" not in found:
        have = " and ".join(sorted(words))
        raise UserError(
            f"{root} holds {have} and nothing else: add a train and a test folder, "
            "or give the folder inside it, from which a test split is drawn."
        )
    if "test" not in found:
        words = {folder: "test" if word == "val" else word for folder, word in words.items()}
    return [words[parts[0]] for parts in pictures]


def _depth(root: Path, places: Sequence[Parts], layout: Layout) -> int:
    """How many parts a picture's path has below its split; UserError if that is open to two readings."""
    depths = {len(parts): "/".join(parts) for parts in places}
    if layout != "auto":
        for wrong in depths.keys() - {DEPTHS[layout]}:
            raise UserError(f"{depths[wrong]} in {root} does not fit the layout {layout!r}; move it or change that.")
        return DEPTHS[layout]
    if len(depths) > 1 or not depths.keys() <= set(DEPTHS.values()):
        shown = " and ".join(depths[depth] for depth in sorted(depths))
        raise UserError(
            f"It is not clear which folders of {root} are classes, with pictures at {shown}; "
            "put all of them into <class>/ or all into <domain>/<class>/."
        )
    depth = next(iter(depths))
    folders = {parts[:-1] for parts in places}
    if depth == DEPTHS["domains"] and len({_nfc(name) for _, name in folders}) == len(folders):
        raise UserError(
            f"It is not clear which folders of {root} are classes: no inner folder, like {'/'.join(min(folders))}, "
            "occurs in two outer ones. Set layout to 'domains' if the outer ones are domains, or give an inner folder."
        )
    return depth


def draw_splits(
    pictures: Sequence[Parts], domains: Sequence[str], classes: Sequence[str], *, fraction: float, seed: int
) -> list[str]:
    """Draw each picture's split from its own path; what two have in common is that no class goes without."""
    draws = [seed_for(seed, "split", *map(_nfc, parts)) / 2**63 for parts in pictures]  # uniform in [0, 1)
    splits = ["test" if draw < fraction else "train" for draw in draws]
    groups = defaultdict(list)
    for row, group in enumerate(zip(domains, classes, strict=True)):
        groups[group].append(row)
    for rows in groups.values():
        rows.sort(key=draws.__getitem__)
        if fraction > 0:
            splits[rows[0]] = "test"
        splits[rows[-1]] = "train"
    return splits


def first_half(classes: int) -> tuple[int, ...]:
    """The label ids of the base classes, the larger half."""
    return tuple(range(-(-classes // 2)))


def _base(labels: Mapping[str, int], base: Literal["half", "all"] | Sequence[str]) -> tuple[int, ...]:
    if isinstance(base, str):
        return first_half(len(labels)) if base == "half" else tuple(range(len(labels)))
    return tuple(labels[_known(name, labels, "base")] for name in base)


def _known(name: str, names: Iterable[str], place: str) -> str:
    spelled = _nfc(name)
    if spelled not in names:
        hint = did_you_mean(spelled, names)
        raise UserError(f"{place} names the class {name!r}, for which there is no folder{hint}.")
    return spelled


def read_attributes(root: Path, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The phrases of the folder's `attributes.json`, if it has one; UserError for another form or an unknown class."""
    file = root / "attributes.json"
    if not file.exists():
        return {}
    return {_known(name, names, str(file)): phrases for name, phrases in read_descriptions(file).attributes.items()}
