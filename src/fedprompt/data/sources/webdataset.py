"""WebDataset shards: tar files with `<key>.jpg` and `<key>.cls`, `.npy` or `.json`, read without unpacking."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from fedprompt.config.registry import recognised_by
from fedprompt.data.copies import copies_remark, same_content
from fedprompt.data.dataset import Dataset
from fedprompt.data.image_formats import LARGEST_FILE, Bands, Window, decode
from fedprompt.data.images import OnStep
from fedprompt.data.intake.class_names import ClassNames, look_alikes, normal_name, read_class_file
from fedprompt.data.intake.image_files import has_image_name
from fedprompt.data.intake.report import Intake, Mistakes
from fedprompt.data.intake.split_places import splits_of_files
from fedprompt.data.intake.splits import LEFT_OUT
from fedprompt.data.intake.typed_labels import Dialect, TypedLabels, read_typed_labels
from fedprompt.data.labels import LabelSpace
from fedprompt.data.splits import base_and_new, check_test_fraction, draw_test_splits, drawn_origin
from fedprompt.errors import UserError
from fedprompt.file_system import files_below, open_file, require_folder
from fedprompt.text_files import LINE_ENDS, json_text, load_json, read_text

LABELS = ("cls", "npy", "json")
LARGEST_LABEL = 1 << 20  # bytes of a label, which may be a vector of scores
MOST_MEMBERS = 2_000_000  # files in a shard


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
        digest = hashlib.sha256(json_text([self.window, self.bands]).encode())
        for tar in dict.fromkeys(member.tar for member in self.members):
            digest.update(f"{tar} {(self.root / tar).stat().st_mtime_ns}".encode())
        for member in self.members:
            digest.update(f"{member.name} {member.offset} {member.size}".encode())
        return digest.hexdigest()[:32]

    @cached_property
    def contents(self) -> tuple[int, ...]:
        """For each row the first row whose image has the same bytes; most are told apart by their sizes."""
        return same_content(len(self), (lambda row: self.members[row].size, self._digest))

    def _digest(self, row: int) -> bytes:
        return hashlib.sha256(_bytes(self.root, self.members[row])).digest()

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


def _has_shards(path: Path) -> bool:
    return path.is_dir() and any(file.is_file() for file in (*path.glob("*.tar"), *path.glob("*/*.tar")))


@recognised_by(_has_shards)
def webdataset(  # noqa: PLR0913  (every option has a default, and a recipe names them all)
    *,
    path: Path,
    base: Literal["half", "all"] = "all",
    classes: Sequence[str] = (),
    template: str = "",
    splits: Mapping[str, str] | None = None,
    threshold: float | None = None,
    test_fraction: float = 0.25,
    window: Window | None = None,
    bands: Bands | None = None,
    seed: int = 1,
    on_step: OnStep | None = None,
) -> Dataset:
    """Read tar files whose folders or names say their split, `path/{train,test}/*.tar` in CLIP-benchmark's layout.

    Class names are the lines of `classnames.txt`, or `classes`; a label is a class number or name (`cls`), a vector of
    0 and 1 or, with a `threshold`, of scores (`npy`), or `label` or `labels` in a `json`. `splits` says what folders of
    other names are (`{"extra": ""}` leaves one out). Where no name says a split, `test_fraction` of the images of
    each class is drawn for testing. The template is `template`, else the first line of
    `zeroshot_classification_templates.txt`, whose {c} is our {}. Raises UserError for shards of another form.
    """
    root = Path(path).expanduser()
    check_test_fraction(test_fraction)
    names = _class_names(root, classes)
    shards = _shards(root)
    named, understood = splits_of_files(shards, root=str(root), declared=splits)
    parts = {shard: understood.parts[name] if understood else "" for shard, name in named.items()}
    used = [shard for shard in shards if understood is None or parts[shard] != LEFT_OUT]
    samples = _samples(root, used, on_step)
    labels = _labels(root, samples, names, threshold)
    files = [f"{sample.image.tar}/{sample.image.name}" for sample in samples]
    groups = [""] * len(files) if labels.multi else list(labels.targets)
    source = TarSource(root, tuple(sample.image for sample in samples), window, bands)
    copies = () if understood else source.contents
    drawn = draw_test_splits(
        files, groups, labels=labels.values, test_fraction=test_fraction, seed=seed, contents=copies
    )
    templates = [line.replace("{c}", "{}") for line in _lines(root / "zeroshot_classification_templates.txt")]
    known, new = base_and_new(len(names.names), "all" if labels.multi else base)
    return Dataset(
        name=root.resolve().name,
        source=source,
        space=LabelSpace(
            names.names,
            kind="multi" if labels.multi else "single",
            template=template or next(iter(templates), "a photo of a {}."),
            ensemble=tuple(templates[1:]),
        ),
        targets=torch.tensor(labels.targets, dtype=torch.int8 if labels.multi else torch.int64),
        splits=tuple(parts[sample.image.tar] for sample in samples) if understood else tuple(drawn),
        domains=("",) * len(samples),
        base=known,
        new=new,
        intake=Intake(
            labels=labels.form,
            origins={
                "images": f"{len(used)} tar files below {root}",
                "classes": "`classes`" if classes else "classnames.txt",
                "splits": understood.origin if understood else drawn_origin(test_fraction, seed),
            },
            left_out={"tar files of unused splits": len(shards) - len(used)} if len(used) < len(shards) else {},
            warnings=(
                *names.remarks,
                *(understood.remarks if understood else ()),
                *copies_remark(copies, files, place=str(root)),
            ),
        ),
    )


@dataclass(frozen=True)
class Sample:
    """An image and its label inside a tar file."""

    image: TarMember
    label: TarMember


def _class_names(root: Path, classes: Sequence[str]) -> ClassNames:
    if classes:
        own = tuple(map(normal_name, classes))
        return ClassNames(own, dict(zip(classes, own, strict=True)), tuple(look_alikes(own, "classes")))
    file = root / "classnames.txt"
    if not file.exists():
        raise UserError(f"{root} has no classnames.txt; write one class per line in label order, or set `classes`.")
    return read_class_file(file)


def _shards(root: Path) -> list[str]:
    """The tar files below the folder: by folder, then by number."""
    require_folder(root)
    shards = [path for path in files_below(root, depth=1) if path.suffix == ".tar"]
    shards.sort(key=lambda path: (path.parent.name, int(path.stem) if path.stem.isdecimal() else 0, path))
    if not shards:
        raise UserError(f"{root} has no tar files with images and labels, neither in folders of splits nor at the top.")
    return [path.relative_to(root).as_posix() for path in shards]


def _samples(root: Path, shards: Sequence[str], on_step: OnStep | None) -> list[Sample]:
    """Image and label of every sample, shard by shard."""
    found: list[Sample] = []
    mistakes = Mistakes(root)
    for number, shard in enumerate(shards, start=1):
        found += _samples_of(root, shard, mistakes)
        if on_step is not None:
            on_step(number, len(shards))
    mistakes.check(fix="correct that shard")
    if not found:
        raise UserError(f"The tar files of {root} hold no images with labels; add some.")
    return found


def _samples_of(root: Path, shard: str, mistakes: Mistakes) -> Iterator[Sample]:
    """The samples of a shard; those that are not an image with a label are noted."""
    samples: dict[str, dict[str, TarMember]] = {}
    for member in _members(root, shard, mistakes):
        key, _, extension = member.name.rpartition("/")[2].partition(".")
        place = samples.setdefault(f"{member.name.rpartition('/')[0]}/{key}".lstrip("/"), {})
        if place.setdefault(extension.lower(), member) is not member:
            mistakes.add(f"{shard} has {member.name!r} twice")
    for key, parts in samples.items():
        images = [parts[kind] for kind in parts if has_image_name(f".{kind}")]
        labels = [parts[kind] for kind in LABELS if kind in parts]
        if len(images) == 1 and labels:
            yield Sample(images[0], labels[0])
        else:
            what = "two images" if len(images) > 1 else f"{', '.join(parts)}, not an image with a label"
            mistakes.add(f"the sample {key!r} in {shard} has {what}")


def _members(root: Path, shard: str, mistakes: Mistakes) -> Iterator[TarMember]:
    try:
        # Without compression: members are read from their offsets, and a compressed file has others.
        with open_file(root / shard) as file, tarfile.open(fileobj=file, mode="r:") as opened:
            members = [member for member in islice(opened, MOST_MEMBERS + 1) if member.isfile()]
    except UserError:
        raise
    except Exception as error:  # the library may raise anything on made headers; this shard is the cause of it
        mistakes.add(f"the shard {shard} cannot be read ({error or type(error).__name__})", fix="download it again")
        return
    if len(members) > MOST_MEMBERS:
        mistakes.add(f"the shard {shard} has more than {MOST_MEMBERS:,} files", fix="divide it")
        return
    for member in members:
        if member.name.rpartition("/")[2].startswith("."):
            continue
        if member.size > LARGEST_FILE or member.issparse():
            mistakes.add(f"{shard} has {member.name!r}, which is sparse or larger than {LARGEST_FILE >> 20} MiB")
            continue
        yield TarMember(shard, member.name, member.offset_data, member.size)


def _bytes(root: Path, member: TarMember) -> bytes:
    with open_file(root / member.tar, "restore it") as tar:
        tar.seek(member.offset)
        return tar.read(member.size)


def _labels(root: Path, samples: Sequence[Sample], names: ClassNames, threshold: float | None) -> TypedLabels:
    files = [f"{sample.label.tar}/{sample.label.name}" for sample in samples]
    mistakes = Mistakes(root, place=files.__getitem__)
    values = []
    for row, sample in enumerate(samples):
        try:
            if sample.label.size > LARGEST_LABEL:
                raise ValueError(f"it has more than {LARGEST_LABEL >> 20} MiB")
            values.append(_value(sample.label.name, _bytes(root, sample.label)))
        except UserError:
            raise
        except Exception as error:  # NumPy may raise anything on a made header; this label is the cause of it
            mistakes.add(f"this is not a label ({error or type(error).__name__})", line=row)
    mistakes.check(fix="a label is a class number or name, or a vector of 0 and 1")
    single = next((row for row, value in enumerate(values) if not isinstance(value, list)), None)
    many = next((row for row, value in enumerate(values) if isinstance(value, list)), None)
    if single is not None and many is not None:
        raise UserError(
            f"The shards in {root} mix single labels ({files[single]}) and lists ({files[many]}); use one form."
        )
    vectors = any(sample.label.name.endswith(".npy") for sample in samples)
    dialect = Dialect(lists="vectors" if vectors else "either", threshold=threshold)
    found = read_typed_labels(values, names.names, dialect=dialect, mistakes=mistakes)
    mistakes.check(fix="correct that label")
    return found


def _value(name: str, content: bytes) -> object:
    if name.lower().endswith(".cls"):
        return content.decode("utf-8-sig").strip()
    if name.lower().endswith(".npy"):
        array = np.lib.format.read_array(io.BytesIO(content))
        return array.item() if array.ndim == 0 else array.reshape(-1).tolist()
    table = load_json(content.decode("utf-8-sig"))
    if not isinstance(table, Mapping) or not {"label", "labels"} & table.keys():
        raise ValueError("it has neither 'label' nor 'labels'")
    return table["labels"] if "labels" in table else table["label"]


def _lines(path: Path) -> list[str]:
    """The lines of an optional file."""
    return [line.strip() for line in LINE_ENDS.split(read_text(path)[0]) if line.strip()] if path.exists() else []
