"""Single-label images from one table: CSV, TSV or JSON Lines, one row per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from fedprompt.config.registry import recognised_by
from fedprompt.data.copies import copies_remark, with_same_names
from fedprompt.data.dataset import Dataset
from fedprompt.data.descriptions import read_attributes
from fedprompt.data.file_source import FileSource
from fedprompt.data.image_formats import Bands, Window
from fedprompt.data.images import OnStep
from fedprompt.data.intake.class_names import (
    ClassNames,
    class_number,
    is_measure,
    labels_of,
    normal_name,
    read_class_file,
    understand_names,
)
from fedprompt.data.intake.image_rows import ImagePlace, Repeats, read_images, read_splits
from fedprompt.data.intake.label_cells import is_missing, looks_like_several
from fedprompt.data.intake.other_form import require_image_table
from fedprompt.data.intake.report import Intake, Mistakes
from fedprompt.data.intake.table_columns import KNOWN, left_out_columns, read_table
from fedprompt.data.intake.tables import Table, column_names
from fedprompt.data.labels import LabelSpace
from fedprompt.data.splits import base_and_new, check_test_fraction, draw_test_splits, drawn_origin
from fedprompt.errors import UserError
from fedprompt.text_files import data_setting, source_setting

FIX = "correct that cell"


def _is_class_table(path: Path) -> bool:
    return "label" in column_names(path)


@recognised_by(_is_class_table)
def class_table(  # noqa: PLR0913  (every option has a default, and a recipe names them all)
    *,
    path: Path,
    images: Path | None = None,
    classes: Path | None = None,
    columns: Mapping[str, str] | None = None,
    splits: Mapping[str, str] | None = None,
    separator: Literal["", "none"] = "",
    repeats: Repeats = "refuse",
    base: Literal["half", "all"] = "all",
    unseen_domains: tuple[str, ...] = (),
    test_fraction: float = 0.25,
    names_together: bool = False,
    template: str = "a photo of a {}.",
    links: bool = False,
    window: Window | None = None,
    bands: Bands | None = None,
    seed: int = 1,
    on_step: OnStep | None = None,
) -> Dataset:
    """Read rows of `image` and `label`, and `split` and `domain` if there are such columns, from a table.

    Images lie below `images`, by default beside the table or in a folder `images` there. The classes are the lines of
    `classes`, by default of `classes.txt` beside the table, and a label is a name or its number from 0 on; without such
    a list they are the sorted labels of the table, if every split has them all. `columns` maps these four names to
    those of the table (`{"image": "filepath", "label": "title"}`), `splits` maps names in the column `split` to train,
    val, test or "", which leaves rows out. Labels that look like several are refused unless `separator` is "none".
    Two rows of one image are refused unless `repeats` is "allow". Without a split, `test_fraction` of each class is
    drawn for testing; with `names_together`, images whose files have the same name in several folders are in the same
    split. With `links`, links in the folder may lead out of it. Raises UserError with all mistakes, each with its line.
    """
    path = Path(path).expanduser()
    check_test_fraction(test_fraction)
    require_image_table(path)
    mistakes = Mistakes(path)
    table = read_table(path, needed=("image", "label"), columns=columns or {}, mistakes=mistakes)
    with mistakes.before_others(fix=FIX):
        rows = read_splits(table, splits, mistakes=mistakes)
        cells = rows.table.column("label")
        contents = [normal_name(str(cell)) for cell in cells]
        place = ImagePlace(None if images is None else Path(images).expanduser(), links, repeats)
        found = read_images(rows, place, content=contents.__getitem__, mistakes=mistakes, on_step=on_step)
        listed = _class_list(path, classes)
        targets = _targets(rows.table, listed, mistakes, separator=separator)
    mistakes.check(fix=FIX)
    pairs = list(zip(found.domains, contents, strict=True))
    source = FileSource(found.root, found.files, window, bands=bands)
    copies = () if rows.splits else source.contents
    together = with_same_names(copies, found.files) if names_together else copies
    drawn = draw_test_splits(found.files, pairs, test_fraction=test_fraction, seed=seed, contents=together)
    own = rows.splits or tuple(drawn)
    names = listed or _classes_of(path, cells, rows.splits)
    if not listed:
        targets = labels_of(cells, names.names, mistakes=mistakes, lines=rows.table.lines)
        mistakes.check(fix=FIX)
    known, new = base_and_new(len(names.names), base)
    return Dataset(
        name=path.stem,
        source=source,
        space=LabelSpace(names.names, template=template, attributes=read_attributes(path.parent, names.names)),
        targets=torch.tensor(targets),
        splits=own,
        domains=found.domains,
        base=known,
        new=new,
        unseen_domains=unseen_domains,
        groups=together if names_together else (),
        intake=Intake(
            origins={
                "images": found.origin,
                "classes": "a list of classes" if listed else "the column 'label'",
                "labels": f"the column 'label' of {table.form}",
                "domains": "the column 'domain'",
                "splits": rows.origin or drawn_origin(test_fraction, seed),
            },
            left_out=rows.left_out,
            warnings=(
                *table.remarks,
                *rows.remarks,
                *found.remarks,
                *names.remarks,
                *left_out_columns([name for name in table.columns if name not in KNOWN], place=path),
                *copies_remark(copies, found.files, place=str(path)),
            ),
        ),
    )


def _class_list(path: Path, given: Path | None) -> ClassNames | None:
    """The classes in the file that is given, or in a classes.txt beside the table if there is one."""
    file = path.parent / "classes.txt" if given is None else Path(given).expanduser()
    if given is None and not file.exists():
        return None
    return read_class_file(file)


def _targets(table: Table, listed: ClassNames | None, mistakes: Mistakes, *, separator: str) -> list[int]:
    """The labels over the list of classes, [] without one; those that are missing, lists or several are noted."""
    known = listed.names if listed else ()
    texts: list[str] = []
    good: dict[int, object] = {}  # line -> cell
    for cell, line in zip(table.column("label"), table.lines, strict=True):
        text = normal_name(cell) if isinstance(cell, str) else ""
        if cell == "" or (is_missing(cell) and text not in known):
            mistakes.add("it is empty" if cell == "" else f"{cell!r} is not a label", line=line, column="label")
        elif is_measure(text) and text not in known:
            mistakes.add(f"{cell!r} is a number and no class is called so", line=line, column="label")
        elif isinstance(cell, list | dict):
            mistakes.add(f"{cell!r} holds several labels; label_table reads such", line=line, column="label")
        else:
            good[line] = cell
            texts += [cell] if isinstance(cell, str) else []
    if several := "" if separator == "none" else looks_like_several(texts, known):
        mistakes.add(
            f"{several!r} may be several labels: use {source_setting('source=label_table')} for many per image, or "
            f"give {data_setting('separator', 'none')} if it is one",
            column="label",
        )
    return labels_of(list(good.values()), known, mistakes=mistakes, lines=list(good)) if listed else []


def _classes_of(path: Path, cells: Sequence[object], splits: Sequence[str]) -> ClassNames:
    """The sorted labels of the table; UserError unless every split that it gives has them all and they are names."""
    if all(class_number(normal_name(cell) if isinstance(cell, str) else cell) is not None for cell in cells):
        raise UserError(f"{path} has numbers for labels; list their names, from 0 on, in a classes.txt beside it.")
    found = understand_names([cell for cell in cells if isinstance(cell, str)], place=str(path))
    for split in dict.fromkeys(splits):
        present = {
            found.of[cell] for cell, own in zip(cells, splits, strict=True) if own == split and isinstance(cell, str)
        }
        if missing := [name for name in found.names if name not in present]:
            raise UserError(
                f"{path}: no image of {missing[0]!r} is in the split {split!r}, so the table alone does not define the "
                "classes; list them, one per line in label order, in a classes.txt beside it."
            )
    return found
