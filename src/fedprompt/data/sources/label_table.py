"""Multi-label images from one table: CSV or JSONL, with errors that name file, line and column."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fedprompt.data.dataset import Dataset
from fedprompt.data.decode import Bands, Window
from fedprompt.data.descriptions import read_attributes, read_conditions
from fedprompt.data.file_source import FileSource
from fedprompt.data.folder import DatasetFolder, OnStep, path_inside
from fedprompt.data.labels import LabelSpace
from fedprompt.data.splits import SPLIT_NAMES, check_test_fraction, draw_independent_splits
from fedprompt.data.table_file import json_lines, read_table_text
from fedprompt.errors import UserError, did_you_mean

VALUES = {"1": 1, "0": 0, "": -1}  # an empty cell is unknown
OWN_COLUMNS = ("image", "split", "domain", "labels")  # columns that are not classes


@dataclass(frozen=True)
class TableRow:
    """One image as the table has it; `labels` by class name, all others absent if `complete`, else unknown."""

    line: int
    image: str
    split: str
    domain: str
    labels: Mapping[str, int]
    complete: bool


def label_table(  # noqa: PLR0913  (every option has a default, and a recipe names them all)
    *,
    path: Path,
    images: Path | None = None,
    seed: int = 0,
    test_fraction: float = 0.25,
    new: tuple[str, ...] = (),
    template: str = "a photo of a {}.",
    links: bool = False,
    window: Window | None = None,
    bands: Bands | None = None,
    on_step: OnStep | None = None,
) -> Dataset:
    """Read a table of images below the folder `images`, which is the table's own unless named.

    A `.csv` has a column `image` and either one column per class (1 present, 0 absent, empty unknown) or a column
    `labels` with the names of present classes, separated by semicolons or bars. A `.jsonl` has one object per line,
    `{"image": "a.jpg", "labels": ["dog"]}` or, where some are unknown, `{"image": "a.jpg", "labels": {"dog": 1}}`.
    Columns `split` (train, val or test) and `domain` are optional. Without `split`, each image is drawn for testing
    with probability `test_fraction` from the seed and its own path. With `links`, links in the folder may lead
    out of it. `new` are classes that nobody trains on.
    `attributes.json` and `conditions.json` beside the table are read too. Raises UserError naming file, line and
    column for whatever is not of this form.
    """
    path = Path(path).expanduser()
    check_test_fraction(test_fraction)
    names, rows = _read(path)
    folder = path.parent if images is None else Path(images).expanduser()
    rows = [
        replace(row, image=path_inside(folder, row.image, origin=f"{path}, line {row.line}", links=links))
        for row in rows
    ]
    _check_files(path, DatasetFolder(folder, on_step=on_step), rows)
    targets = torch.tensor([[row.labels.get(name, 0 if row.complete else -1) for name in names] for row in rows])
    conditions = path.parent / "conditions.json"
    held_out = tuple(names.index(_known(name, names)) for name in new)
    return Dataset(
        name=path.stem,
        source=FileSource(folder, tuple(row.image for row in rows), window, bands=bands),
        space=LabelSpace(
            names,
            kind="multi",
            template=template,
            attributes=read_attributes(path.parent, names),
            conditions=read_conditions(conditions) if conditions.exists() else (),
        ),
        targets=targets.to(torch.int8),
        splits=_splits(path, rows, test_fraction=test_fraction, seed=seed),
        domains=tuple(row.domain for row in rows),
        base=tuple(label for label in range(len(names)) if label not in held_out),
        new=held_out,
    )


def _known(name: str, names: Sequence[str]) -> str:
    if name not in names:
        raise UserError(f"new names the class {name!r}, which the table does not have{did_you_mean(name, names)}.")
    return name


def _read(path: Path) -> tuple[tuple[str, ...], list[TableRow]]:
    """The class names (in the order of the columns, or sorted if they come from lists) and the rows."""
    parse = {".csv": _csv_rows, ".jsonl": _json_rows}.get(path.suffix.lower())
    if parse is None:
        raise UserError(f"{path} is neither .csv nor .jsonl; give a table in one of these formats.")
    rows = list(parse(path, read_table_text(path, formats="CSV or JSONL")))
    ordered = dict.fromkeys(name for row in rows if not row.complete for name in row.labels)
    listed = sorted({name for row in rows for name in row.labels} - ordered.keys())
    if not rows or not (ordered or listed):
        raise UserError(f"The table {path} has no {'labels' if rows else 'rows'}; add some.")
    return (*ordered, *listed), rows


def _csv_rows(path: Path, text: str) -> Iterator[TableRow]:
    first = text.partition("\n")[0]
    delimiter = ";" if first.count(";") > first.count(",") else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        head = [cell.strip() for cell in next(reader, [])]
        _check_head(path, head)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield _csv_row(path, reader.line_num, head, cells)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: this is not CSV ({error}); correct the line.") from error


def _check_head(path: Path, head: Sequence[str]) -> None:
    if "image" not in head:
        found = ", ".join(map(repr, head[:5])) or "nothing"
        raise UserError(
            f"{path}, line 1: there is no column 'image' (found {found}); give the column of files this name."
        )
    for place, name in enumerate(head, start=1):
        if not name or head.count(name) > 1:
            what = f"{name!r} occurs {head.count(name)} times" if name else "the name is empty"
            raise UserError(f"{path}, line 1, column {place}: {what}; give each column a name of its own.")
    if "labels" in head and (extra := [name for name in head if name not in OWN_COLUMNS]):
        raise UserError(f"{path}, line 1: beside 'labels' there is the column {extra[0]!r}; keep one of the two forms.")


def _csv_row(path: Path, line: int, head: Sequence[str], cells: Sequence[str]) -> TableRow:
    if len(cells) != len(head):
        raise UserError(f"{path}, line {line}: there are {len(cells)} cells, not {len(head)}; add or remove some.")
    table = dict(zip(head, (cell.strip() for cell in cells), strict=True))
    if "labels" in table:
        names = (name.strip() for name in re.split(r"[;|]", table["labels"]))
        return _row(path, line, table, {name: 1 for name in names if name}, complete=True)
    labels: dict[str, int] = {}
    for name in head:
        if name not in OWN_COLUMNS:
            if table[name] not in VALUES:
                raise _wrong(path, line, name, f"{table[name]!r} is neither 1, 0 nor empty")
            labels[name] = VALUES[table[name]]
    return _row(path, line, table, labels, complete=False)


def _json_rows(path: Path, text: str) -> Iterator[TableRow]:
    for line, table in json_lines(path, text, example='{"image": "a.jpg", "labels": ["dog"]}'):
        labels = table.pop("labels", None)
        for name, value in table.items():
            if name not in OWN_COLUMNS or not isinstance(value, str):
                known = name in OWN_COLUMNS
                what = f"{value!r} is not text" if known else f"there is no such key{did_you_mean(name, OWN_COLUMNS)}"
                raise _wrong(path, line, name, what)
        yield _row(path, line, table, _json_labels(path, line, labels), complete=isinstance(labels, list))


def _json_labels(path: Path, line: int, labels: object) -> dict[str, int]:
    """The labels of a JSON line: names of present classes, or names with 1, 0 or null."""
    if isinstance(labels, list) and all(isinstance(name, str) for name in labels):
        return {name.strip(): 1 for name in labels}
    if isinstance(labels, dict) and all(value in (0, 1, None) for value in labels.values()):
        return {name.strip(): -1 if value is None else int(value) for name, value in labels.items()}
    raise _wrong(path, line, "labels", "it is neither a list of names nor an object of names with 1, 0 or null")


def _row(path: Path, line: int, table: Mapping[str, str], labels: Mapping[str, int], *, complete: bool) -> TableRow:
    if not (image := table.get("image", "")):
        raise _wrong(path, line, "image", "it is empty")
    if "" in labels:
        raise _wrong(path, line, "labels", "a class has an empty name")
    split = table.get("split", "").lower()
    if split and split not in SPLIT_NAMES:
        raise _wrong(path, line, "split", f"{split!r} is neither train, val nor test")
    return TableRow(line, image, SPLIT_NAMES.get(split, ""), table.get("domain", ""), labels, complete)


def _wrong(path: Path, line: int, column: str, what: str) -> UserError:
    return UserError(f"{path}, line {line}, column {column!r}: {what}; correct that cell.")


def _check_files(path: Path, folder: DatasetFolder, rows: Sequence[TableRow]) -> None:
    """Every image exists and occurs once."""
    lines: dict[str, int] = {}
    for row in rows:
        if (before := lines.setdefault(row.image, row.line)) != row.line:
            raise _wrong(path, row.line, "image", f"{row.image!r} is already in line {before}")
    if missing := folder.missing([row.image for row in rows]):
        row = rows[min(missing)]
        raise _wrong(path, row.line, "image", f"there is no file {folder.path / row.image}")


def _splits(path: Path, rows: Sequence[TableRow], *, test_fraction: float, seed: int) -> tuple[str, ...]:
    given = [row.split for row in rows]
    if not any(given):
        files = [row.image for row in rows]
        return tuple(draw_independent_splits(files, [""] * len(rows), test_fraction=test_fraction, seed=seed))
    if "" in given:
        raise _wrong(path, rows[given.index("")].line, "split", "it is empty, and other rows have one")
    for split in ("train", "test"):
        if split not in given:
            raise UserError(f"{path}: no row has the split {split!r}; give it to some, or leave the column out.")
    return tuple(given)
