"""Columns of a table under the names that sources ask for, whatever the file calls them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedprompt.data.intake.class_names import class_number
from fedprompt.data.intake.image_files import has_image_name
from fedprompt.data.intake.report import Mistakes
from fedprompt.data.intake.tables import Row, Table, read_rows
from fedprompt.errors import UserError, did_you_mean, first_names, series
from fedprompt.text_files import data_setting

# What the column of images is usually called, in small letters; the first that a table has.
IMAGE_COLUMNS = (
    *("image", "img", "image_path", "img_path", "path", "filepath", "file_path", "file", "filename", "file_name"),
    "picture",
)
KNOWN = ("image", "label", "labels", "split", "domain")


def read_table(
    path: Path, *, needed: Sequence[str], columns: Mapping[str, str] | None = None, mistakes: Mistakes | None = None
) -> Table:
    """Read a table that has the `needed` columns, in any case; `columns` says what it calls some of them.

    The first line decides on the delimiter. A first column without a name that counts rows (pandas' index), and empty
    columns and cells at the end (Excel's), are left out with a remark. Rows that cannot be read are noted in `mistakes`
    and left out, so that those of the others are found too; without it they raise UserError, as a table without rows
    does.
    """
    own = Mistakes(path) if mistakes is None else mistakes
    table = read_rows(path, own)
    if mistakes is None or not table.rows:
        own.check(fix="correct that line")
    if not table.rows:
        raise UserError(f"The table {path} has no rows; add some.")
    with own.before_others(fix="correct that line"):
        found = renamed(table, needed, columns)
    own.call_columns(found.headings)
    return found


def renamed(table: Table, needed: Sequence[str], columns: Mapping[str, str] | None) -> Table:
    """The table with our names for its columns: those that `columns` gives, and those that differ in case alone.

    Without `columns` nobody can name them: then the names in the table must be changed.
    Where nothing is called `image` and `columns` does not say what is, the first of `IMAGE_COLUMNS` that holds texts is
    taken, with a remark. Raises UserError with all needed columns that are missing and all that are alike.
    """
    mistakes, ours, named = Mistakes(table.path), dict[str, str](), columns is not None
    columns = columns or {}
    taken = "" if "image" in columns or "image" not in needed else _image_column(table)
    asked = {**{name: name for name in KNOWN}, **({"image": taken} if taken else {}), **columns}
    for own, theirs in asked.items():
        alike = [name for name in table.columns if name.casefold() == theirs.casefold()]
        exact = [name for name in alike if name == theirs]
        if len(alike) > 1 and not exact:
            mistakes.add(f"it has columns {series(map(repr, alike))}", fix="keep one of them")
        elif alike:
            ours[(exact or alike)[0]] = own
        elif own in columns or own in needed:
            mistakes.add(
                f"it has no column {theirs!r}",
                fix=_naming(table, own, did_you_mean(theirs, table.columns), named=named),
            )
    names = tuple(ours.get(name, name) for name in table.columns)
    for name, count in Counter(names).items():
        if count > 1:
            mistakes.add(f"it has two columns for {name!r}", fix="rename one of them")
    mistakes.check()
    remarks = (f"{table.path}: the images are those of the column {taken!r}.",) if taken else ()
    rows = table.rows
    if names != table.columns:
        rows = tuple(Row(row.line, {ours.get(name, name): row.cells[name] for name in row.cells}) for row in rows)
    headings = {own: theirs for theirs, own in ours.items() if own != theirs}
    return replace(table, columns=names, rows=rows, remarks=(*table.remarks, *remarks), headings=headings)


def _image_column(table: Table) -> str:
    """The column of another usual name that holds the images; "" if there is one called `image`, or none."""
    for usual in IMAGE_COLUMNS:
        for name in table.columns:
            if name.casefold() == usual and _holds_texts(table, name):
                return "" if usual == "image" else name
    return ""


def _holds_texts(table: Table, name: str) -> bool:
    """Whether most cells are texts and no numbers; a class may be called "path", and then its cells are 1 and 0."""
    cells = [str(cell) for cell in table.column(name) if isinstance(cell, str) and cell.strip()]
    return 2 * sum(class_number(cell) is None for cell in cells) > len(cells) or name.casefold() == "image"


def _naming(table: Table, own: str, hint: str, *, named: bool) -> str:
    """How to say which column is meant, with the columns there are; `hint` is a question that goes before.

    `named` says that the user may tell how a column is called.
    """
    have = ", ".join(map(repr, table.columns[:8]))
    files = (name for name in table.columns if any(has_image_name(str(cell)) for cell in table.column(name)[:8]))
    example = next(files, "COLUMN") if own == "image" else "COLUMN"
    way = f"{hint[2:]} Name it so" if hint else "name it so"
    setting = f", or say what it is called with {data_setting(f'columns.{own}', example)}" if named else ""
    return f"{way}{setting} (found {have}; {table.form})"


def left_out_columns(names: Sequence[str], *, place: Path) -> tuple[str, ...]:
    """A sentence that names the columns that nothing is read from, if there are any."""
    return (f"{place}: columns left out: {first_names(names)}.",) if names else ()
