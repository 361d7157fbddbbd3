"""Multi-label images with PASCAL VOC annotations, the XML that most tools for bounding boxes write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fedprompt.config.registry import recognised_by
from fedprompt.data.copies import copies_remark
from fedprompt.data.dataset import Dataset
from fedprompt.data.file_source import FileSource
from fedprompt.data.folder import DatasetFolder
from fedprompt.data.image_formats import Bands, Window
from fedprompt.data.images import OnStep
from fedprompt.data.intake.class_names import look_alikes, normal_name, understand_names
from fedprompt.data.intake.image_files import DEEPEST, ImageFiles, find_images, has_image_name
from fedprompt.data.intake.paths import regular_files
from fedprompt.data.intake.report import Intake, Mistakes
from fedprompt.data.intake.splits import LEFT_OUT, is_split, mentions_split, read_name, understand_splits
from fedprompt.data.labels import LabelSpace, distinct_names
from fedprompt.data.published.layouts.voc_lists import Difficult, label_columns, mark_values, read_objects
from fedprompt.data.splits import STRATIFIED_ORIGIN, draw_stratified_splits
from fedprompt.errors import UserError
from fedprompt.file_system import files_below
from fedprompt.text_files import LINE_ENDS, read_text

LISTS = "ImageSets/Main"


@dataclass(frozen=True)
class ListedSplits:
    """The split of every listed image by its name, {} without lists, and where that comes from."""

    parts: Mapping[str, str]
    origin: str = ""
    remarks: tuple[str, ...] = ()


def _is_voc(path: Path) -> bool:
    return any((path / "Annotations").glob("*.xml"))


@recognised_by(_is_voc)
def voc(  # noqa: PLR0913  (every option has a default, and a recipe names them all)
    *,
    path: Path,
    images: str = "JPEGImages",
    annotations: str = "Annotations",
    classes: tuple[str, ...] = (),
    splits: Mapping[str, str] | None = None,
    difficult: Difficult = "ignore",
    links: bool = False,
    template: str = "a photo of a {}.",
    window: Window | None = None,
    bands: Bands | None = None,
    seed: int = 1,
    on_step: OnStep | None = None,
) -> Dataset:
    """Read images below `path/images`; the labels of each are the objects in `path/annotations/<name>.xml`.

    `classes` are those of the data set in label order; without them, all that are annotated, sorted. `difficult` is
    how a class counts of which all objects are marked difficult. Splits are those of the lists in `ImageSets/Main` that
    say one (`train.txt`, `val.txt`, `test.txt`), where `trainval` may stand for train and val for a missing test;
    `splits` says what other lists are. Images in no list are left out. Without lists 30% of the images are drawn for
    testing and 20% for validation. With `links`, links in the folder of images may lead out of it. Raises UserError for
    an image without annotation, for two of the same name, for an image in two splits, and for lists that leave nothing
    to test.
    """
    root = Path(path).expanduser()
    folder = DatasetFolder(root, on_step=on_step)
    found = find_images(root / images, links=links, on_step=on_step)
    files = _by_key(root, images, found)
    listed = _listed_splits(root, files, splits)
    keys = list(listed.parts) or list(files)
    source = FileSource(root, tuple(files[key] for key in keys), window, bands=bands)
    copies = () if listed.parts else source.contents
    drawn = draw_stratified_splits(keys, [""] * len(keys), seed=seed, contents=copies)
    splits_of = listed.parts or dict(zip(keys, drawn, strict=True))
    objects = read_objects(folder, annotations, keys, classes)
    spelled = understand_names(sorted({name for marks in objects for name in marks}), place=str(root))
    names = distinct_names(tuple(map(normal_name, classes)) or spelled.names, str(root))
    if not names:
        raise UserError(f"The annotations of {root} have no objects; add some.")
    columns = label_columns(objects, names, mark_values(difficult))
    return Dataset(
        name=root.resolve().name,
        source=source,
        space=LabelSpace(names, kind="multi", template=template),
        targets=torch.tensor(columns, dtype=torch.int8).T.contiguous(),
        splits=tuple(splits_of[key] for key in keys),
        domains=("",) * len(keys),
        base=tuple(range(len(names))),
        intake=Intake(
            labels="several per image, from annotated objects",
            origins={
                "images": f"files below {root / images}",
                "classes": "`classes`" if classes else "names of objects",
                "labels": f"XML files in {annotations}",
                "splits": listed.origin or STRATIFIED_ORIGIN.format(seed=seed),
            },
            left_out=_left_out(root / annotations, files, len(files) - len(keys), found),
            warnings=(
                *found.remarks,
                *listed.remarks,
                *(look_alikes(names, str(root)) if classes else spelled.remarks),
                *copies_remark(copies, source.files, place=str(root)),
            ),
        ),
    )


def _by_key(root: Path, images: str, found: ImageFiles) -> dict[str, str]:
    """The image files below `root` by their names without suffix, which annotations share."""
    if not found.files:
        raise UserError(f"{root / images} holds no images; set `images` to the folder that does.")
    files: dict[str, str] = {}
    for parts in found.files:
        file = "/".join(parts)
        key = str(Path(file).with_suffix(""))
        if other := files.get(key):
            raise UserError(
                f"{root} has {other} and {images}/{file}, for which there is one annotation; rename one of them."
            )
        files[key] = f"{images}/{file}"
    return files


def _left_out(annotations: Path, files: Mapping[str, str], unlisted: int, found: ImageFiles) -> dict[str, int]:
    without = sum(
        str(file.relative_to(annotations).with_suffix("")) not in files
        for file in files_below(annotations, depth=DEEPEST)
        if file.suffix == ".xml"
    )
    counts = {"images in no list": unlisted, "annotations without an image": without, **found.left_out}
    return {reason: count for reason, count in counts.items() if count}


def _listed_splits(root: Path, files: Mapping[str, str], declared: Mapping[str, str] | None) -> ListedSplits:
    """What the lists say: those called train, val, test and the like, and not those per class (`cat_train.txt`)."""
    stems = {
        Path(name).stem: root / LISTS / name for name in sorted(regular_files(root / LISTS)) if name.endswith(".txt")
    }
    names = [stem for stem in stems if stem in (declared or {}) or is_split(stem)]
    if "train" in names and "trainval" in names:
        names.remove("trainval")
    understood = understand_splits(names, place=str(root / LISTS), kind="lists", declared=declared) if names else None
    if understood is None:
        other = [stem for stem in stems if not mentions_split(stem)]
        remarks = (f"{root}: the list {other[0]}.txt says no split and is not read.",) if other else ()
        return ListedSplits({}, "", remarks)
    if not understood.has_test and not declared:
        raise UserError(f"The lists of {root} leave nothing to test; add {LISTS}/val.txt or test.txt.")
    return ListedSplits(_parts(root, stems, understood.parts, files), understood.origin, understood.remarks)


def _parts(root: Path, lists: Mapping[str, Path], parts: Mapping[str, str], files: Mapping[str, str]) -> dict[str, str]:
    mistakes = Mistakes(root / LISTS)
    first: dict[str, str] = {}  # image -> the list it is in
    for name in sorted(parts, key=lambda name: ("train", "val", "test", "eval").index(read_name(name).word or "eval")):
        lines = LINE_ENDS.split(read_text(lists[name])[0]) if parts[name] != LEFT_OUT else []
        for key in (_key(line, files) for line in lines if line.strip()):
            before = first.get(key, name)
            refines = before == "trainval" and read_name(name).word == "val"
            if key not in files:
                mistakes.add(f"{name}.txt names the image {key!r}, which is not there; add the file or remove the line")
            elif parts[before] != parts[name] and not refines:
                mistakes.add(f"{name}.txt names the image {key!r}, which {before}.txt names too; keep it in one list")
            else:
                first[key] = name
    mistakes.check()
    return {key: parts[name] for key, name in first.items()}


def _key(line: str, files: Mapping[str, str]) -> str:
    """The image that a line names: its first word or, for names with blanks, the line; a suffix may stand there."""
    whole = line.strip()
    for text in (whole, whole.split()[0]):
        for key in (text, str(Path(text).with_suffix("")) if has_image_name(text) else text):
            if key in files:
                return key
    return whole.split()[0]
