"""Single-label images in class folders, or in domain and class folders: `<class>/*` or `<domain>/<class>/*`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fedprompt.config.registry import recognised_by
from fedprompt.data.copies import copies_remark, with_same_names
from fedprompt.data.dataset import Dataset
from fedprompt.data.descriptions import known_class, read_attributes
from fedprompt.data.file_source import FileSource
from fedprompt.data.image_formats import Bands, Window
from fedprompt.data.images import OnStep
from fedprompt.data.intake.class_names import ClassNames, normal_name, understand_names
from fedprompt.data.intake.image_files import SUFFIXES, ImageFiles, Parts, find_images
from fedprompt.data.intake.other_form import require_image_folder
from fedprompt.data.intake.report import Intake, Mistakes, listed_counts
from fedprompt.data.intake.split_places import split_folders
from fedprompt.data.intake.splits import LEFT_OUT, is_split, read_name, says_nothing
from fedprompt.data.intake.tables import is_table
from fedprompt.data.labels import LabelSpace
from fedprompt.data.splits import base_and_new, check_test_fraction, draw_test_splits, drawn_origin
from fedprompt.errors import UserError, plural, series
from fedprompt.text_files import data_setting

DEPTHS = {"classes": 2, "domains": 3}  # path parts of an image below the root (or below a split folder)

Layout = Literal["auto", "classes", "domains"]


@dataclass(frozen=True)
class Tree:
    """Images of a folder with their splits ([] where none are given) and their paths without the split folders."""

    images: Sequence[Parts]
    splits: Sequence[str]
    places: Sequence[Parts]
    origin: str
    remarks: tuple[str, ...] = ()
    unused: int = 0  # images of parts that are left out on request


@recognised_by(Path.is_dir, last=True)
def image_folder(  # noqa: PLR0913  (every option has a default, and a recipe names them all)
    *,
    path: Path,
    seed: int = 1,
    test_fraction: float = 0.25,
    names_together: bool = False,
    layout: Layout = "auto",
    splits: Mapping[str, str] | None = None,
    base: Literal["half", "all"] | tuple[str, ...] = "all",
    unseen_domains: tuple[str, ...] = (),
    template: str = "a photo of a {}.",
    links: bool = False,
    window: Window | None = None,
    bands: Bands | None = None,
    on_step: OnStep | None = None,
) -> Dataset:
    """Read `path/<class>/*` or `path/<domain>/<class>/*`, either also above or below folders of splits.

    Folders of splits are those that say train, validation or test in any of their usual forms ("Training", "seg_test");
    `splits` says what other top folders are (`{"fold1": "train", "old": ""}`, "" leaves one out). Classes and domains
    are the folder names in bytewise order, in their normal form. Without folders of splits `test_fraction` of
    each class (and domain) is drawn for testing, from the seed and the paths of its images: adding a file moves one
    other of its class at most. Of two or more images one is always for training and one for testing. With
    `names_together`, images whose files have the same name in several folders, such as one photograph in several
    domains, are in the same split.
    `base` are the classes seen in training: all, the first half (the larger one), or those named. An `attributes.json`
    beside the class folders, `{"class name": ["phrase", ...]}`, gives attributes. With `links`, links in the folder may
    lead out of it. Raises UserError for a folder that is missing, empty, ambiguous or understood in part.
    """
    root = Path(path).expanduser()
    check_test_fraction(test_fraction)
    require_image_folder(root)
    found = find_images(root, links=links, on_step=on_step)
    if not found.files:
        kinds = f"only {listed_counts(found.left_out)}" if found.left_out else f"{' '.join(SUFFIXES)}"
        raise UserError(f"{root} holds no images ({kinds}); give it one folder of them per class.")
    tree = _without_splits(root, found, splits, domains=layout == "domains")
    depth = _depth(root, tree.places, layout)
    spelled = [parts[depth - 2] for parts in tree.places]
    outer = [parts[0] if depth == DEPTHS["domains"] else "" for parts in tree.places]
    classes, domains = (understand_names(names, place=str(root)) for names in (spelled, outer))
    empty = _without_images(root, found.empty, classes)
    _refuse_one_folder_of_all(root, classes)
    labels = {name: label for label, name in enumerate(classes.names)}
    known, new = _base_and_new(labels, base)
    files = tuple("/".join(parts) for parts in tree.images)
    rows = [(domains.of[domain], classes.of[name]) for domain, name in zip(outer, spelled, strict=True)]
    source = FileSource(root, files, window, bands=bands)
    contents = () if tree.splits else source.contents
    together = with_same_names(contents, files) if names_together else contents
    drawn = draw_test_splits(files, rows, test_fraction=test_fraction, seed=seed, contents=together)
    return Dataset(
        name=root.resolve().name,
        source=source,
        space=LabelSpace(classes.names, template=template, attributes=read_attributes(root, classes.names)),
        targets=torch.tensor([labels[name] for _, name in rows]),
        splits=tuple(tree.splits or drawn),
        domains=tuple(domain for domain, _ in rows),
        base=known,
        new=new,
        unseen_domains=unseen_domains,
        groups=together if names_together else (),
        intake=Intake(
            origins={
                "images": f"files below {root}",
                "classes": "folder names",
                "domains": "folder names",
                "splits": tree.origin or drawn_origin(test_fraction, seed),
            },
            left_out=_left_out(root, found, tree.unused),
            warnings=(
                *found.remarks,
                *tree.remarks,
                *classes.remarks,
                *domains.remarks,
                *empty,
                *_odd_classes(root, classes),
                *copies_remark(contents, files, place=str(root)),
            ),
        ),
    )


def _without_splits(root: Path, found: ImageFiles, declared: Mapping[str, str] | None, *, domains: bool) -> Tree:
    """The images with the splits that folders say, if folders say any."""
    folders = split_folders(found.files, root=str(root), declared=declared, domains=domains)
    if folders is None:
        return Tree(found.files, [], found.files, "", _beside(root))
    used = [parts for parts in found.files if folders.of(parts) != LEFT_OUT]
    return Tree(
        used,
        [folders.of(parts) for parts in used],
        [folders.below(parts) for parts in used],
        folders.splits.origin,
        folders.splits.remarks,
        len(found.files) - len(used),
    )


def _beside(root: Path) -> tuple[str, ...]:
    """A remark if the folder is one part of a data set whose other parts lie beside it."""
    whole = root.resolve()
    if not is_split(whole.name):
        return ()
    try:
        names = sorted(folder.name for folder in whole.parent.iterdir() if folder.is_dir())
    except OSError:
        return ()
    own = read_name(whole.name).word
    others = [name for name in names if is_split(name) and read_name(name).word != own]
    if not others:
        return ()
    return (
        f"{root} is read alone and a test split is drawn from it, but {series(others)} lies beside it; give "
        f"{whole.parent} to use the splits that are there.",
    )


def _left_out(root: Path, found: ImageFiles, unused: int) -> dict[str, int]:
    counts = dict(found.left_out)
    if (root / "attributes.json").is_file():  # is read
        counts[".json"] -= 1
    if unused:
        counts["images of unused splits"] = unused
    return {reason: count for reason, count in counts.items() if count}


def _without_images(root: Path, empty: Sequence[Parts], classes: ClassNames) -> tuple[str, ...]:
    """A remark on the folders that hold no images, which make no class; UserError for one that is a split."""
    # A class may be missing in one domain or split.
    bare = [parts for parts in empty if not parts or normal_name(parts[-1]) not in classes.names]
    mistakes = Mistakes(root)
    for parts in bare:
        if parts and is_split(parts[-1]):
            mistakes.add(f"the folder {root.joinpath(*parts)} holds no images", fix="add some or remove it")
    mistakes.check()
    if not bare:
        return ()
    names = ", ".join("/".join(parts) for parts in bare)
    return (
        f"{root}: {plural(len(bare), 'folder')} without images {'makes' if len(bare) == 1 else 'make'} no class, and "
        f"nothing is trained or tested for {'it' if len(bare) == 1 else 'them'}: {names}.",
    )


def _refuse_one_folder_of_all(root: Path, classes: ClassNames) -> None:
    """UserError if the one class is called `images` or the like: labels are elsewhere, perhaps in a table."""
    only = classes.names[0]
    if len(classes.names) == 1 and (says_nothing(only) or is_split(only)):
        raise UserError(
            f"{root} holds all its images in one folder, {only!r}, which is no class; {_where_labels_are(root)}."
        )


def _where_labels_are(root: Path) -> str:
    tables = sorted(file.name for file in root.iterdir() if is_table(file))
    return f"if labels are in {tables[0]}, give the path of that table" if tables else "give it one folder per class"


def _odd_classes(root: Path, classes: ClassNames) -> tuple[str, ...]:
    odd = [name for name in classes.names if says_nothing(name)]
    return tuple(f"{root}: the folder {name!r} is read as a class; move it if it is none." for name in odd)


def _depth(root: Path, places: Sequence[Parts], layout: Layout) -> int:
    """The number of parts of an image's path below its split folder; UserError if the layout is ambiguous."""
    depths = {len(parts): "/".join(parts) for parts in places}
    if layout != "auto":
        for wrong in depths.keys() - {DEPTHS[layout]}:
            raise UserError(f"{depths[wrong]} in {root} does not fit the layout {layout!r}; move it or change that.")
        return DEPTHS[layout]
    if set(depths) == {1}:
        raise UserError(f"{root} holds images and no class folders; {_where_labels_are(root)}.")
    if len(depths) > 1 or not depths.keys() <= set(DEPTHS.values()):
        shown = series(depths[depth] for depth in sorted(depths))
        raise UserError(
            f"It is not clear which folders of {root} are classes, with images at {shown}; "
            "put all of them into <class>/ or all into <domain>/<class>/."
        )
    depth = next(iter(depths))
    folders = {parts[:-1] for parts in places}
    if depth == DEPTHS["domains"] and len({outer for outer, _ in folders}) == 1:
        outer = next(iter(folders))[0]
        raise UserError(
            f"{root} holds everything in one folder, {outer!r}; give {root / outer}, or "
            f"{data_setting('layout', 'domains')} if it is the one domain."
        )
    if depth == DEPTHS["domains"] and len({normal_name(name) for _, name in folders}) == len(folders):
        raise UserError(
            f"It is not clear which folders of {root} are classes: no inner folder, like {'/'.join(min(folders))}, "
            f"occurs in two outer ones. Give {data_setting('layout', 'domains')} if the outer ones are domains, "
            "or give an inner folder."
        )
    return depth


def _base_and_new(
    labels: Mapping[str, int], base: Literal["half", "all"] | Sequence[str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if isinstance(base, str):
        return base_and_new(len(labels), base)
    known = tuple(labels[known_class(name, labels, "base")] for name in base)
    return known, tuple(sorted(set(labels.values()) - set(known)))
