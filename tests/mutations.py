"""Mutations of a written data set, each with the truths that may be read afterwards; anything else must be said.

A mutation is a public method of the class for its kind of document; it returns the truths.
"""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from hypothesis import assume
from hypothesis import strategies as st

from documents import Document, Table, Tree, Written
from fedprompt.data.intake.class_names import normal_name
from truths import UNKNOWN, Truth

Item = TypeVar("Item")
Truths = Sequence[Truth]
# What a part must not be called: close to a split, and none.
WRONG_SPLITS = ("trian", "tset", "fold1", "Teil", "tr", "train?test", "0", "unlabeled")
TEXT_FORMS = ("{} ", " {}", "\u00a0{}", "{}\u200b", "NFD", "upper", "title")


@dataclass
class Mutations:
    """What the mutations of a document have in common."""

    draw: st.DrawFn
    truth: Truth
    written: Written
    own: Document

    def _some(self, items: Sequence[Item]) -> Item:
        assume(items)
        return self.draw(st.sampled_from(items))

    def _place(self, items: Sequence[object]) -> int:
        assume(items)
        return self.draw(st.integers(0, len(items) - 1))

    def _shuffle(self, items: list[Item]) -> None:
        items[:] = self.draw(st.permutations(items))

    def _respelled(self, text: str) -> str:
        """Another spelling of the same text, or of one that differs in case."""
        form = self._some(TEXT_FORMS)
        changes = {"NFD": lambda text: unicodedata.normalize("NFD", text), "upper": str.upper, "title": str.title}
        return changes.get(form, form.format)(text)


def names_of(kind: type[Mutations]) -> list[str]:
    return [name for name in vars(kind) if not name.startswith("_")]


def renamed_class(truth: Truth, name: str, to: str) -> Truth:
    """The truth with another name for a class; two of one name are one."""
    classes = tuple(dict.fromkeys(to if own == name else own for own in truth.classes))
    images = (replace(one, labels=frozenset(to if own == name else own for own in one.labels)) for one in truth.images)
    return Truth(classes, truth.multi, tuple(images))


class OfTree(Mutations):
    """Image files are dropped, moved and renamed."""

    own: Tree

    def _move(self, file: str, to: str) -> None:
        assume(to not in self.own.files)
        self.own.files[to] = self.own.files.pop(file)

    def _file(self) -> str:
        return self._some(sorted(self.own.files))

    def drop(self) -> Truths:
        number = self.own.files.pop(self._file())
        return [self.truth.without(number)] if self.written.walked else []

    def rename_folder(self) -> Truths:
        level = self._some(range(min(file.count("/") for file in self.own.files)))
        name = self._some(sorted({file.split("/")[level] for file in self.own.files}))
        to = self._some((*WRONG_SPLITS, "val", "Testing", "", name.upper(), f"{name}2", f".{name}"))
        for file in list(self.own.files):
            parts = file.split("/")
            if parts[level] == name:
                parts[level] = to
                self._move(file, "/".join(filter(None, parts)))
        return self._renamed(normal_name(name), normal_name(to))

    def _renamed(self, name: str, to: str) -> Truths:
        """A class or a domain may be called otherwise; a split turns into neither."""
        if not self.written.walked or not to:
            return [self.truth]
        images = (replace(one, domain=to) if one.domain == name else one for one in self.truth.images)
        return [self.truth, renamed_class(self.truth, name, to), replace(self.truth, images=tuple(images))]

    def rename_one(self) -> Truths:
        file = self._file()
        place, slash, name = file.rpartition("/")
        stem, _, suffix = name.rpartition(".")
        forms = (f"{stem}.{suffix.swapcase()}", f"{stem}.xyz", stem, f".{name}", f"{stem}.{suffix}.part", f"{name}.png")
        self._move(file, f"{place}{slash}{self._some(forms)}")
        return [self.truth]

    def move_up(self) -> Truths:
        file = self._file()
        assume("/" in file)
        parts = file.split("/")
        self._move(file, "/".join((*parts[:-2], parts[-1])))
        return []

    def add(self) -> Truths:
        file = self._file()
        place, slash, name = file.rpartition("/")
        self.own.files[f"{place}{slash}another {name}"] = 19
        extra = (replace(one, number=19) for one in self.truth.images if one.number == self.own.files[file])
        return [self.truth, replace(self.truth, images=(*self.truth.images, *extra))]

    def nest(self) -> Truths:
        for file in list(self.own.files):
            self._move(file, f"pets/{file}")
        return [self.truth]


class OfTable(Mutations):
    """Rows, columns and cells of a table are dropped, doubled, moved and retyped, and the file is written otherwise."""

    own: Table

    @property
    def _image(self) -> str:
        return next(column for column in self.own.columns if column.lower() == "image")

    @property
    def _is_json(self) -> bool:
        return self.own.path.suffix == ".jsonl"

    def drop_row(self) -> Truths:
        row = self._place(self.own.rows)
        del self.own.rows[row]
        return [self.truth.without(self.own.numbers[row])]

    def double_row(self) -> Truths:
        row = self._place(self.own.rows)
        self.own.rows.insert(self._place(self.own.rows), dict(self.own.rows[row]))
        return [self.truth]

    def contradict(self) -> Truths:
        first, second = self._place(self.own.rows), self._place(self.own.rows)
        self.own.rows.append({**self.own.rows[second], self._image: self.own.rows[first][self._image]})
        return [self.truth] if self.own.rows[first] == self.own.rows[-1] else []

    def reorder(self) -> Truths:
        self._shuffle(self.own.rows)
        self._shuffle(self.own.columns)
        return [self.truth]

    def retype_label(self) -> Truths:
        row = self._place(self.own.rows)
        cell = self.own.rows[row].get(self.own.label)
        assume(cell is not None)
        self.own.rows[row][self.own.label] = to = self._some(self._other_labels(cell))
        number = self.own.numbers[row]
        changed = [self.truth.changed(number, labels=labels) for labels in (frozenset({UNKNOWN}), frozenset())]
        empty = to in ("", [], {}, "[]", None, "nan", "None") or to != to
        return [self.truth, *(changed if self.truth.multi and empty else [])]

    def _other_labels(self, cell: object) -> list[object]:
        odd: list[object] = [None, "", [], {}, True, 0.9, float("nan"), -1, 99, "nan", [cell], {"a": cell}]
        if not self._is_json:
            odd = ["", "nan", "None", "0.9", "-1", "99", "[]", f"[{cell}]", f"{cell};", f"{cell}, {cell}"]
        if isinstance(cell, str):
            odd += [self._respelled(cell)] * 3
        if isinstance(cell, int):
            odd += [str(cell), float(cell), f"{cell}.0", f"0{cell}"]
        if isinstance(cell, list):
            odd += [json.dumps(cell), "; ".join(cell), cell * 2, [*cell, None], [*cell, ""]]
        return odd

    def retype_mark(self) -> Truths:
        row, column = (
            self._place(self.own.rows),
            self._some([name for name in self.own.columns if name in self.truth.classes]),
        )
        cell, number = self.own.rows[row][column], self.own.numbers[row]
        to = self._some(["", "0.9", "2", "x", "nan", "yes", "-1", f"{cell} ", f"0{cell}", f"+{cell}"])
        self.own.rows[row][column] = to
        known = next(one.labels for one in self.truth.images if one.number == number)
        unknown = self.truth.changed(number, labels=known - {column} | {UNKNOWN})
        return [self.truth, *([unknown] if to in ("", "-1", "nan") else [])]

    def retype_split(self) -> Truths:
        assume(self.own.split)
        row = self._some(self.own.rows)
        cell = str(row[self.own.split])
        row[self.own.split] = self._some([*WRONG_SPLITS, "", "nan", cell.upper(), f"{cell} ", f"{cell}ing"])
        return [self.truth]

    def rename_split(self) -> Truths:
        assume(self.own.split)
        name = self._some(sorted({str(row[self.own.split]) for row in self.own.rows}))
        to = self._some([*WRONG_SPLITS, "", name.swapcase(), f"{name}_set"])
        for row in self.own.rows:
            row[self.own.split] = to if row[self.own.split] == name else row[self.own.split]
        return [self.truth]

    def retype_image(self) -> Truths:
        row = self._some(self.own.rows)
        cell = str(row[self._image])
        odd = ["", "nan", f"../{cell}", f"/{cell}", f"{cell}x"]
        row[self._image] = self._some([*odd, cell.upper(), f" {cell} ", f"./{cell}", cell.replace("/", "//")])
        return [self.truth]

    def rename_column(self) -> Truths:
        column = self._some(self.own.columns)
        to = self._some([column.swapcase(), f" {column}", f"{column}s", f"\ufeff{column}", "subset", "", "image"])
        assume(to not in self.own.columns)
        self.own.columns[self.own.columns.index(column)] = to
        for row in self.own.rows:
            row[to] = row.pop(column)
        return [self.truth, renamed_class(self.truth, column, normal_name(to))]

    def reencode(self) -> Truths:
        encodings = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "cp1250")
        self.own.encoding, self.own.end = self._some(encodings), self._some(["\n", "\r\n", "\r"])
        self.own.quoting = self._some([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        self.own.delimiter = self._some([",", ";", "\t", "|"])
        return [self.truth]

    def cells_too_many(self) -> Truths:
        assume(not self._is_json)
        column = self._some(["", "note", "label2", "labels"])
        assume(column not in self.own.columns)
        self.own.columns.append(column)
        for row in self.own.rows:
            row[column] = self._some(["", "x"])
        return [self.truth]
