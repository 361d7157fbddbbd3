"""Writers of one truth as people keep it: in folders and in tables, in every layout and dialect."""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from documents import Cells, Lines, Table, Tree, Written
from truths import TrueImage, Truth

Draw = st.DrawFn
FORMS = {
    "png": "PNG",
    "PNG": "PNG",
    "bmp": "BMP",
    "webp": "WEBP",
    "tif": "TIFF",
    "ppm": "PPM",
    "jpg": "JPEG",
    "jfif": "JPEG",
}
WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst"),
}
MORE = {"test": ("val", "eval", "holdout", "validation", "dev")}  # for the test part where there is no validation part


def chosen(draw: Draw, *values: object) -> object:
    return draw(st.sampled_from(values))


def split_words(draw: Draw, parts: Sequence[str], forms: Sequence[str] = ("{}",)) -> dict[str, str]:
    """A name for each part, all of one form."""
    form = chosen(draw, *forms)
    case = chosen(draw, str, str.title, str.upper)
    words = {part: (*WORDS[part], *(MORE.get(part, ()) if "val" not in parts else ())) for part in parts}
    return {part: form.format(case(chosen(draw, *words[part]))) for part in parts}


def image_name(draw: Draw, truth: Truth) -> tuple[Callable[[TrueImage], str], str]:
    """A name for every image, and the form in which they are all encoded."""
    suffix = chosen(draw, *FORMS)
    stem = chosen(draw, "{}", "IMG_{:04d}", "photo {}", "Foto-Ä{}", "a.b.{}")
    return lambda one: f"{stem.format(one.number)}.{suffix}", FORMS[suffix]


def as_folder(draw: Draw, truth: Truth) -> dict[str, str]:
    """The classes as folders spell them: composed or decomposed letters, a blank at the end."""
    assume(not any("/" in name or len(name.encode()) > 250 for name in truth.classes))
    return {name: chosen(draw, name, unicodedata.normalize("NFD", name), f"{name} ") for name in truth.classes}


# Folders


def image_folder(draw: Draw, truth: Truth, root: Path) -> Written:
    name_of, form = image_name(draw, truth)
    spelled = as_folder(draw, truth)
    forms = ("{}", "{}_set", "{}-images", "seg_{}", "{}set", "01 {}")
    words = split_words(draw, truth.splits, forms)
    layout = chosen(draw, "split/domain/class", "domain/split/class", "domain/class/split", "domain/class")
    files = {}
    for one in truth.images:
        parts = {"split": words[one.split], "domain": one.domain, "class": spelled[one.label]}
        files["/".join(filter(None, (*(parts[key] for key in layout.split("/")), name_of(one))))] = one.number
    assume(len(files) == len(truth.images))
    says = "split" in layout
    junk = chosen(draw, (), (".DS_Store", "README.txt"))
    extra = [Lines(root / file, ["x"]) for file in junk]
    options: dict[str, object] = {"path": root, "base": "all"}
    if says and chosen(draw, True, False) and layout.startswith("split"):
        options["splits"] = {word: part for part, word in words.items()}
    own = Written(options, [Tree(root, form, files), *extra], splits=says, domains=len(truth.domains) > 1, walked=True)
    own.notes += [layout]
    return own


def sites(draw: Draw, truth: Truth, root: Path) -> Written:
    name_of, form = image_name(draw, truth)
    spelled = as_folder(draw, truth)
    words = split_words(draw, truth.splits)
    layout = chosen(draw, "site/split/class", "site/class/split", "site/class")
    files = {}
    for one in truth.images:
        parts = {"site": one.domain, "split": words[one.split], "class": spelled[one.label]}
        files["/".join((*(parts[key] for key in layout.split("/")), name_of(one)))] = one.number
    assume(len(files) == len(truth.images))
    options = {"classes": truth.classes, "folders": {site: root / site for site in truth.domains}}
    tree = Tree(root, form, files)
    says = "split" in layout
    return Written(options, [tree], splits=says, domains=True, listed=True, order=truth.classes, walked=True)


# Tables


def table_style(draw: Draw, truth: Truth) -> dict[str, object]:
    text = "".join((*truth.classes, *truth.domains))
    encodings = ["utf-8", "utf-8-sig", "utf-16"]
    try:
        text.encode("cp1252")
        encodings.append("cp1252")
    except UnicodeEncodeError:
        pass
    return {
        "delimiter": chosen(draw, ",", ";", "\t", "|"),
        "encoding": chosen(draw, *encodings),
        "end": chosen(draw, "\n", "\r\n"),
        "quoting": chosen(draw, csv.QUOTE_MINIMAL, csv.QUOTE_ALL),
    }


def image_cells(draw: Draw, truth: Truth, root: Path) -> tuple[Tree, dict[int, str], dict[str, object]]:
    """Image files where a table may have them, what its cells say of each, and the option `images` if it is needed."""
    name_of, form = image_name(draw, truth)
    place = chosen(draw, "", "images/", "p/q/", "elsewhere/")
    files = {f"{place}{name_of(one)}": one.number for one in truth.images}
    options = {"images": root / "elsewhere"} if place == "elsewhere/" else {}
    implied = place if place in ("images/", "elsewhere/") and (options or chosen(draw, True, False)) else ""
    spell = chosen(draw, "{}", "./{}", "{}", "back")
    cells = {}
    for file, number in files.items():
        own = file.removeprefix(implied)
        cells[number] = own.replace("/", "\\") if spell == "back" else spell.format(own)
    return Tree(root, form, files), cells, options


def class_list(draw: Draw, truth: Truth, path: Path) -> tuple[Lines, tuple[str, ...]]:
    """A list of the classes in an order of its own."""
    names = draw(st.permutations(truth.classes))
    form = chosen(draw, "{name}", "{name}", "{number} {name}", "{number}: {name}", "{name} ")
    first = chosen(draw, 0, 1)
    lines = [form.format(name=name, number=first + number) for number, name in enumerate(names)]
    return Lines(path, lines, chosen(draw, "utf-8", "utf-8-sig", "utf-16"), chosen(draw, "\n", "\r\n")), tuple(names)


def shared_columns(draw: Draw, truth: Truth, cells: Mapping[int, str]) -> tuple[dict[str, str], list[Cells], bool]:
    """Names of the columns image, split and domain, rows without labels, and whether the splits are said."""
    says = chosen(draw, True, True, False)
    words = split_words(draw, truth.splits)
    case = chosen(draw, str, str.title, str.upper)
    names = {"image": case("image"), "split": case("split"), "domain": case("domain")}
    rows: list[Cells] = []
    for one in truth.images:
        row: Cells = {names["image"]: cells[one.number]}
        if says:
            row[names["split"]] = words[one.split]
        if len(truth.domains) > 1:
            row[names["domain"]] = one.domain
        rows.append(row)
    return names, rows, says


def finished(
    draw: Draw, truth: Truth, root: Path, rows: Sequence[Cells], tree: Tree, options: Mapping[str, object], kind: str
) -> tuple[Table, dict[str, object]]:
    """The table of rows with its columns and rows in an order of their own."""
    columns = draw(st.permutations(list(rows[0])))
    order = draw(st.permutations(range(len(rows))))
    style = table_style(draw, truth)
    path = root / f"t.{kind}"
    if kind == "jsonl":
        style |= {"encoding": chosen(draw, "utf-8", "utf-8-sig", "utf-16")}
    table = Table(
        path, columns, [dict(rows[row]) for row in order], [truth.images[row].number for row in order], **style
    )
    return table, {"path": path, **options}


def class_table(draw: Draw, truth: Truth, root: Path) -> Written:
    tree, cells, options = image_cells(draw, truth, root)
    names, rows, says = shared_columns(draw, truth, cells)
    every = {(split, name) for split in truth.splits for name in truth.classes}
    complete = says and {(one.split, one.label) for one in truth.images} == every
    listed = not complete or chosen(draw, True, False)
    documents = []
    order: tuple[str, ...] = tuple(sorted(truth.classes))
    if listed:
        place = chosen(draw, root / "classes.txt", root / "lists/names.txt")
        own, order = class_list(draw, truth, place)
        documents.append(own)
        options = options if place.parent == root else {**options, "classes": place}
    numbers = listed and chosen(draw, True, False)
    column = chosen(draw, "label", "Label", "category")
    if column == "category":
        options = {**options, "columns": {"label": "category"}}
    kind = chosen(draw, "csv", "tsv", "txt", "jsonl")
    for row, one in zip(rows, truth.images, strict=True):
        number = order.index(one.label)
        row[column] = number if numbers and kind == "jsonl" else str(number) if numbers else one.label
    table, options = finished(draw, truth, root, rows, tree, {**options, "base": "all"}, kind)
    table.split, table.label = names["split"] if says else "", column
    domains = len(truth.domains) > 1
    return Written(options, [table, tree, *documents], splits=says, domains=domains, listed=listed, order=order)


SEPARATORS = ("; ", ";", "|", ", ", ",", "/", "#", " & ", " ")


def label_table(draw: Draw, truth: Truth, root: Path) -> Written:
    tree, cells, options = image_cells(draw, truth, root)
    names, rows, says = shared_columns(draw, truth, cells)
    kind = chosen(draw, "csv", "tsv", "jsonl")
    form = chosen(draw, *(["lists", "marks", "texts"] if kind == "jsonl" else ["columns", "lists", "texts", "vectors"]))
    listed = form in ("columns", "vectors", "marks") or chosen(draw, True, False)
    order: Sequence[str] = ()
    documents = []
    if form == "vectors" or (listed and chosen(draw, True, False)):
        own, order = class_list(draw, truth, root / "classes.txt")
        documents.append(own)
    elif listed and form in ("lists", "texts"):
        listed = False
    ambiguous = False
    if form == "columns":
        true, false = chosen(draw, ("1", "0"), ("1.0", "0.0"), ("True", "False"), (" 1 ", "0"))
        for row, one in zip(rows, truth.images, strict=True):
            assume(not set(truth.classes) & set(row))
            row |= {name: true if name in one.labels else false for name in truth.classes}
    else:
        write, separator = label_cells(draw, truth, form, order, json_lines=kind == "jsonl")
        column = chosen(draw, "labels", "Labels")
        for row, one in zip(rows, truth.images, strict=True):
            row[column] = write(one)
        if separator.strip() not in ("", ";", "|") and chosen(draw, True, False):
            options = {**options, "separator": separator.strip()}
        ambiguous = bool(separator) and "separator" not in options
        ambiguous = ambiguous or (form == "texts" and not separator)
    table, options = finished(draw, truth, root, rows, tree, options, kind)
    table.split = names["split"] if says else ""
    table.label = "" if form == "columns" else column
    domains = len(truth.domains) > 1
    own = Written(options, [table, tree, *documents], splits=says, domains=domains, listed=listed, order=order)
    own.ambiguous, own.notes = ambiguous, [form]
    return own


def label_cells(
    draw: Draw, truth: Truth, form: str, order: Sequence[str], *, json_lines: bool
) -> tuple[Callable[[TrueImage], object], str]:
    """How the labels of an image are written in one cell, and the sign between them, if there is one."""
    if form == "marks":
        return lambda one: {name: int(name in one.labels) for name in truth.classes}, ""
    if form == "vectors":
        between = chosen(draw, " ", ",", "; ", "[]")
        marks = lambda one: [str(int(name in one.labels)) for name in order]  # noqa: E731
        return (lambda one: f"[{', '.join(marks(one))}]" if between == "[]" else between.join(marks(one))), ""
    if form == "lists":
        if json_lines:
            return lambda one: sorted(one.labels), ""
        dump = chosen(draw, str, json.dumps, lambda names: str(np.array(names)) if names else "[]")
        return lambda one: dump(sorted(one.labels)), ""
    fit = [
        sign
        for sign in SEPARATORS
        if not any(sign.strip() in name if sign.strip() else sign in name for name in truth.classes)
    ]
    assume(fit and not any(sign in name for sign in ";|" for name in truth.classes))
    assume(not any(name.startswith(("[", "(", "{")) for name in truth.classes))  # cells that are lists
    sign = chosen(draw, *fit)
    return lambda one: sign.join(sorted(one.labels)), sign
