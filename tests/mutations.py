"""Mutations of a written data set, each with the truths that may be read afterwards; anything else must be said."""

from __future__ import annotations

import csv
import json
import random
import unicodedata
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from hypothesis import assume
from hypothesis import strategies as st

from documents import Arrow, Cells, Json, Lines, Table, Tar, Tree, Written
from fedprompt.data.intake.class_names import normal_name
from truths import Truth

Mutation = Callable[[], Sequence[Truth]]
# What a part must not be called: close to a split, and none.
WRONG_SPLITS = ("trian", "tset", "fold1", "Teil", "tr", "train?test", "0", "unlabeled")
TEXT_FORMS = ("{} ", " {}", "\u00a0{}", "{}\u200b", "NFD", "upper", "title")


def spelled(draw: st.DrawFn, text: str) -> str:
    """Another spelling of the same text, or of one that differs in case."""
    form = draw(st.sampled_from(TEXT_FORMS))
    changes = {"NFD": lambda text: unicodedata.normalize("NFD", text), "upper": str.upper, "title": str.title}
    return changes.get(form, form.format)(text)


def mutate(draw: st.DrawFn, truth: Truth, written: Written) -> tuple[str, Sequence[Truth]]:
    """Change one thing in the documents; its name, and the truths that may be read now."""
    found: dict[str, Mutation] = {}
    for number, document in enumerate(written.documents):
        own = KINDS[type(document)](draw, truth, written, document)
        found |= {f"{number} {type(document).__name__} {name}": mutation for name, mutation in own.items()}
    name = draw(st.sampled_from(sorted(found)))
    return name, found[name]()


def shuffled(draw: st.DrawFn, items: Sequence[object]) -> list[object]:
    return draw(st.permutations(items))


def one_of(draw: st.DrawFn, items: Sequence[object]) -> int:
    assume(items)
    return draw(st.integers(0, len(items) - 1))


def in_other_order(rows: list[object], order: Sequence[int]) -> None:
    rows[:] = [rows[place] for place in order]


# Image files


def tree(draw: st.DrawFn, truth: Truth, written: Written, own: Tree) -> dict[str, Mutation]:
    def move(file: str, to: str) -> None:
        assume(to not in own.files)
        own.files[to] = own.files.pop(file)

    def some() -> str:
        return draw(st.sampled_from(sorted(own.files)))

    def drop() -> Sequence[Truth]:
        number = own.files.pop(some())
        return [truth.without(number)] if written.walked else []

    def rename_folder() -> Sequence[Truth]:
        levels = [level for level in range(min(file.count("/") for file in own.files))]
        level = draw(st.sampled_from(levels)) if levels else assume(False)
        name = draw(st.sampled_from(sorted({file.split("/")[level] for file in own.files})))
        to = draw(st.sampled_from((*WRONG_SPLITS, "val", "Testing", "", name.upper(), f"{name}2", f".{name}")))
        for file in list(own.files):
            parts = file.split("/")
            if parts[level] == name:
                parts[level] = to
                move(file, "/".join(filter(None, parts)))
        return renamed(truth, written, name, to)

    def rename_one() -> Sequence[Truth]:
        file = some()
        place, slash, name = file.rpartition("/")
        stem, _, suffix = name.rpartition(".")
        forms = (f"{stem}.{suffix.swapcase()}", f"{stem}.xyz", stem, f".{name}", f"{stem}.{suffix}.part", f"{name}.png")
        to = draw(st.sampled_from(forms))
        move(file, f"{place}{slash}{to}")
        return [truth]

    def move_up() -> Sequence[Truth]:
        file = some()
        assume("/" in file)
        parts = file.split("/")
        move(file, "/".join((*parts[:-2], parts[-1])))
        return []

    def add() -> Sequence[Truth]:
        file = some()
        place, slash, name = file.rpartition("/")
        own.files[f"{place}{slash}another {name}"] = 19
        extra = [one for one in truth.images if one.number == own.files[file]]
        return [truth, replace(truth, images=(*truth.images, *(replace(one, number=19) for one in extra)))]

    def nest() -> Sequence[Truth]:
        for file in list(own.files):
            move(file, f"pets/{file}")
        return [truth]

    return {
        "drop": drop,
        "rename folder": rename_folder,
        "rename one": rename_one,
        "move up": move_up,
        "add": add,
        **({"nest": nest} if written.walked else {}),
    }


def renamed(truth: Truth, written: Written, name: str, to: str) -> Sequence[Truth]:
    """What a folder's new name may mean: the same, another class or another domain; a split never turns into either."""
    other = unicodedata.normalize("NFC", name).strip()
    accepted = [truth]
    if not written.walked:
        return accepted
    if other in truth.classes and to:
        new = tuple(to if own == other else own for own in truth.classes)
        images = (
            replace(one, labels=frozenset({to})) if one.labels == frozenset({other}) else one for one in truth.images
        )
        accepted.append(Truth(new, truth.multi, tuple(images)))
    if other in truth.domains and to:
        images = (replace(one, domain=to) if one.domain == other else one for one in truth.images)
        accepted.append(replace(truth, images=tuple(images)))
    return accepted


# Tables


def table(draw: st.DrawFn, truth: Truth, written: Written, own: Table) -> dict[str, Mutation]:
    image_column = next(column for column in own.columns if column.lower() == "image")

    def drop() -> Sequence[Truth]:
        row = one_of(draw, own.rows)
        del own.rows[row]
        return [truth.without(own.numbers[row])]

    def double() -> Sequence[Truth]:
        row = one_of(draw, own.rows)
        own.rows.insert(one_of(draw, own.rows), dict(own.rows[row]))
        return [truth]

    def contradict() -> Sequence[Truth]:
        first, second = one_of(draw, own.rows), one_of(draw, own.rows)
        own.rows.append({**own.rows[second], image_column: own.rows[first][image_column]})
        return [truth] if own.rows[first] == own.rows[-1] else []

    def reorder() -> Sequence[Truth]:
        in_other_order(own.rows, shuffled(draw, range(len(own.rows))))
        own.columns = shuffled(draw, own.columns)
        return [truth]

    def retype_label() -> Sequence[Truth]:
        row = one_of(draw, own.rows)
        cell = own.rows[row].get(own.label)
        assume(cell is not None)
        options = [None, "", [], {}, True, 0.9, float("nan"), -1, 99, "nan", [cell], {"a": cell}]
        if own.path.suffix != ".jsonl":
            options = ["", "nan", "None", "0.9", "-1", "99", "[]", f"[{cell}]", f"{cell};", f"{cell}, {cell}"]
        if isinstance(cell, str):
            options += [spelled(draw, cell)] * 3
        if isinstance(cell, int):
            options += [str(cell), float(cell), f"{cell}.0", f"0{cell}"]
        if isinstance(cell, list):
            options += [json.dumps(cell), "; ".join(cell), cell * 2, [*cell, None], [*cell, ""]]
        own.rows[row][own.label] = draw(st.sampled_from(options))
        number = own.numbers[row]
        empty = (
            own.rows[row][own.label] in ("", [], {}, "[]", None, "nan", "None")
            or own.rows[row][own.label] != own.rows[row][own.label]
        )
        unknown = [truth.changed(number, labels=frozenset({"?"})), truth.changed(number, labels=frozenset())]
        return [truth, *(unknown if truth.multi and empty else [])]

    def retype_mark() -> Sequence[Truth]:
        row = one_of(draw, own.rows)
        column = draw(st.sampled_from([name for name in own.columns if name in truth.classes] or [None]))
        assume(column is not None)
        cell = own.rows[row][column]
        own.rows[row][column] = to = draw(
            st.sampled_from(["", "0.9", "2", "x", "nan", "yes", "-1", f"{cell} ", f"0{cell}", f"+{cell}"])
        )
        known = truth.images[[one.number for one in truth.images].index(own.numbers[row])].labels
        return [
            truth,
            *([truth.changed(own.numbers[row], labels=known - {column} | {"?"})] if to in ("", "-1", "nan") else []),
        ]

    def retype_split() -> Sequence[Truth]:
        assume(own.split)
        row = one_of(draw, own.rows)
        cell = own.rows[row][own.split]
        to = draw(st.sampled_from([*WRONG_SPLITS, "", "nan", cell.upper(), f"{cell} ", f"{cell}ing"]))
        own.rows[row][own.split] = to
        return [truth]

    def rename_split() -> Sequence[Truth]:
        assume(own.split)
        name = draw(st.sampled_from(sorted({str(row[own.split]) for row in own.rows})))
        to = draw(st.sampled_from([*WRONG_SPLITS, "", name.swapcase(), f"{name}_set"]))
        for row in own.rows:
            row[own.split] = to if row[own.split] == name else row[own.split]
        return [truth]

    def retype_image() -> Sequence[Truth]:
        row = one_of(draw, own.rows)
        cell = str(own.rows[row][image_column])
        forms = [
            "",
            "nan",
            f"../{cell}",
            f"/{cell}",
            cell.upper(),
            f" {cell} ",
            f"./{cell}",
            cell.replace("/", "//"),
            f"{cell}x",
        ]
        own.rows[row][image_column] = draw(st.sampled_from(forms))
        return [truth]

    def rename_column() -> Sequence[Truth]:
        column = draw(st.sampled_from(own.columns))
        to = draw(
            st.sampled_from([column.swapcase(), f" {column}", f"{column}s", f"\ufeff{column}", "subset", "", "image"])
        )
        assume(to not in own.columns)
        own.columns[own.columns.index(column)] = to
        for row in own.rows:
            row[to] = row.pop(column)
        classes = tuple(unicodedata.normalize("NFC", to).strip() if name == column else name for name in truth.classes)
        images = (
            replace(one, labels=frozenset(classes[truth.classes.index(name)] for name in one.labels))
            for one in truth.images
        )
        return [truth, Truth(classes, truth.multi, tuple(images))]

    def reencode() -> Sequence[Truth]:
        own.encoding = draw(
            st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "cp1250"])
        )
        own.end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
        own.quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
        own.delimiter = draw(st.sampled_from([",", ";", "\t", "|"]))
        try:
            own.save()
        except UnicodeEncodeError:
            assume(False)
        return [truth]

    def cell_too_many() -> Sequence[Truth]:
        assume(own.path.suffix != ".jsonl")
        column = draw(st.sampled_from(["", "note", "label2", "labels"]))
        assume(column not in own.columns)
        own.columns.append(column)
        for row in own.rows:
            row[column] = draw(st.sampled_from(["", "x"]))
        return [truth]

    return {
        "drop row": drop,
        "double row": double,
        "contradict": contradict,
        "reorder": reorder,
        "retype label": retype_label,
        "retype mark": retype_mark,
        "retype split": retype_split,
        "rename split": rename_split,
        "retype image": retype_image,
        "rename column": rename_column,
        "reencode": reencode,
        "cell too many": cell_too_many,
    }


# Annotations


def coco(draw: st.DrawFn, truth: Truth, written: Written, own: Json) -> dict[str, Mutation]:
    images, annotations, categories = (own.table[part] for part in ("images", "annotations", "categories"))

    def drop() -> Sequence[Truth]:
        part = draw(st.sampled_from(["images", "annotations", "categories"]))
        del own.table[part][one_of(draw, own.table[part])]
        return [as_coco(truth, written)] if written.of(Json) else []

    def double() -> Sequence[Truth]:
        part = draw(st.sampled_from(["images", "annotations", "categories"]))
        own.table[part].append(dict(own.table[part][one_of(draw, own.table[part])]))
        return [truth]

    def merge() -> Sequence[Truth]:
        part = draw(st.sampled_from(["images", "categories"]))
        rows = own.table[part]
        first, second = one_of(draw, rows), one_of(draw, rows)
        rows[first]["id"] = rows[second]["id"]
        return [truth] if first == second else []

    def reorder() -> Sequence[Truth]:
        for rows in own.table.values():
            in_other_order(rows, shuffled(draw, range(len(rows))))
        return [truth]

    def retype_id() -> Sequence[Truth]:
        rows, key = draw(
            st.sampled_from(
                [(images, "id"), (annotations, "image_id"), (categories, "id"), (annotations, "category_id")]
            )
        )
        row = rows[one_of(draw, rows)]
        value = row[key]
        number = int(value) if isinstance(value, float) else value
        row[key] = draw(
            st.sampled_from(
                [None, "", True, [], 0.5, 10**6, -1, "x", str(number), f"{number} ", f"00{number}", f"{number}.0"]
            )
        )
        return [truth]

    def rename() -> Sequence[Truth]:
        row = categories[one_of(draw, categories)]
        name = str(row["name"])
        row["name"] = to = draw(
            st.sampled_from(
                [None, "", 7, f"{name} ", unicodedata.normalize("NFD", name), f"{name}2", categories[0]["name"]]
            )
        )
        if len(written.of(Json)) > 1 or not isinstance(to, str):
            return [truth]
        return [truth, renamed_class(truth, name, to)]

    def retype_file() -> Sequence[Truth]:
        row = images[one_of(draw, images)]
        name = str(row["file_name"])
        row["file_name"] = draw(
            st.sampled_from([None, "", f"../{name}", f"./{name}", f" {name}", f"gone {name}", images[0]["file_name"]])
        )
        return [truth]

    def retype_crowd() -> Sequence[Truth]:
        row = annotations[one_of(draw, annotations)]
        row["iscrowd"] = draw(st.sampled_from(["maybe", 2, [], "0.0", "false", 0.0, float("nan")]))
        return [truth]

    def reencode() -> Sequence[Truth]:
        own.encoding = draw(st.sampled_from(["utf-8-sig", "utf-16", "utf-16-le", "cp1252"]))
        own.ascii = draw(st.booleans())
        try:
            own.save()
        except UnicodeEncodeError:
            assume(False)
        return [truth]

    def rename_file() -> Sequence[Truth]:
        name = draw(
            st.sampled_from(
                ["trian.json", "annotations.json", "notes.json", "train.json", "instances_val.json", "result.json"]
            )
        )
        own.path = own.path.parent / name
        return (
            [truth] if len({document.path for document in written.of(Json)}) == len(written.of(Json)) else assume(False)
        )

    found = {"drop": drop, "double": double, "merge": merge, "reorder": reorder, "retype id": retype_id}
    return found | {
        "rename category": rename,
        "retype file": retype_file,
        "retype crowd": retype_crowd,
        "reencode": reencode,
        "rename file": rename_file,
    }


def as_coco(truth: Truth, written: Written) -> Truth:
    """What the COCO tables say now, as far as every annotation still joins to something."""
    names: set[str] = set()
    labels: dict[str, set[str]] = {}
    for document in written.of(Json):
        by_id = {str(row["id"]).lstrip("0").removesuffix(".0"): row["name"] for row in document.table["categories"]}
        files = {str(row["id"]).lstrip("0").removesuffix(".0"): row["file_name"] for row in document.table["images"]}
        names |= set(by_id.values())
        labels |= {file: labels.get(file, set()) for file in files.values()}
        for row in document.table["annotations"]:
            image, category = (str(row[key]).lstrip("0").removesuffix(".0") for key in ("image_id", "category_id"))
            if image in files and category in by_id:
                labels[files[image]].add(by_id[category])
    numbers = {file.rpartition("/")[2]: number for tree in written.of(Tree) for file, number in tree.files.items()}
    own = {numbers[file.rpartition("/")[2]]: frozenset(found) for file, found in labels.items()}
    images = (replace(one, labels=own[one.number]) for one in truth.images if one.number in own)
    return Truth(tuple(sorted(names)), truth.multi, tuple(images))


def renamed_class(truth: Truth, name: str, to: str) -> Truth:
    classes = tuple(to if own == name else own for own in truth.classes)
    images = (replace(one, labels=frozenset(to if own == name else own for own in one.labels)) for one in truth.images)
    return Truth(classes, truth.multi, tuple(images))


# Lists and XML


def lines(draw: st.DrawFn, truth: Truth, written: Written, own: Lines) -> dict[str, Mutation]:
    xml = own.path.suffix == ".xml"
    image_list = "ImageSets" in own.path.parts
    class_list = not xml and not image_list and own.path.suffix == ".txt" and own.path.name != "README.txt"

    def number() -> int:
        return next(
            one.number
            for tree in written.of(Tree)
            for one in truth.images
            if Path(file_of(tree, one.number)).stem == own.path.stem
        )

    def drop() -> Sequence[Truth]:
        place = one_of(draw, own.lines)
        line = own.lines.pop(place)
        if xml and line.startswith("<object>"):
            return [truth.changed(number(), labels=names_in(own.lines))]
        if image_list:
            stem = line.strip()
            gone = [
                one for tree in written.of(Tree) for file, one in tree.files.items() if Path(file).name.startswith(stem)
            ]
            return [truth.without(one) for one in gone]
        return [truth] if xml else []

    def double() -> Sequence[Truth]:
        place = one_of(draw, own.lines)
        own.lines.insert(place, own.lines[place])
        return [truth]

    def blank() -> Sequence[Truth]:
        own.lines.insert(one_of(draw, own.lines), "")
        return [truth]

    def respell() -> Sequence[Truth]:
        place = one_of(draw, own.lines)
        assume(not xml or own.lines[place].startswith("<object>"))
        if xml:
            name = own.lines[place].partition("<name>")[2].partition("</name>")[0]
            own.lines[place] = own.lines[place].replace(name, spelled(draw, name))
        else:
            line = own.lines[place]
            own.lines[place] = spelled(draw, line)
            name = next((name for name in sorted(truth.classes, key=len) if line.strip().endswith(name)), "")
            to = normal_name(own.lines[place])[len(normal_name(line)) - len(name) :]
            return [truth, *([renamed_class(truth, name, to)] if class_list and name else [])]
        return [truth]

    def reencode() -> Sequence[Truth]:
        own.encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252", "utf-16-le"]))
        own.end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
        try:
            own.save()
        except UnicodeEncodeError:
            assume(False)
        return [truth]

    def rename() -> Sequence[Truth]:
        to = draw(
            st.sampled_from(
                [*(f"{name}.txt" for name in WRONG_SPLITS[:4]), "train.xml", f"{own.path.stem}2{own.path.suffix}"]
            )
        )
        own.path = own.path.parent / to
        return [truth]

    found = {"double": double, "blank": blank, "respell": respell, "reencode": reencode, "rename": rename}
    return found | ({"drop": drop} if xml or image_list or class_list else {})


def file_of(tree: Tree, number: int) -> str:
    return next(file for file, own in tree.files.items() if own == number)


def names_in(lines: Sequence[str]) -> frozenset[str]:
    from xml.sax.saxutils import unescape

    return frozenset(
        unescape(line.partition("<name>")[2].partition("</name>")[0]) for line in lines if "<name>" in line
    )


# Containers


def tar(draw: st.DrawFn, truth: Truth, written: Written, own: Tar) -> dict[str, Mutation]:
    def drop() -> Sequence[Truth]:
        key, _ = own.samples.pop(one_of(draw, own.samples))
        return [truth.without(int(key))]

    def drop_member() -> Sequence[Truth]:
        _, parts = own.samples[one_of(draw, own.samples)]
        del parts[draw(st.sampled_from(sorted(parts)))]
        return []

    def double() -> Sequence[Truth]:
        own.samples.append(own.samples[one_of(draw, own.samples)])
        return [truth]

    def reorder() -> Sequence[Truth]:
        own.samples = shuffled(draw, own.samples)
        return [truth]

    def retype() -> Sequence[Truth]:
        key, parts = own.samples[one_of(draw, own.samples)]
        suffix = next(suffix for suffix in parts if suffix in ("cls", "npy", "json"))
        forms = [
            b"",
            b"nan",
            b"-1",
            b"99",
            b"0.5",
            b"[]",
            b"null",
            b'{"label": null}',
            b'{"labels": [99]}',
            b'{"label": true}',
        ]
        forms += [b" " + parts[suffix] + b"\n", b"\xef\xbb\xbf" + parts[suffix]] if suffix != "npy" else []
        parts[suffix] = draw(st.sampled_from(forms))
        return [truth]

    def rename() -> Sequence[Truth]:
        name = draw(st.sampled_from(WRONG_SPLITS[:4]))
        relative = own.path.relative_to(written.options["path"])
        root = Path(str(written.options["path"]))
        own.path = root / name / own.path.name if len(relative.parts) > 1 else own.path.with_name(f"{name}.tar")
        return [truth]

    return {
        "drop": drop,
        "drop member": drop_member,
        "double": double,
        "reorder": reorder,
        "retype": retype,
        "rename": rename,
    }


def arrow(draw: st.DrawFn, truth: Truth, written: Written, own: Arrow) -> dict[str, Mutation]:
    def some() -> tuple[str, int]:
        name = draw(st.sampled_from(sorted(own.tables)))
        return name, one_of(draw, own.tables[name])

    def drop() -> Sequence[Truth]:
        name, row = some()
        assume(len(own.tables[name]) > 1)
        del own.tables[name][row]
        return [truth.without(own.numbers[name][row])]

    def double() -> Sequence[Truth]:
        # Rows of a table have no name: two of one content are two images.
        name, row = some()
        own.tables[name].append(deepcopy(own.tables[name][row]))
        extra = [one for one in truth.images if one.number == own.numbers[name][row]]
        return [replace(truth, images=(*truth.images, *extra))]

    def reorder() -> Sequence[Truth]:
        for rows in own.tables.values():
            in_other_order(rows, shuffled(draw, range(len(rows))))
        return [truth]

    def retype() -> Sequence[Truth]:
        name, row = some()
        cells = own.tables[name][row]
        column = next(key for key in cells if key not in ("image", "domain"))
        value = cells[column]
        options: list[object] = [None]
        if isinstance(value, str):
            options += ["", "nan", spelled(draw, value), spelled(draw, value)]
        if isinstance(value, int | float):
            options += [type(value)(99), type(value)(-1) if "uint" not in str(own.features) else None]
        if isinstance(value, float):
            options += [0.5, float("nan")]
        if isinstance(value, list):
            options += [[], value * 2, [*value, None]]
        cells[column] = draw(st.sampled_from(options))
        number = own.numbers[name][row]
        changed = [truth.changed(number, labels=frozenset()), truth.changed(number, labels=frozenset({"?"}))]
        return [truth, *(changed if truth.multi and cells[column] in (None, []) else [])]

    def drop_split() -> Sequence[Truth]:
        name = draw(st.sampled_from(sorted(own.tables)))
        assume(len(own.tables) > 1)
        del own.tables[name]
        return []

    def rename() -> Sequence[Truth]:
        name = draw(st.sampled_from(sorted(own.tables)))
        to = draw(st.sampled_from([*(wrong for wrong in WRONG_SPLITS if wrong.isalnum()), name.upper(), f"{name}_set"]))
        assume(to not in own.tables)
        own.tables[to], own.numbers[to] = own.tables.pop(name), own.numbers.pop(name)
        own.files[to] = own.files.pop(name).replace(name, to)
        return [truth]

    return {
        "drop": drop,
        "double": double,
        "reorder": reorder,
        "retype": retype,
        "drop split": drop_split,
        "rename": rename,
    }


KINDS = {Tree: tree, Table: table, Json: coco, Lines: lines, Tar: tar, Arrow: arrow}
