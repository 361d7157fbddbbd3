"""Mutations of what programs write: COCO and VOC annotations, lists, tar files and Arrow tables."""

from __future__ import annotations

import unicodedata
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from xml.sax.saxutils import unescape

from hypothesis import assume
from hypothesis import strategies as st

from documents import Arrow, Cells, Json, Lines, Table, Tar, Tree, Written
from fedprompt.data.intake.class_names import normal_name
from mutations import WRONG_SPLITS, Mutations, OfTable, OfTree, Truths, names_of, renamed_class
from truths import UNKNOWN, Truth

PARTS = ("images", "annotations", "categories")


class OfJson(Mutations):
    """Records of COCO files are dropped, doubled, joined and retyped."""

    own: Json

    def _rows(self, *parts: str) -> list[Cells]:
        return self.own.table[self._some(parts or PARTS)]

    def drop(self) -> Truths:
        rows = self._rows()
        del rows[self._place(rows)]
        return [as_coco(self.truth, self.written)]

    def double(self) -> Truths:
        rows = self._rows()
        rows.append(dict(self._some(rows)))
        return [self.truth]

    def merge(self) -> Truths:
        rows = self._rows("images", "categories")
        first, second = self._some(rows), self._some(rows)
        first["id"] = second["id"]
        return [self.truth] if first is second else []

    def reorder(self) -> Truths:
        for rows in self.own.table.values():
            self._shuffle(rows)
        return [self.truth]

    def retype_id(self) -> Truths:
        keys = (("images", "id"), ("annotations", "image_id"), ("categories", "id"), ("annotations", "category_id"))
        part, key = self._some(keys)
        row = self._some(self.own.table[part])
        number = int(row[key]) if isinstance(row[key], float) else row[key]
        odd = [None, "", True, [], 0.5, 10**6, -1, "x"]
        row[key] = self._some([*odd, str(number), f"{number} ", f"00{number}", f"{number}.0"])
        return [self.truth]

    def rename_category(self) -> Truths:
        row, other = self._some(self.own.table["categories"]), self._some(self.own.table["categories"])
        name = str(row["name"])
        decomposed = unicodedata.normalize("NFD", name)
        row["name"] = to = self._some([None, "", 7, f"{name} ", decomposed, f"{name}2", other["name"]])
        alone = len(self.written.of(Json)) == 1 and isinstance(to, str) and (row is other or to != other["name"])
        return [self.truth, *([renamed_class(self.truth, name, to)] if alone else [])]

    def retype_file(self) -> Truths:
        row, other = self._some(self.own.table["images"]), self._some(self.own.table["images"])
        name = str(row["file_name"])
        odd = [None, "", f"../{name}", f"./{name}", f" {name}", f"gone {name}", other["file_name"]]
        row["file_name"] = self._some(odd)
        return [self.truth]

    def retype_crowd(self) -> Truths:
        row = self._some(self.own.table["annotations"])
        row["iscrowd"] = self._some(["maybe", 2, [], "0.0", "false", 0.0, float("nan")])
        return [self.truth]

    def reencode(self) -> Truths:
        self.own.encoding = self._some(["utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
        self.own.ascii = self.draw(st.booleans())
        return [self.truth]

    def rename_file(self) -> Truths:
        names = ("trian.json", "annotations.json", "notes.json", "train.json", "instances_val.json", "result.json")
        self.own.path = self.own.path.parent / self._some(names)
        paths = [document.path for document in self.written.of(Json)]
        assume(len(set(paths)) == len(paths))
        return [self.truth]


def as_coco(truth: Truth, written: Written) -> Truth:
    """What the COCO files say now, as far as annotations join to something."""
    names: set[str] = set()
    labels: dict[str, set[str]] = {}
    for document in written.of(Json):
        images, annotations, categories = (document.table[part] for part in PARTS)
        by_id = {_value(row["id"]): row["name"] for row in categories}
        files = {_value(row["id"]): row["file_name"] for row in images}
        names |= set(by_id.values())
        labels |= {file: set() for file in files.values()}
        for row in annotations:
            image, category = _value(row["image_id"]), _value(row["category_id"])
            if image in files and category in by_id:
                labels[files[image]].add(by_id[category])
    numbers = {Path(file).name: number for tree in written.of(Tree) for file, number in tree.files.items()}
    own = {numbers[file]: frozenset(found) for file, found in labels.items()}
    kept = (replace(one, labels=own[one.number]) for one in truth.images if one.number in own)
    return Truth(tuple(sorted(names)), truth.multi, tuple(kept))


def _value(value: object) -> str:
    return str(value).lstrip("0").removesuffix(".0")


class OfLines(Mutations):
    """Lines of lists and of XML files are dropped, doubled and spelled otherwise."""

    own: Lines

    @property
    def _is_xml(self) -> bool:
        return self.own.path.suffix == ".xml"

    @property
    def _is_image_list(self) -> bool:
        return "ImageSets" in self.own.path.parts

    def drop(self) -> Truths:
        line = self.own.lines.pop(self._place(self.own.lines))
        if self._is_xml:
            names = frozenset(unescape(name_in(line)) for line in self.own.lines if "<name>" in line)
            files = (file for tree in self.written.of(Tree) for file in tree.files.items())
            number = next(number for file, number in files if Path(file).stem == self.own.path.stem)
            return [self.truth.changed(number, labels=names)] if "<object>" in line else [self.truth]
        if self._is_image_list:
            trees = self.written.of(Tree)
            gone = [
                one for tree in trees for file, one in tree.files.items() if Path(file).name.startswith(line.strip())
            ]
            return [self.truth.without(one) for one in gone]
        return [self.truth] if self.own.path.name in ("README.txt", ".DS_Store") else []

    def double(self) -> Truths:
        place = self._place(self.own.lines)
        self.own.lines.insert(place, self.own.lines[place])
        return [self.truth]

    def blank(self) -> Truths:
        self.own.lines.insert(self._place(self.own.lines), "")
        return [self.truth]

    def respell(self) -> Truths:
        place = self._place(self.own.lines)
        line = self.own.lines[place]
        assume(not self._is_xml or "<object>" in line)
        if self._is_xml:
            name = name_in(line)
            self.own.lines[place] = line.replace(f"<name>{name}<", f"<name>{self._respelled(name)}<")
            return [self.truth]
        self.own.lines[place] = self._respelled(line)
        # With labels that are numbers, a class in a list may be called anything.
        name = next((name for name in sorted(self.truth.classes, key=len) if line.strip().endswith(name)), "")
        to = normal_name(self.own.lines[place])[len(normal_name(line)) - len(name) :]
        return [self.truth, *([renamed_class(self.truth, name, to)] if name and not self._is_image_list else [])]

    def reencode(self) -> Truths:
        self.own.encoding = self._some(["utf-8", "utf-8-sig", "utf-16", "cp1252", "utf-16-le"])
        self.own.end = self._some(["\n", "\r\n", "\r"])
        return [self.truth]

    def rename(self) -> Truths:
        names = (
            *(f"{name}.txt" for name in WRONG_SPLITS[:4]),
            "train.xml",
            f"{self.own.path.stem}2{self.own.path.suffix}",
        )
        self.own.path = self.own.path.parent / self._some(names)
        return [self.truth]


def name_in(line: str) -> str:
    return line.partition("<name>")[2].partition("</name>")[0]


class OfTar(Mutations):
    """Samples of tar files are dropped, halved, doubled and retyped."""

    own: Tar

    def drop(self) -> Truths:
        key, _ = self.own.samples.pop(self._place(self.own.samples))
        return [self.truth.without(int(key))]

    def drop_member(self) -> Truths:
        _, parts = self._some(self.own.samples)
        del parts[self._some(sorted(parts))]
        return []

    def double(self) -> Truths:
        self.own.samples.append(self._some(self.own.samples))
        return [self.truth]

    def reorder(self) -> Truths:
        self._shuffle(self.own.samples)
        return [self.truth]

    def retype(self) -> Truths:
        _, parts = self._some(self.own.samples)
        suffix = next(suffix for suffix in parts if suffix in ("cls", "npy", "json"))
        odd = [b"", b"nan", b"-1", b"99", b"0.5", b"[]", b"null"]
        odd += [b'{"label": null}', b'{"labels": [99]}', b'{"label": true}', b'{"label": 0.5}']
        same = [b" " + parts[suffix] + b"\n", b"\xef\xbb\xbf" + parts[suffix]] if suffix != "npy" else []
        parts[suffix] = self._some([*odd, *same])
        return [self.truth]

    def rename(self) -> Truths:
        name, root = self._some(WRONG_SPLITS[:4]), Path(str(self.written.options["path"]))
        in_folder = len(self.own.path.relative_to(root).parts) > 1
        self.own.path = root / name / self.own.path.name if in_folder else root / f"{name}.tar"
        return [self.truth]


class OfArrow(Mutations):
    """Rows of Arrow tables are dropped, doubled and retyped, and splits are dropped and renamed."""

    own: Arrow

    def _row(self) -> tuple[str, int]:
        name = self._some(sorted(self.own.tables))
        return name, self._place(self.own.tables[name])

    def drop(self) -> Truths:
        name, row = self._row()
        assume(len(self.own.tables[name]) > 1)
        del self.own.tables[name][row]
        return [self.truth.without(self.own.numbers[name][row])]

    def double(self) -> Truths:
        # Rows of a table have no name: two of one content are two images.
        name, row = self._row()
        self.own.tables[name].append(deepcopy(self.own.tables[name][row]))
        extra = [one for one in self.truth.images if one.number == self.own.numbers[name][row]]
        return [replace(self.truth, images=(*self.truth.images, *extra))]

    def reorder(self) -> Truths:
        for rows in self.own.tables.values():
            self._shuffle(rows)
        return [self.truth]

    def retype(self) -> Truths:
        name, row = self._row()
        cells, number = self.own.tables[name][row], self.own.numbers[name][row]
        column = next(key for key in cells if key not in ("image", "domain"))
        cells[column] = to = self._some(self._other_labels(cells[column]))
        changed = [self.truth.changed(number, labels=labels) for labels in (frozenset(), frozenset({UNKNOWN}))]
        return [self.truth, *(changed if self.truth.multi and to in (None, []) else [])]

    def _other_labels(self, value: object) -> list[object]:
        odd: list[object] = [None]
        if isinstance(value, str):
            odd += ["", "nan", self._respelled(value), self._respelled(value)]
        if isinstance(value, int | float):
            odd += [type(value)(99), type(value)(-1) if "uint" not in str(self.own.features) else None]
        if isinstance(value, float):
            odd += [0.5, float("nan")]
        if isinstance(value, list):
            odd += [[], value * 2, [*value, None]]
        return odd

    def drop_split(self) -> Truths:
        assume(len(self.own.tables) > 1)
        del self.own.tables[self._some(sorted(self.own.tables))]
        return []

    def rename(self) -> Truths:
        name = self._some(sorted(self.own.tables))
        wrong = (word for word in WRONG_SPLITS if word.isalnum())
        to = self._some([*wrong, name.upper(), f"{name}_set"])
        assume(to not in self.own.tables)
        for tables in (self.own.tables, self.own.numbers):
            tables[to] = tables.pop(name)  # type: ignore[index,attr-defined]
        self.own.files[to] = self.own.files.pop(name).replace(name, to)
        return [self.truth]


KINDS = {Tree: OfTree, Table: OfTable, Json: OfJson, Lines: OfLines, Tar: OfTar, Arrow: OfArrow}


def mutate(draw: st.DrawFn, truth: Truth, written: Written) -> tuple[str, Truths]:
    """Change one thing in one of the documents; what was changed, and the truths that may be read now."""
    choices = [
        (place, name) for place, document in enumerate(written.documents) for name in names_of(KINDS[type(document)])
    ]
    place, name = draw(st.sampled_from(choices))
    document = written.documents[place]
    mutations = KINDS[type(document)](draw, truth, written, document)
    return f"{type(document).__name__} {name}", getattr(mutations, name)()
