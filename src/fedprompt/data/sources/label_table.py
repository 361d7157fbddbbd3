"""Pictures with many labels from one table: CSV or JSONL, where a wrong cell is named by file, line and column."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedprompt.data.dataset import Dataset
from fedprompt.data.decode import Bands, Window
from fedprompt.data.descriptions import read_conditions
from fedprompt.data.labels import LabelSpace
from fedprompt.data.published.listing import Folder, absent, inside
from fedprompt.data.sources.image_folder import SPLITS, FileSource, OnStep, draw_splits, read_attributes
from fedprompt.errors import UserError, did_you_mean

VALUES = {"1": 1, "0": 0, "": -1}  # a blank is unknown
OWN = ("image", "split", "domain", "labels")  # columns that are no class


@dataclass(frozen=True)
class Row:
    """One picture as the table has it; `marks` are its labels by class name, `listed` if all others are absent."""

    line: int
    image: str
    split: str
    domain: str
    marks: Mapping[str, int]
    listed: bool


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
    """Read a table of pictures below the folder `images`, which is the table's own unless named.

    A `.csv` has a column `image` and either one column a class (1 there, 0 not, blank unknown) or a column `labels`
    with the names that are there, between semicolons or bars. A `.jsonl` has one object a line,
    `{"image": "a.jpg", "labels": ["dog"]}` or, where some are unknown, `{"image": "a.jpg", "labels": {"dog": 1}}`.
    Columns `split` (train, val or test) and `domain` may stand beside. Without `split`, each picture is drawn for
    testing with probability `test_fraction` from the seed and its own path. With `links`, links in the folder may lead
    out of it. `new` are classes that nobody trains on.
    `attributes.json` and `conditions.json` beside the table are read too. Raises UserError naming file, line and
    column for whatever is not of this form.
    """
    path = Path(path).expanduser()
    if not 0 <= test_fraction < 1:
        raise UserError(f"test_fraction = {test_fraction} is not a share; give 0 or more, and less than 1.")
    names, rows = _read(path)
    folder = path.parent if images is None else Path(images).expanduser()
    rows = [
        replace(row, image=inside(folder, row.image, origin=f"{path}, line {row.line}", links=links)) for row in rows
    ]
    _check_files(path, Folder(folder, on_step=on_step), rows)
    targets = torch.tensor([[row.marks.get(name, 0 if row.listed else -1) for name in names] for row in rows])
    beside = path.parent / "conditions.json"
    words = read_conditions(beside) if beside.exists() else ()
    attributes = read_attributes(path.parent, names)
    held = tuple(names.index(_known(name, names)) for name in new)
    return Dataset(
        name=path.stem,
        source=FileSource(folder, tuple(row.image for row in rows), window, bands=bands),
        space=LabelSpace(names, kind="multi", template=template, attributes=attributes, conditions=words),
        targets=targets.to(torch.int8),
        splits=_splits(path, rows, fraction=test_fraction, seed=seed),
        domains=tuple(row.domain for row in rows),
        base=tuple(label for label in range(len(names)) if label not in held),
        new=held,
    )


def _known(name: str, names: Sequence[str]) -> str:
    if name not in names:
        raise UserError(f"new names the class {name!r}, which the table does not have{did_you_mean(name, names)}.")
    return name


def _read(path: Path) -> tuple[tuple[str, ...], list[Row]]:
    """The class names (in the order of the columns, or sorted if they were listed) and the rows."""
    form = {".csv": _csv_rows, ".jsonl": _json_rows}.get(path.suffix.lower())
    if form is None:
        raise UserError(f"{path} is neither .csv nor .jsonl; give a table in one of these forms.")
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark in front
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"The table {path} cannot be read ({reason}); give the path of a CSV or JSONL file.") from error
    rows = list(form(path, text))
    ordered = dict.fromkeys(name for row in rows if not row.listed for name in row.marks)
    listed = sorted({name for row in rows for name in row.marks} - ordered.keys())
    if not rows or not (ordered or listed):
        raise UserError(f"The table {path} has no {'labels' if rows else 'rows'}; add some.")
    return (*ordered, *listed), rows


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
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
        shown = ", ".join(map(repr, head[:5])) or "nothing"
        raise UserError(f"{path}, line 1: there is no column 'image' (found {shown}); name that of the files so.")
    for place, name in enumerate(head, start=1):
        if not name or head.count(name) > 1:
            what = f"{name!r} stands {head.count(name)} times" if name else "the name is empty"
            raise UserError(f"{path}, line 1, column {place}: {what}; give each column a name of its own.")
    if "labels" in head and (extra := [name for name in head if name not in OWN]):
        raise UserError(f"{path}, line 1: beside 'labels' there is the column {extra[0]!r}; keep one of the two forms.")


def _csv_row(path: Path, line: int, head: Sequence[str], cells: Sequence[str]) -> Row:
    if len(cells) != len(head):
        raise UserError(f"{path}, line {line}: there are {len(cells)} cells, not {len(head)}; add or drop some.")
    table = dict(zip(head, (cell.strip() for cell in cells), strict=True))
    listed = "labels" in table
    names = re.split(r"[;|]", table["labels"]) if listed else []
    marks = {name.strip(): 1 for name in names if name.strip()}
    for name in [] if listed else [name for name in head if name not in OWN]:
        if table[name] not in VALUES:
            raise _wrong(path, line, name, f"{table[name]!r} is neither 1, 0 nor blank")
        marks[name] = VALUES[table[name]]
    return _row(path, line, table, marks, listed=listed)


def json_object(path: Path, line: int, text: str, *, example: str) -> MutableMapping[str, Any]:
    """The object in a line of a JSONL table; UserError naming the line, with an example, if there is none."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}, line {line}: this is not JSON ({error}); correct the line.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}, line {line}: this is no object; write {example}.")
    return value


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    for line, content in enumerate(text.splitlines(), start=1):
        if not content.strip():
            continue
        table = json_object(path, line, content, example='{"image": "a.jpg", "labels": ["dog"]}')
        labels = table.pop("labels", None)
        for name, value in table.items():
            if name not in OWN or not isinstance(value, str):
                what = f"{value!r} is no text" if name in OWN else f"there is no such key{did_you_mean(name, OWN)}"
                raise _wrong(path, line, name, what)
        yield _row(path, line, table, _marks(path, line, labels), listed=isinstance(labels, list))


def _marks(path: Path, line: int, labels: object) -> dict[str, int]:
    """What a JSON line says of its labels: names that are there, or names with 1, 0 or null."""
    if isinstance(labels, list) and all(isinstance(name, str) for name in labels):
        return {name.strip(): 1 for name in labels}
    if isinstance(labels, dict) and all(value in (0, 1, None) for value in labels.values()):
        return {name.strip(): -1 if value is None else int(value) for name, value in labels.items()}
    raise _wrong(path, line, "labels", "it is neither a list of names nor an object of names with 1, 0 or null")


def _row(path: Path, line: int, table: Mapping[str, str], marks: Mapping[str, int], *, listed: bool) -> Row:
    if not (image := table.get("image", "")):
        raise _wrong(path, line, "image", "it is empty")
    if "" in marks:
        raise _wrong(path, line, "labels", "a class has an empty name")
    split = table.get("split", "").lower()
    if split and split not in SPLITS:
        raise _wrong(path, line, "split", f"{split!r} is neither train, val nor test")
    return Row(line, image, SPLITS.get(split, ""), table.get("domain", ""), marks, listed)


def _wrong(path: Path, line: int, column: str, what: str) -> UserError:
    return UserError(f"{path}, line {line}, column {column!r}: {what}; correct that cell.")


def _check_files(path: Path, folder: Folder, rows: Sequence[Row]) -> None:
    """Every picture is there, and there once."""
    lines: dict[str, int] = {}
    for row in rows:
        if (before := lines.setdefault(row.image, row.line)) != row.line:
            raise _wrong(path, row.line, "image", f"{row.image!r} already stands in line {before}")
    if lost := absent(folder, [row.image for row in rows]):
        row = rows[min(lost)]
        raise _wrong(path, row.line, "image", f"there is no file {folder.path / row.image}")


def _splits(path: Path, rows: Sequence[Row], *, fraction: float, seed: int) -> tuple[str, ...]:
    given = [row.split for row in rows]
    if not any(given):
        parts = [tuple(row.image.split("/")) for row in rows]
        return tuple(draw_splits(parts, [""] * len(rows), [""] * len(rows), fraction=fraction, seed=seed))
    if "" in given:
        raise _wrong(path, rows[given.index("")].line, "split", "it is empty, and other rows have one")
    for word in ("train", "test"):
        if word not in given:
            raise UserError(f"{path}: no row has the split {word!r}; give it to some, or leave the column out.")
    return tuple(given)
