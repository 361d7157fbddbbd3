"""The columns that every table of images shares: files, splits and domains, one row per image."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedprompt.data.intake.class_names import normal_name, understand_names
from fedprompt.data.intake.label_cells import is_missing
from fedprompt.data.intake.paths import locate
from fedprompt.data.intake.report import Mistakes
from fedprompt.data.intake.splits import LEFT_OUT, is_split, listed, read_name, understand_splits
from fedprompt.data.intake.table_columns import KNOWN
from fedprompt.data.intake.tables import Table
from fedprompt.errors import UserError, did_you_mean
from fedprompt.text_files import data_setting

if TYPE_CHECKING:
    from fedprompt.data.images import OnStep  # imports torch

Repeats = Literal["refuse", "allow"]


@dataclass(frozen=True)
class SplitRows:
    """The rows of a table that are used, and their splits; () if the table has none."""

    table: Table
    splits: tuple[str, ...]
    origin: str = ""
    remarks: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ImagePlace:
    """Where the images of a table lie, and which of its rows are refused.

    Images lie below `folder`, by default below the table's folder or `images` in it; with `links`, links may lead out
    of it. Two rows of one image are refused unless `repeats` allows them.
    """

    folder: Path | None = None
    links: bool = False
    repeats: Repeats = "refuse"


@dataclass(frozen=True)
class ImageRows:
    """The files below `root` and the domains of rows; `origin` says where the files are."""

    root: Path
    files: tuple[str, ...]
    domains: tuple[str, ...]
    origin: str
    remarks: tuple[str, ...]


def read_splits(table: Table, declared: Mapping[str, str] | None, *, mistakes: Mistakes) -> SplitRows:
    """Understand the column `split`; `declared` says what some of its cells mean, "" leaves their rows out.

    Raises UserError for splits that are understood in part, if nothing is for training or for testing, and if a column
    of another name holds splits.
    """
    cells = [_text(cell) for cell in table.column("split")]
    if not any(cells):
        if declared:
            raise UserError(f"{table.path} has no splits, and `splits` says what they mean; name the column 'split'.")
        _refuse_splits_elsewhere(table)
        return SplitRows(table, ())
    strange = _strange(table, cells, declared or {}, mistakes)
    known = dict.fromkeys(cell for cell in cells if cell and cell not in strange)
    understood = understand_splits(known, place=str(table.path), kind="cells", declared=declared)
    parts = dict(understood.parts) if understood else {}
    for part in ("train", "test"):
        if not (strange or declared or "" in cells) and part not in parts.values():
            raise UserError(f"{table.path}: no row has the split {part!r}; give it to some, or leave the column out.")
    splits = [parts.get(cell, "train") for cell in cells]
    used = [row for row, split in enumerate(splits) if split != LEFT_OUT]
    return SplitRows(
        replace(table, rows=tuple(table.rows[row] for row in used)),
        tuple(splits[row] for row in used),
        f"the column 'split': {listed(known)}",
        understood.remarks if understood else (),
        {"rows of unused splits": len(cells) - len(used)} if len(used) < len(cells) else {},
    )


def _strange(table: Table, cells: Sequence[str], declared: Mapping[str, str], mistakes: Mistakes) -> set[str]:
    """Cells that say no split; noted in `mistakes` by line."""
    found = {cell for cell in cells if cell and cell not in declared and not read_name(cell).word}
    for cell, line in zip(cells, table.lines, strict=True):
        if not cell:
            mistakes.add("it is empty, and other rows have one", line=line, column="split")
        elif cell in found:
            fix = did_you_mean(cell, ("train", "val", "test"))
            fix = fix or f"; say what it is with {data_setting(f'splits.{cell}', 'train')}"
            mistakes.add(f"{cell!r} is neither train, val nor test{fix}", line=line, column="split")
    return found


def _refuse_splits_elsewhere(table: Table) -> None:
    for name in table.columns:
        if name in KNOWN or not all(is_split(_text(row.cells.get(name))) for row in table.rows):
            continue
        cells = {_text(cell) for cell in table.column(name)}
        if len({read_name(cell).word for cell in cells}) > 1:
            raise UserError(
                f"The column {name!r} of {table.path} says {listed(cells)}, and there is no column 'split'; give "
                f"{data_setting('columns.split', name)}, or drop that column."
            )


def read_images(
    rows: SplitRows,
    place: ImagePlace,
    *,
    content: Callable[[int], Hashable],
    mistakes: Mistakes,
    on_step: OnStep | None = None,
) -> ImageRows:
    """Understand the columns `image` and `domain`; what is wrong is noted in `mistakes`.

    `content` of a row of the table is what two rows of one image should agree in.
    """
    table = rows.table
    cells = ["" if is_missing(cell) or not isinstance(cell, str) else cell.strip() for cell in table.column("image")]
    for value, cell, line in zip(table.column("image"), cells, table.lines, strict=True):
        if not cell:
            what = "it is empty" if is_missing(value) or value == "" else f"{value!r} is not text"
            mistakes.add(what, line=line, column="image")
    named = [row for row, cell in enumerate(cells) if cell]
    lines = [table.lines[row] for row in named]
    located = locate(
        [cells[row] for row in named],
        folders=[place.folder] if place.folder else [table.path.parent, table.path.parent / "images"],
        mistakes=mistakes,
        lines=lines,
        links=place.links,
        on_step=on_step,
    )
    remarks = []
    if place.repeats == "refuse":
        splits = [rows.splits[row] if rows.splits else "" for row in named]
        repeated_images(located.files, lines, lambda place: content(named[place]), splits, mistakes=mistakes)
    elif twice := len(located.files) - len(set(located.files)):
        remarks.append(f"{table.path}: {twice:,} rows of images that another row has too are kept, as `repeats` says.")
    domains = [_text(cell) for cell in table.column("domain")]
    understood = understand_names(domains, place=str(table.path), what="domain")
    return ImageRows(
        located.root,
        located.files,
        tuple(understood.of[domain] for domain in domains),
        located.origin,
        (*understood.remarks, *remarks),
    )


def _text(cell: object) -> str:
    """A cell as text; "" for one that is missing or no text."""
    return "" if is_missing(cell) or isinstance(cell, bool | list | dict) else normal_name(str(cell))


def repeated_images(
    images: Sequence[str],
    lines: Sequence[int],
    content: Callable[[int], Hashable],
    splits: Sequence[str],
    *,
    mistakes: Mistakes,
) -> None:
    """Note every row of an image that has another one: the same again, other labels, or another split.

    `content` of a row is what two rows of one image should agree in.
    """
    first: dict[str, int] = {}
    for row, image in enumerate(images):
        before = first.setdefault(image, row)
        if before == row:
            continue
        where = f"{image!r} already stands in line {lines[before]}"
        if splits[row] != splits[before]:
            where += f", there in {splits[before]}, here in {splits[row]}"
        elif content(row) != content(before):
            where += f", there with {content(before)!r}, here with {content(row)!r}"
        fix = f"keep one of the rows, or allow them with {data_setting('repeats', 'allow')}"
        mistakes.add(where, line=lines[row], column="image", fix=fix)
