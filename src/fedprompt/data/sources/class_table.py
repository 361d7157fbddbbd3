"""Pictures with one label each from a table: CSV, TSV or JSONL, a row a picture."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch

from fedprompt.data.dataset import Dataset
from fedprompt.data.decode import Bands, Window
from fedprompt.data.labels import LabelSpace
from fedprompt.data.published.listing import Folder, absent, inside
from fedprompt.data.sources.image_folder import SPLITS, FileSource, OnStep, draw_splits, first_half, read_attributes
from fedprompt.data.sources.label_table import json_object
from fedprompt.errors import UserError, did_you_mean

DELIMITERS = {".csv": ",", ".tsv": "\t"}
COLUMNS = ("image", "label", "split", "domain")


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
    """Read rows of `image` and `label`, and `split` and `domain` if they are there, from `.csv`, `.tsv` or `.jsonl`.

    Pictures lie below `images`, by default beside the table. The classes are the lines of `classes`, by default of
    `classes.txt` beside the table, and a label is a name or its number from 0 on; without such a list they are the
    sorted labels of the table, if every split has them all. `columns` says what the table calls the four
    (`{"image": "filepath", "label": "title"}`). Without a split, each picture is drawn for testing with probability
    `test_fraction`. With `links`, links in the folder may lead out of it. Raises UserError naming the line
    for what is wrong.
    """
    path = Path(path).expanduser()
    folder = path.parent if images is None else Path(images).expanduser()
    found = _rows(path, {**dict(zip(COLUMNS, COLUMNS, strict=True)), **(columns or {})})
    rows = [
        (line, {**row, "image": inside(folder, row["image"], origin=f"{path}, line {line}", links=links)})
        for line, row in found
    ]
    if not rows:
        raise UserError(f"The table {path} has no rows; add some.")
    listed = path.parent / "classes.txt" if classes is None else Path(classes).expanduser()
    splits = _splits(path, rows, fraction=test_fraction, seed=seed)
    names = _names(listed) if classes or listed.exists() else _found(path, rows, splits)
    labels = {name: number for number, name in enumerate(names)}
    if lost := absent(Folder(folder, on_step=on_step), [row["image"] for _, row in rows]):
        line, row = rows[min(lost)]
        raise UserError(f"{path}, line {line}: there is no file {folder / row['image']}; correct the path.")
    known = tuple(range(len(names))) if base == "all" else first_half(len(names))
    return Dataset(
        name=path.stem,
        source=FileSource(folder, tuple(row["image"] for _, row in rows), window, bands=bands),
        space=LabelSpace(names, template=template, attributes=read_attributes(path.parent, names)),
        targets=torch.tensor([_label(path, line, row["label"], labels) for line, row in rows]),
        splits=splits,
        domains=tuple(row["domain"] for _, row in rows),
        base=known,
        new=tuple(range(len(known), len(names))),
        unseen_domains=unseen_domains,
    )


def _rows(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and the four cells, "" where a column is not there."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The table {path} cannot be read ({error}); give a .csv, .tsv or .jsonl file.") from error
    if path.suffix.lower() == ".jsonl":
        lines = enumerate(text.splitlines(), start=1)
        example = '{"image": "a.jpg", "label": "dog"}'
        table = [(number, json_object(path, number, line, example=example)) for number, line in lines if line.strip()]
    elif path.suffix.lower() in DELIMITERS:
        reader = csv.DictReader(text.splitlines(), delimiter=DELIMITERS[path.suffix.lower()])
        table = [(reader.line_num, row) for row in reader]
    else:
        raise UserError(f"{path} is neither .csv, .tsv nor .jsonl; give a table in one of these forms.")
    for number, row in table:
        cells = {ours: str(row.get(theirs) if row.get(theirs) is not None else "") for ours, theirs in columns.items()}
        for needed in ("image", "label"):
            if not cells[needed]:
                have = ", ".join(map(repr, row))
                raise UserError(f"{path}, line {number}: {columns[needed]!r} is empty or not there (found {have}).")
        yield number, cells


def _splits(path: Path, rows: list[tuple[int, dict[str, str]]], *, fraction: float, seed: int) -> tuple[str, ...]:
    given = [row["split"].lower() for _, row in rows]
    if not any(given):
        parts = [tuple(row["image"].split("/")) for _, row in rows]
        groups = [row["domain"] for _, row in rows], [row["label"] for _, row in rows]
        return tuple(draw_splits(parts, *groups, fraction=fraction, seed=seed))
    for (line, _), word in zip(rows, given, strict=True):
        if word not in SPLITS:
            raise UserError(f"{path}, line {line}: the split {word!r} is neither train, val nor test; correct it.")
    return tuple(SPLITS[word] for word in given)


def _names(path: Path) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The list of classes {path} cannot be read ({error}); write one name a line.") from error


def _found(path: Path, rows: list[tuple[int, dict[str, str]]], splits: tuple[str, ...]) -> tuple[str, ...]:
    names = sorted({row["label"] for _, row in rows})
    for word in dict.fromkeys(splits):
        here = {row["label"] for (_, row), split in zip(rows, splits, strict=True) if split == word}
        if lost := [name for name in names if name not in here]:
            raise UserError(
                f"{path}: no picture of {lost[0]!r} is in the split {word!r}, so the classes cannot be told from the "
                "table; list them, one a line in label order, in a classes.txt beside it."
            )
    if all(name.isdigit() for name in names):
        raise UserError(f"{path} has numbers for labels; list their names, from 0 on, in a classes.txt beside it.")
    return tuple(names)


def _label(path: Path, line: int, word: str, labels: Mapping[str, int]) -> int:
    if word in labels:
        return labels[word]
    if word.isdigit() and int(word) < len(labels):
        return int(word)
    raise UserError(
        f"{path}, line {line}: there is no class {word!r}{did_you_mean(word, labels)} in the list of classes."
    )
