"""Single-label images from one table: CSV, TSV or JSONL, one row per image."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from fedprompt.data.dataset import Dataset
from fedprompt.data.decode import Bands, Window
from fedprompt.data.descriptions import read_attributes
from fedprompt.data.file_source import FileSource
from fedprompt.data.folder import DatasetFolder, OnStep, path_inside
from fedprompt.data.labels import LabelSpace
from fedprompt.data.splits import SPLIT_NAMES, base_and_new, check_test_fraction, draw_independent_splits
from fedprompt.data.table_file import json_lines, read_lines, read_table_text
from fedprompt.errors import UserError, did_you_mean

DELIMITERS = {".csv": ",", ".tsv": "\t"}
COLUMNS = ("image", "label", "split", "domain")


@dataclass(frozen=True)
class ImageRow:
    """One row of the table; `split` and `domain` are "" where there is no such column."""

    line: int
    image: str
    label: str
    split: str
    domain: str


def class_table(  # noqa: PLR0913  (every option has a default, and a recipe names them all)
    *,
    path: Path,
    images: Path | None = None,
    classes: Path | None = None,
    columns: Mapping[str, str] | None = None,
    base: Literal["half", "all"] = "half",
    unseen_domains: tuple[str, ...] = (),
    test_fraction: float = 0.25,
    template: str = "a photo of a {}.",
    links: bool = False,
    window: Window | None = None,
    bands: Bands | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> Dataset:
    """Read rows of `image` and `label`, and `split` and `domain` if there are such columns, from CSV, TSV or JSONL.

    Images lie below `images`, by default beside the table. The classes are the lines of `classes`, by default of
    `classes.txt` beside the table, and a label is a name or its number from 0 on; without such a list they are the
    sorted labels of the table, if every split has them all. `columns` maps these four names to those of the table
    (`{"image": "filepath", "label": "title"}`). Without a split, each image is drawn for testing with probability
    `test_fraction`. With `links`, links in the folder may lead out of it. Raises UserError naming the line for
    whatever is wrong.
    """
    path = Path(path).expanduser()
    check_test_fraction(test_fraction)
    folder = path.parent if images is None else Path(images).expanduser()
    rows = [
        replace(row, image=path_inside(folder, row.image, origin=f"{path}, line {row.line}", links=links))
        for row in _rows(path, {**dict(zip(COLUMNS, COLUMNS, strict=True)), **(columns or {})})
    ]
    if not rows:
        raise UserError(f"The table {path} has no rows; add some.")
    class_list = path.parent / "classes.txt" if classes is None else Path(classes).expanduser()
    splits = _splits(path, rows, test_fraction=test_fraction, seed=seed)
    names = _listed_classes(class_list) if classes or class_list.exists() else _classes_of(path, rows, splits)
    labels = {name: number for number, name in enumerate(names)}
    if missing := DatasetFolder(folder, on_step=on_step).missing([row.image for row in rows]):
        row = rows[min(missing)]
        raise UserError(f"{path}, line {row.line}: there is no file {folder / row.image}; correct the path.")
    known, new = base_and_new(len(names), base)
    return Dataset(
        name=path.stem,
        source=FileSource(folder, tuple(row.image for row in rows), window, bands=bands),
        space=LabelSpace(names, template=template, attributes=read_attributes(path.parent, names)),
        targets=torch.tensor([_label(path, row, labels) for row in rows]),
        splits=splits,
        domains=tuple(row.domain for row in rows),
        base=known,
        new=new,
        unseen_domains=unseen_domains,
    )


def _rows(path: Path, columns: Mapping[str, str]) -> Iterator[ImageRow]:
    text = read_table_text(path, formats="CSV, TSV or JSONL")
    table: list[tuple[int, Mapping[str, object]]]
    if path.suffix.lower() == ".jsonl":
        table = list(json_lines(path, text, example='{"image": "a.jpg", "label": "dog"}'))
    elif path.suffix.lower() in DELIMITERS:
        reader = csv.DictReader(text.splitlines(), delimiter=DELIMITERS[path.suffix.lower()])
        table = [(reader.line_num, row) for row in reader]
    else:
        raise UserError(f"{path} is neither .csv, .tsv nor .jsonl; give a table in one of these formats.")
    for line, row in table:
        cells = {ours: str(row.get(theirs) if row.get(theirs) is not None else "") for ours, theirs in columns.items()}
        for needed in ("image", "label"):
            if not cells[needed]:
                found = ", ".join(map(repr, row))
                raise UserError(f"{path}, line {line}: {columns[needed]!r} is empty or not there (found {found}).")
        yield ImageRow(line, cells["image"], cells["label"], cells["split"], cells["domain"])


def _splits(path: Path, rows: Sequence[ImageRow], *, test_fraction: float, seed: int) -> tuple[str, ...]:
    given = [row.split.lower() for row in rows]
    if not any(given):
        groups = [(row.domain, row.label) for row in rows]
        files = [row.image for row in rows]
        return tuple(draw_independent_splits(files, groups, test_fraction=test_fraction, seed=seed))
    for row, split in zip(rows, given, strict=True):
        if split not in SPLIT_NAMES:
            raise UserError(f"{path}, line {row.line}: the split {split!r} is neither train, val nor test; correct it.")
    return tuple(SPLIT_NAMES[split] for split in given)


def _listed_classes(path: Path) -> tuple[str, ...]:
    return tuple(read_lines(path, what="The list of classes", hint="write one name per line"))


def _classes_of(path: Path, rows: Sequence[ImageRow], splits: Sequence[str]) -> tuple[str, ...]:
    """The sorted labels of the table; UserError unless every split has them all and they are names."""
    names = sorted({row.label for row in rows})
    for split in dict.fromkeys(splits):
        present = {row.label for row, own in zip(rows, splits, strict=True) if own == split}
        if missing := [name for name in names if name not in present]:
            raise UserError(
                f"{path}: no image of {missing[0]!r} is in the split {split!r}, so the table alone does not define the "
                "classes; list them, one per line in label order, in a classes.txt beside it."
            )
    if all(name.isdigit() for name in names):
        raise UserError(f"{path} has numbers for labels; list their names, from 0 on, in a classes.txt beside it.")
    return tuple(names)


def _label(path: Path, row: ImageRow, labels: Mapping[str, int]) -> int:
    if row.label in labels:
        return labels[row.label]
    if row.label.isdigit() and int(row.label) < len(labels):
        return int(row.label)
    raise UserError(
        f"{path}, line {row.line}: there is no class {row.label!r}{did_you_mean(row.label, labels)} in the list of "
        "classes."
    )
