"""Multi-label images with COCO annotations: one JSON per split with images, annotations and categories."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedprompt.config.registry import recognised_by
from fedprompt.data.copies import copies_remark
from fedprompt.data.dataset import Dataset, multi_hot
from fedprompt.data.file_source import FileSource
from fedprompt.data.folder import DatasetFolder
from fedprompt.data.image_formats import Bands, Window
from fedprompt.data.images import OnStep
from fedprompt.data.intake.class_names import look_alikes
from fedprompt.data.intake.ids import repeated
from fedprompt.data.intake.image_files import visible
from fedprompt.data.intake.paths import missing_files
from fedprompt.data.intake.report import PARTS, Intake, Mistakes, read_all
from fedprompt.data.intake.split_places import splits_of_files
from fedprompt.data.intake.splits import LEFT_OUT, mentions_split
from fedprompt.data.labels import LabelSpace, distinct_names
from fedprompt.data.published.layouts.coco_json import CocoFile, Regions, located, read_file, shared_names
from fedprompt.data.splits import STRATIFIED_ORIGIN, draw_stratified_splits
from fedprompt.errors import UserError, series
from fedprompt.file_system import files_below, open_file, require_folder

PROBED = 20  # JSON files that are looked into for whether a folder holds COCO annotations
NOT_COCO = ("attributes.json", "conditions.json", "dataset_dict.json", "state.json", "info.json")

# What COCO itself has beside the files of instances.
COMPANIONS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")


@dataclass(frozen=True)
class Annotations:
    """The annotation file of every split, and where the splits come from; one file is divided."""

    files: Mapping[str, str]
    origin: str = ""
    remarks: tuple[str, ...] = ()


def _is_coco(path: Path) -> bool:
    return path.is_dir() and any(_names_three_lists(path / file) for file in _json_files(path)[:PROBED])


@recognised_by(_is_coco)
def coco(  # noqa: PLR0913  (every option has a default, and a recipe names them all)
    *,
    path: Path,
    train: str = "",
    val: str = "",
    test: str = "",
    train_images: str = "",
    val_images: str = "",
    test_images: str = "",
    splits: Mapping[str, str] | None = None,
    crowds: bool = False,
    min_area: float = 0.0,
    include_unlabelled: bool = True,
    links: bool = False,
    template: str = "a photo of a {}.",
    window: Window | None = None,
    bands: Bands | None = None,
    seed: int = 1,
    on_step: OnStep | None = None,
) -> Dataset:
    """Read annotation files below the folder `path`; a label is present if a region in the image is annotated with it.

    The annotation files of the splits are `train`, `val` and `test`; without them they are looked for in `path`,
    `path/annotations` and the folders in `path`, as COCO, CVAT, Label Studio and Roboflow write them, and their names
    say the splits (`splits` says what other names are). Images are looked for beside the file, in `images`, and in a
    folder of the split's name, unless `train_images` and so on are given. Classes are sorted by category id. Of one
    annotation file 30% of the images are drawn for testing and 20% for validation. With `links`, links in the folder of
    images may lead out of it. Raises UserError for files that are missing or of another form.
    """
    root = Path(path).expanduser()
    folder = DatasetFolder(root, on_step=on_step)
    given = {split: file for split, file in (("train", train), ("val", val), ("test", test)) if file}
    found = _given(folder, given) if given else _find_annotations(root, splits)
    regions = Regions(crowds, min_area)
    read = read_all([partial(read_file, folder, file, regions) for file in found.files.values()])
    tables = dict(zip(found.files, read, strict=True))
    names = distinct_names(shared_names(folder, tables), str(root))
    label = {name: number for number, name in enumerate(names)}
    own_places = {"train": train_images, "val": val_images or train_images, "test": test_images or train_images}
    files: list[str] = []
    own: list[str] = []
    labels: list[set[int]] = []
    unlabelled = 0
    for split, table in tables.items():
        place = own_places[split] or _place_of_images(root, split, table)
        for file, present in zip(located(folder, table, place, links=links), table.present, strict=True):
            if present or include_unlabelled:
                files.append(file)
                own.append(split)
                labels.append({label[name] for name in present})
            else:
                unlabelled += 1
    _check_files(root, files, own, on_step)
    source = FileSource(root, tuple(files), window, bands=bands)
    copies = source.contents if len(tables) == 1 else ()
    if len(tables) == 1:
        own = draw_stratified_splits(files, [""] * len(files), seed=seed, contents=copies)
    groups = sorted({name for table in tables.values() for name in table.groups} - set(names))
    return Dataset(
        name=root.resolve().name,
        source=source,
        space=LabelSpace(names, kind="multi", template=template),
        targets=multi_hot(labels, len(names)),
        splits=tuple(own),
        domains=("",) * len(files),
        base=tuple(range(len(names))),
        intake=Intake(
            labels="several per image, from annotated regions",
            origins={
                "images": f"{', '.join(dict.fromkeys(found.files.values()))} in {root}",
                "classes": "categories by id",
                "splits": found.origin or STRATIFIED_ORIGIN.format(seed=seed),
            },
            left_out={"images without annotations": unlabelled} if unlabelled else {},
            warnings=(
                *found.remarks,
                *(f"{root}: the category {name!r} only groups the others and is not a class." for name in groups),
                *look_alikes(names, str(root)),
                *copies_remark(copies, files, place=str(root)),
            ),
        ),
    )


def _given(folder: DatasetFolder, files: Mapping[str, str]) -> Annotations:
    if "train" not in files:
        raise UserError(f"The data set in {folder.path} has no training part; set `train` to an annotation file.")
    for split, file in files.items():
        folder.find([file], f"The annotations of {split}")
    if len(files) > 1 and "test" not in files:
        files = {"test" if split == "val" else split: file for split, file in files.items()}
    return Annotations(files, f"the files {series(files.values())}" if len(files) > 1 else "")


def _find_annotations(root: Path, declared: Mapping[str, str] | None) -> Annotations:
    """The annotation files of a folder, as COCO and the annotation tools write them."""
    files = _json_files(root)
    if not files:
        raise UserError(
            f"{root} has no annotation files (.json), neither at the top nor in annotations or other folders; set "
            "`train` to the path of one."
        )
    if len(files) == 1:
        return Annotations({"train": files[0]})
    if not declared and not any(mentions_split(part.partition(".")[0]) for file in files for part in file.split("/")):
        raise UserError(
            f"{root} has {files[0]} and {files[1]}, and their names say no split; set `train` and `test` to those that "
            "you mean."
        )
    named, understood = splits_of_files(files, root=str(root), declared=declared)
    assert understood is not None, "a name says a split, or is declared to be one"
    found: dict[str, str] = {}
    for file, name in named.items():
        part = understood.parts[name]
        if part != LEFT_OUT and found.setdefault(part, file) != file:
            raise UserError(f"{root} has {found[part]} and {file} for one split, {part}; set `{part}` to one of them.")
    if len(found) == 1:
        return Annotations({"train": next(iter(found.values()))}, "", understood.remarks)
    return Annotations({part: found[part] for part in PARTS if part in found}, understood.origin, understood.remarks)


def _names_three_lists(file: Path) -> bool:
    """Whether the keys of COCO stand in a file, which may be large."""
    if not file.stat().st_size:
        return False
    with open_file(file) as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return all(content.find(key) >= 0 for key in (b'"images"', b'"annotations"', b'"categories"'))


def _json_files(root: Path) -> list[str]:
    """JSON files that may hold annotations, below the folder."""
    require_folder(root)
    found = [file for file in files_below(root, depth=1) if file.suffix == ".json"]
    names = sorted(file.relative_to(root).as_posix() for file in found if file.name not in NOT_COCO)
    names = [name for name in names if all(map(visible, name.split("/")))]
    return [name for name in names if not name.rpartition("/")[2].startswith(COMPANIONS)] or names


def _place_of_images(root: Path, split: str, table: CocoFile) -> str:
    """The folder in which most images of a table are: beside it, or where tools put them."""
    parent, _, name = table.file.rpartition("/")
    stem = name.removesuffix(".json").removeprefix("instances_")
    tries = [parent or ".", "images", f"images/{stem}", stem, f"images/{split}", split, "."]
    missing = {place: len(missing_files(root / place, table.files)) for place in dict.fromkeys(tries)}
    return min(missing, key=missing.__getitem__)


def _check_files(root: Path, files: Sequence[str], splits: Sequence[str], on_step: OnStep | None) -> None:
    mistakes = Mistakes(root)
    if missing := missing_files(root, files, on_step=on_step):
        first = files[min(missing)]
        tried = "" if "/" in first else f" (looked in {root}, images and folders of the splits' names)"
        mistakes.add(f"{len(missing):,} of {len(files):,} images do not exist, for example {first}{tried}; add them")
    first_split: dict[str, str] = {}
    twice = [file for file, split in zip(files, splits, strict=True) if first_split.setdefault(file, split) != split]
    if twice:
        mistakes.add(f"{len(twice):,} images are in two splits, for example {twice[0]}; keep each in one")
    else:
        repeated(files, what="images", mistakes=mistakes)
    mistakes.check()
