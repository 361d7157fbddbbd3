"""WebDataset shards: tar files with `<key>.jpg` and `<key>.cls`, `.npy` or `.json`, read without unpacking."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from fedprompt.data.dataset import Dataset
from fedprompt.data.decode import Bands, Window, decode
from fedprompt.data.folder import SUFFIXES, OnStep
from fedprompt.data.labels import LabelSpace
from fedprompt.data.splits import SPLIT_NAMES, base_and_new
from fedprompt.data.table_file import read_lines
from fedprompt.errors import UserError

LABELS = ("cls", "npy", "json")


@dataclass(frozen=True)
class TarMember:
    """A file inside a tar file: where its bytes are."""

    tar: str
    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarSource:
    """Images inside tar files, each read from its offset."""

    root: Path
    members: tuple[TarMember, ...]
    window: Window | None = None
    bands: Bands | None = None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of where every image lies and when its tar file was last modified."""
        digest = hashlib.sha256(json.dumps([self.window, self.bands]).encode())
        for tar in dict.fromkeys(member.tar for member in self.members):
            digest.update(f"{tar} {(self.root / tar).stat().st_mtime_ns}".encode())
        for member in self.members:
            digest.update(f"{member.name} {member.offset} {member.size}".encode())
        return digest.hexdigest()[:32]

    def __len__(self) -> int:
        return len(self.members)

    def open(self, row: int) -> Image.Image:
        """Decode one image to RGB."""
        name = self.describe(row)
        return decode(name, content=_bytes(self.root, self.members[row]), window=self.window, bands=self.bands)

    def take(self, rows: Sequence[int]) -> TarSource:
        """A source of these images alone, small enough to send to another process."""
        return replace(self, members=tuple(self.members[row] for row in rows))

    def describe(self, row: int) -> str:
        """Tar file and name."""
        return f"{self.members[row].tar}/{self.members[row].name}"


def webdataset(  # noqa: PLR0913  (every option has a default, and a recipe names them all)
    *,
    path: Path,
    base: Literal["half", "all"] = "half",
    classes: Sequence[str] = (),
    template: str = "",
    train: str = "train",
    window: Window | None = None,
    bands: Bands | None = None,
    on_step: OnStep | None = None,
) -> Dataset:
    """Read `path/{train,test}/*.tar`, or `path/*.tar` as the split `train`, in CLIP-benchmark's layout.

    Class names are the lines of `classnames.txt`, or `classes`; a label is an integer (`cls`), a vector of 0 and 1
    (`npy`), or `label` or `labels` in a `json`. The template is `template`, else the first line of
    `zeroshot_classification_templates.txt`, whose {c} is our {}. Raises UserError for shards of another form.
    """
    root = Path(path).expanduser()
    names = tuple(classes) or tuple(_lines(root / "classnames.txt"))
    if not names:
        raise UserError(f"{root} has no classnames.txt; write one class per line in label order, or set `classes`.")
    rows = list(_samples(root, train, on_step))
    if not rows:
        raise UserError(f"{root} has no tar files with images and labels, neither in train and test nor at the top.")
    templates = [line.replace("{c}", "{}") for line in _lines(root / "zeroshot_classification_templates.txt")]
    labels = [_label(root, member, len(names)) for _, _, member in rows]
    multi = isinstance(labels[0], list)
    if any(isinstance(label, list) != multi for label in labels):
        raise UserError(f"The shards in {root} mix single labels and lists of labels; use one form.")
    known, new = base_and_new(len(names), "all" if multi else base)
    return Dataset(
        name=root.resolve().name,
        source=TarSource(root, tuple(image for _, image, _ in rows), window, bands),
        space=LabelSpace(
            names,
            kind="multi" if multi else "single",
            template=template or next(iter(templates), "a photo of a {}."),
            ensemble=tuple(templates[1:]),
        ),
        targets=torch.tensor(labels, dtype=torch.int8 if multi else torch.int64),
        splits=tuple(split for split, _, _ in rows),
        domains=("",) * len(rows),
        base=known,
        new=new,
    )


def _samples(root: Path, train: str, on_step: OnStep | None) -> Iterator[tuple[str, TarMember, TarMember]]:
    """Split, image and label of every sample, shard by shard."""
    shards = [*root.glob("*/*.tar"), *root.glob("*.tar")]
    shards.sort(key=lambda path: (path.parent.name, int(path.stem) if path.stem.isdigit() else 0, path))
    for number, path in enumerate(shards, start=1):
        split = SPLIT_NAMES.get("train" if path.parent.name == train else path.parent.name, "train")
        samples: dict[str, dict[str, TarMember]] = {}
        for member in _members(root, path):
            key, _, extension = member.name.rpartition("/")[2].partition(".")
            samples.setdefault(f"{member.name.rpartition('/')[0]}/{key}", {})[extension.lower()] = member
        for key, parts in samples.items():
            images = [parts[kind] for kind in parts if f".{kind}" in SUFFIXES]
            labels = [parts[kind] for kind in LABELS if kind in parts]
            if not images or not labels:
                raise UserError(
                    f"{path}: the sample {key.lstrip('/')!r} has {', '.join(parts)}, not an image with a label."
                )
            yield split, images[0], labels[0]
        if on_step is not None:
            on_step(number, len(shards))


def _members(root: Path, path: Path) -> Iterator[TarMember]:
    try:
        with tarfile.open(path) as shard:
            members = [member for member in shard if member.isfile()]
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"The shard {path} cannot be read ({error}); download it again.") from error
    for member in members:
        if not member.name.rpartition("/")[2].startswith("."):
            yield TarMember(str(path.relative_to(root)), member.name, member.offset_data, member.size)


def _bytes(root: Path, member: TarMember) -> bytes:
    with open(root / member.tar, "rb") as tar:
        tar.seek(member.offset)
        return tar.read(member.size)


def _label(root: Path, member: TarMember, classes: int) -> int | list[int]:
    try:
        value = _value(member.name, _bytes(root, member))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{member.tar}/{member.name} is not a label ({error}); it should be an integer or 0/1s."
        ) from error
    fits = len(value) == classes if isinstance(value, list) else 0 <= value < classes
    if not fits:
        raise UserError(f"{member.tar}/{member.name} is {value}, which does not fit {classes} classes.")
    return value


def _value(name: str, content: bytes) -> int | list[int]:
    if name.endswith(".cls"):
        return int(content)
    if name.endswith(".npy"):
        return [int(value) for value in np.load(io.BytesIO(content)).reshape(-1)]
    table: Mapping[str, object] = json.loads(content)
    value = table["labels"] if "labels" in table else table["label"]
    return [int(one) for one in value] if isinstance(value, list) else int(str(value))


def _lines(path: Path) -> list[str]:
    """The lines of an optional file."""
    return read_lines(path, what="The file", hint="it should be UTF-8 text") if path.exists() else []
