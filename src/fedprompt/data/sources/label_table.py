"""Multi-label images from one table: CSV, TSV or JSON Lines, with errors that name file, line and column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fedprompt.config.registry import recognised_by
from fedprompt.data.copies import copies_remark, with_same_names
from fedprompt.data.dataset import Dataset
from fedprompt.data.descriptions import read_attributes, read_conditions
from fedprompt.data.file_source import FileSource
from fedprompt.data.image_formats import Bands, Window
from fedprompt.data.images import OnStep
from fedprompt.data.intake.class_names import ClassNames, look_alikes, normal_name, odd_numbers, read_class_file
from fedprompt.data.intake.image_rows import ImagePlace, Repeats, read_images, read_splits
from fedprompt.data.intake.label_columns import read_label_columns
from fedprompt.data.intake.other_form import require_image_table
from fedprompt.data.intake.report import Intake, Mistakes
from fedprompt.data.intake.table_columns import left_out_columns, read_table
from fedprompt.data.intake.tables import Row, column_names, is_table
from fedprompt.data.labels import LabelSpace
from fedprompt.data.splits import check_test_fraction, draw_test_splits, drawn_origin
from fedprompt.errors import UserError, did_you_mean

FIX = "correct that cell"


def _is_label_table(path: Path) -> bool:
    return is_table(path) and "label" not in column_names(path)


@recognised_by(_is_label_table)
def label_table(  # noqa: PLR0913  (every option has a default, and a recipe names them all)
    *,
    path: Path,
    images: Path | None = None,
    classes: Path | None = None,
    columns: Mapping[str, str] | None = None,
    ignore: tuple[str, ...] = (),
    splits: Mapping[str, str] | None = None,
    separator: str = "",
    threshold: float | None = None,
    repeats: Repeats = "refuse",
    seed: int = 1,
    test_fraction: float = 0.25,
    names_together: bool = False,
    new: tuple[str, ...] = (),
    template: str = "a photo of a {}.",
    links: bool = False,
    window: Window | None = None,
    bands: Bands | None = None,
    on_step: OnStep | None = None,
) -> Dataset:
    """Read a table of images below the folder `images`, by default the table's own or `images` in it.

    A table has a column `image` and either one column per class (1 present, 0 absent, empty or -1 unknown) or a column
    `labels` with the names of present classes, as a list or between semicolons, bars or what `separator` says ("none"
    for one name per cell). In JSON Lines, `labels` may also be an object of names with 1, 0 or null (unknown). With a
    `threshold`, cells of class columns may be scores, which are present from there on. The classes are the lines of
    `classes`, by default of `classes.txt` beside the table, if there is such a list. Columns `split` (train, val or
    test) and `domain` are optional; `columns` maps our names to the table's, and `ignore` names columns that are not
    read. Columns of texts that cannot be labels, such as captions, are left out with a warning. `splits` maps names in
    the column `split` to train, val, test or "", which leaves rows out. Without splits, `test_fraction` of each label's
    images is drawn for testing, from the seed and their paths; with `names_together`, images whose files have the same
    name in several folders are in the same split. Two rows of one image are refused unless `repeats` is
    "allow". With `links`, links in the folder may lead out of it. `new` are classes that nobody trains on.
    `attributes.json` and `conditions.json` beside the table are read too. Raises UserError with all mistakes, each with
    its line and column.
    """
    path = Path(path).expanduser()
    check_test_fraction(test_fraction)
    require_image_table(path)
    mistakes = Mistakes(path)
    table = read_table(path, needed=("image",), columns=columns or {}, mistakes=mistakes).without(ignore)
    with mistakes.before_others(fix=FIX):
        rows = read_splits(table, splits, mistakes=mistakes)
        place = ImagePlace(None if images is None else Path(images).expanduser(), links, repeats)
        own = rows.table.rows
        found = read_images(rows, place, content=lambda row: _content(own[row]), mistakes=mistakes, on_step=on_step)
        listed = _class_list(path, classes)
        labels = read_label_columns(rows.table, listed, mistakes, separator=separator, threshold=threshold)
    mistakes.check(fix=FIX)
    if not labels.names:
        raise UserError(f"The table {path} has no labels; add some.")
    source = FileSource(found.root, found.files, window, bands=bands)
    copies = () if rows.splits else source.contents
    together = with_same_names(copies, found.files) if names_together else copies
    drawn = draw_test_splits(
        found.files,
        found.domains,
        labels=labels.values,
        test_fraction=test_fraction,
        seed=seed,
        contents=together,
    )
    conditions = path.parent / "conditions.json"
    held_out = tuple(labels.names.index(_known(name, labels.names)) for name in new)
    return Dataset(
        name=path.stem,
        source=source,
        space=LabelSpace(
            labels.names,
            kind="multi",
            template=template,
            attributes=read_attributes(path.parent, labels.names),
            conditions=read_conditions(conditions) if conditions.exists() else (),
        ),
        targets=torch.tensor(labels.values, dtype=torch.int8),
        splits=rows.splits or tuple(drawn),
        domains=found.domains,
        base=tuple(label for label in range(len(labels.names)) if label not in held_out),
        new=held_out,
        groups=together if names_together else (),
        intake=Intake(
            labels=labels.form,
            origins={
                "images": found.origin,
                "classes": "a list of classes" if listed else "the table",
                "labels": table.form,
                "domains": "the column 'domain'",
                "splits": rows.origin or drawn_origin(test_fraction, seed),
            },
            left_out=rows.left_out,
            warnings=(
                *table.remarks,
                *rows.remarks,
                *found.remarks,
                *labels.remarks,
                *left_out_columns(labels.unread, place=path),
                *(listed.remarks if listed else look_alikes(labels.names, str(path))),
                *(() if listed else odd_numbers(labels.names, str(path))),
                *copies_remark(copies, found.files, place=str(path)),
            ),
        ),
    )


def _known(name: str, names: Sequence[str]) -> str:
    own = normal_name(name)
    if own not in names:
        raise UserError(f"new names the class {name!r}, which the table does not have{did_you_mean(own, names)}.")
    return own


def _content(row: Row) -> str:
    """What two rows of one image should agree in."""
    return ", ".join(f"{name} {value}" for name, value in sorted(row.cells.items()) if name not in ("image", "split"))


def _class_list(path: Path, given: Path | None) -> ClassNames | None:
    file = path.parent / "classes.txt" if given is None else Path(given).expanduser()
    return read_class_file(file) if given is not None or file.exists() else None
