"""Tables of image paths that a user gives to have the images classified, and of the labels that they have.

Unlike in a data set's own table, a path may lead anywhere, and an image that is not there costs itself alone.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from fedprompt.data.intake.class_names import labels_of, normal_name
from fedprompt.data.intake.label_cells import UNKNOWN, is_missing, read_label_column, truth_columns
from fedprompt.data.intake.report import Mistakes
from fedprompt.data.intake.table_columns import read_table, renamed
from fedprompt.data.intake.tables import SUFFIXES, Row, Table
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError
from fedprompt.file_system import require_file

if TYPE_CHECKING:
    from torch import Tensor

# A class [], or one of 1, 0 and -1 (unknown) per class [C]; in words where a label is none of the classes.
GivenLabel: TypeAlias = "Tensor | tuple[str, ...]"
PARQUET = ".parquet"
FIX = "correct that cell"


def is_path_table(path: Path) -> bool:
    """Whether a file has the name of a table: CSV, TSV, text, JSON Lines or Parquet."""
    return path.suffix.lower() in (*SUFFIXES, PARQUET)


def read_paths(path: Path) -> tuple[tuple[Path, str], ...]:
    """The paths of a table, in its order, each with the text of its cell, "/" between folders.

    Raises UserError for a table that cannot be read and for cells that are no paths.
    """
    table = _read(path, ())
    cells = (str(cell).strip() for cell in table.column("image"))
    return tuple(
        (path, cell if str(path).endswith(cell) else cell.replace("\\", "/"))
        for path, cell in zip(_paths(table, None), cells, strict=True)
    )


@dataclass(frozen=True)
class Matched:
    """The labels of files, None for those without; how many were found `by_name` alone, and how many are `ambiguous`.

    A file is ambiguous if its path is not in the table and its name is that of several rows, or of several such files.
    `unused` labels belong to no file.
    """

    targets: tuple[GivenLabel | None, ...]
    by_name: int = 0
    ambiguous: int = 0
    unused: int = 0

    @property
    def known(self) -> dict[int, Tensor]:
        """The labels that are classes, by the row of their file."""
        return {
            row: target
            for row, target in enumerate(self.targets)
            if target is not None and not isinstance(target, tuple)
        }


@dataclass(frozen=True)
class GivenLabels:
    """Labels of images by their resolved path."""

    path: Path
    targets: Mapping[str, GivenLabel]

    def of(self, files: Sequence[str]) -> Matched:
        """The labels of each file.

        Where a path is not in the table its name decides, if one such file and one row of no other file are called so.
        """
        real = list(map(os.path.realpath, files))
        free: dict[str, list[str]] = {}  # rows by name, without those whose path is that of a file
        for path in self.targets.keys() - set(real):
            free.setdefault(os.path.basename(path), []).append(path)
        names = [
            None if path in self.targets else os.path.basename(file) for path, file in zip(real, files, strict=True)
        ]
        count = Counter(names)
        found: list[GivenLabel | None] = []
        by_name = ambiguous = 0
        for path, name in zip(real, names, strict=True):
            rows = [path] if name is None else free.get(name, [])
            alone = len(rows) == 1 and (name is None or count[name] == 1)
            found.append(self.targets[rows[0]] if alone else None)
            by_name += alone and name is not None
            ambiguous += bool(rows) and not alone
        unused = len(self.targets) - sum(target is not None for target in found)
        return Matched(tuple(found), by_name, ambiguous, unused)


def read_labels(path: Path, space: LabelSpace) -> GivenLabels:
    """Read labels over the candidate classes of `space` from a table with a column of images.

    One label per image stands in `label`; several stand in `labels`, or in one column per class. Rows without a label
    are left out, and a label that is none of the classes stays a word. Raises UserError with all mistakes, each with
    its line.
    """
    require_file(path, "give the path of a table")
    needed = ("label",) if space.kind == "single" else ()
    table = _read(path, needed)
    mistakes = Mistakes(path)
    files = _paths(table, mistakes)
    with mistakes.before_others(fix=FIX):
        targets = _single(table, space, mistakes) if space.kind == "single" else _multi(table, space, mistakes)
    found: dict[str, GivenLabel] = {}
    for file, target, line in zip(map(os.path.realpath, files), targets, table.lines, strict=True):
        if target is None:
            continue
        if file in found and not _is_same(found[file], target):
            mistakes.add(f"{file!r} has another label in an earlier row", line=line)
        found[file] = target
    mistakes.check(fix=FIX)
    if not found:
        raise UserError(f"The table {path} has no label; add some.")
    return GivenLabels(path, found)


def _is_same(one: GivenLabel, other: GivenLabel) -> bool:
    if isinstance(one, tuple) or isinstance(other, tuple):
        return type(one) is type(other) and set(one) == set(other)
    return one.equal(other)


def _single(table: Table, space: LabelSpace, mistakes: Mistakes) -> list[GivenLabel | None]:
    import torch  # paths are read without it, which saves seconds where one is wrong

    cells = table.column("label")
    known = [row for row, cell in enumerate(cells) if not (cell == "" or is_missing(cell)) or cell in space.names]
    lines = [table.lines[row] for row in known]
    labels = labels_of([cells[row] for row in known], space.names, mistakes=mistakes, lines=lines, others=True)
    mistakes.check(fix=FIX)
    found: list[GivenLabel | None] = [None] * len(cells)
    for row, label in zip(known, labels, strict=True):
        found[row] = torch.tensor(label) if label >= 0 else (normal_name(str(cells[row])),)
    return found


def _multi(table: Table, space: LabelSpace, mistakes: Mistakes) -> list[GivenLabel | None]:
    import torch

    if "labels" not in table.columns:
        there = [name for name in space.names if name in table.columns]
        if not there:
            raise UserError(
                f"{table.path} has neither a column 'labels' nor one per class ({space.names[0]!r} for one); add some."
            )
        rows = [row.cells for row in table.rows]
        marks = iter(zip(*truth_columns(rows, there, mistakes=mistakes, lines=table.lines), strict=True))
        columns = {name: next(marks) for name in there}
        unknown = (UNKNOWN,) * len(rows)
        return list(torch.tensor([columns.get(name, unknown) for name in space.names], dtype=torch.int8).T)
    column = read_label_column(table.column("labels"), mistakes=mistakes, lines=table.lines, names=space.names)
    if column.vectors:
        return list(torch.tensor(column.vectors, dtype=torch.int8))
    found: list[GivenLabel | None] = []
    for own, line in zip(column.labels, table.lines, strict=True):
        if own is None:
            found.append(None)
            continue
        labels = labels_of(own, space.names, mistakes=mistakes, lines=[line] * len(own), others=True)
        target = torch.zeros(len(space), dtype=torch.int8)
        target[torch.tensor(labels, dtype=torch.long)] = 1
        found.append(tuple(map(str, own)) if -1 in labels else target)
    return found


def _read(path: Path, needed: Sequence[str]) -> Table:
    if path.suffix.lower() == PARQUET:
        return renamed(_parquet(path), ("image", *needed), None)
    return read_table(path, needed=("image", *needed))


def _parquet(path: Path) -> Table:
    try:
        read = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"The table {path} cannot be read as Parquet ({error}); give another.") from error
    rows = tuple(Row(number, cells) for number, cells in enumerate(read.to_pylist(), start=1))
    if not rows:
        raise UserError(f"The table {path} has no rows; add some.")
    return Table(path, tuple(read.column_names), rows, "Parquet")


def _paths(table: Table, mistakes: Mistakes | None) -> tuple[Path, ...]:
    """The paths of the column `image`: absolute, or below the table's folder, `images` in it, or the working folder."""
    own = Mistakes(table.path) if mistakes is None else mistakes
    cells = []
    for cell, line in zip(table.column("image"), table.lines, strict=True):
        text = cell.strip() if isinstance(cell, str) and not is_missing(cell) else ""
        if not text:
            what = "it is empty" if cell == "" or is_missing(cell) else f"it holds a {type(cell).__name__}, not a path"
            own.add(what, line=line, column="image")
        cells.append(text)
    own.check(fix=FIX)
    folders = (table.path.parent, table.path.parent / "images", Path())
    root = next((one for one in folders if any((one / cell).exists() for cell in cells)), folders[0])
    return tuple(_path(root, cell) for cell in cells)


def _path(root: Path, cell: str) -> Path:
    path = root / Path(cell).expanduser()
    return root / cell.replace("\\", "/") if "\\" in cell and not path.exists() else path
