"""Files of a data set before they are written, so that they can be mutated first."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets

from truths import encoded

Cells = dict[str, object]


@dataclass
class Tree:
    """Image files below a folder: path -> number of the image."""

    root: Path
    form: str
    files: dict[str, int]

    def save(self) -> None:
        for file, number in self.files.items():
            _write(self.root / file, encoded(number, self.form))


@dataclass
class Table:
    """A table of images, as text with a delimiter or as JSON Lines; `numbers` are the images of its rows."""

    path: Path
    columns: list[str]
    rows: list[Cells]
    numbers: list[int]
    delimiter: str = ","
    encoding: str = "utf-8"
    end: str = "\n"
    quoting: int = csv.QUOTE_MINIMAL
    split: str = ""  # what it calls the column of splits
    label: str = ""  # and the column of labels, if there is one

    def save(self) -> None:
        if self.path.suffix == ".jsonl":
            lines = [json.dumps(row, ensure_ascii=bool(len(self.end) - 1)) for row in self.rows]
            text = self.end.join(lines)
        else:
            file = io.StringIO(newline="")
            writer = csv.writer(file, delimiter=self.delimiter, lineterminator=self.end, quoting=self.quoting)
            writer.writerow(self.columns)
            writer.writerows([[row[column] for column in self.columns] for row in self.rows])
            text = file.getvalue()
        _write(self.path, text.encode(self.encoding))


@dataclass
class Json:
    """A JSON file."""

    path: Path
    table: dict[str, list[Cells]]
    encoding: str = "utf-8"
    ascii: bool = True

    def save(self) -> None:
        _write(self.path, json.dumps(self.table, ensure_ascii=self.ascii).encode(self.encoding))


@dataclass
class Lines:
    """A text file of lines, like a list of classes."""

    path: Path
    lines: list[str]
    encoding: str = "utf-8"
    end: str = "\n"

    def save(self) -> None:
        _write(self.path, self.end.join([*self.lines, ""]).encode(self.encoding))


@dataclass
class Tar:
    """A tar file of samples: per sample its key and its files by suffix."""

    path: Path
    samples: list[tuple[str, dict[str, bytes]]]

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(self.path, "w") as tar:
            for key, parts in self.samples:
                for suffix, content in parts.items():
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


@dataclass
class Arrow:
    """Tables of the `datasets` library by the names of their splits: Parquet files, or a folder of `save_to_disk`."""

    root: Path
    files: dict[str, str]  # name of the split -> file, or "" for all of them in one folder of save_to_disk
    tables: dict[str, list[Cells]]
    features: datasets.Features | None
    numbers: dict[str, list[int]]

    def save(self) -> None:
        made = {
            name: datasets.Dataset.from_list(rows, features=self.features) for name, rows in self.tables.items() if rows
        }
        if not any(self.files.values()):
            datasets.DatasetDict(made).save_to_disk(str(self.root))
            return
        for name, table in made.items():
            path = self.root / self.files[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            table.to_parquet(str(path))


Document = Tree | Table | Json | Lines | Tar | Arrow


@dataclass
class Written:
    """What a writer has put into a folder, before it is saved, and how much of the truth its dialect carries.

    `listed`: the names of all classes are written down, whether or not an image has them. `ambiguous`: a reader may
    refuse this dialect, but not read anything else from it. `order` are the names in label order, if the dialect says.
    """

    options: dict[str, object]
    documents: list[Document]
    splits: bool = True
    domains: bool = False
    listed: bool = False
    ambiguous: bool = False
    order: Sequence[str] = ()
    walked: bool = False  # images are those that a folder holds, not those that a file lists
    notes: list[str] = field(default_factory=list)

    def save(self) -> None:
        for document in self.documents:
            document.save()

    def of(self, kind: type[Document]) -> list[Document]:
        """The documents of a kind."""
        return [document for document in self.documents if isinstance(document, kind)]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
