"""Writers of one truth in every layout and dialect that the sources read; `WRITERS` has those of each source."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import datasets
import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from documents import Arrow, Cells, Json, Lines, Table, Tar, Tree, Written
from truths import TrueImage, Truth, encoded

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
    sign = chosen(draw, *fit)
    return lambda one: sign.join(sorted(one.labels)), sign


# Annotation tools


def coco(draw: Draw, truth: Truth, root: Path) -> Written:
    name_of, form = image_name(draw, truth)
    parts = truth.splits
    layout = chosen(draw, "roboflow", "coco", "cvat", "one file")
    assume(layout == "one file" or all(any(one.labels for one in truth.images if one.split == part) for part in parts))
    words = split_words(draw, parts)
    year = chosen(draw, "", "2017")
    files, tables = {}, []
    groups = (
        {"": [*truth.images]} if layout == "one file" else {p: [o for o in truth.images if o.split == p] for p in parts}
    )
    categories = draw(st.permutations(truth.classes))
    ids = {name: 3 * number + chosen(draw, 1, 2) for number, name in enumerate(categories)}
    spell = {key: chosen(draw, *ID_FORMS) for key in ("image", "image_id", "category", "category_id")}
    if "uuid" in spell.values():
        spell = dict.fromkeys(spell, "uuid")
    for part, own in groups.items():
        word = words.get(part, "")
        annotations, images = {
            "roboflow": (f"{word}/_annotations.coco.json", f"{word}/"),
            "coco": (f"annotations/instances_{word}{year}.json", f"{word}{year}/"),
            "cvat": (f"annotations/instances_{word}.json", f"images/{word}/"),
            "one file": (chosen(draw, "result.json", "annotations/instances_default.json"), "images/"),
        }[layout]
        files |= {images + name_of(one): one.number for one in own}
        tables.append(
            Json(root / annotations, coco_table(draw, own, name_of, ids, spell), ascii=chosen(draw, True, False))
        )
    order = (
        tuple(sorted(truth.classes, key=lambda name: spelled_id(ids[name], "uuid")))
        if "uuid" in spell.values()
        else categories
    )
    documents = [Tree(root, form, files), *tables]
    return Written({"path": root}, documents, splits=layout != "one file", listed=True, order=order, notes=[layout])


ID_FORMS = ("int", "int", "text", "float", "padded", "uuid")


def spelled_id(number: int, form: str) -> object:
    return {
        "int": number,
        "text": str(number),
        "float": float(number),
        "padded": f"{number:06d}",
        "uuid": f"{97 * number % 89:02x}f-{number}",
    }[form]


def coco_table(
    draw: Draw,
    images: Sequence[TrueImage],
    name_of: Callable[[TrueImage], str],
    ids: Mapping[str, int],
    spell: Mapping[str, str],
) -> dict[str, list[Cells]]:
    regions = [(one, name) for one in images for name in sorted(one.labels) for _ in range(chosen(draw, 1, 1, 2))]
    return {
        "images": [
            {"id": spelled_id(one.number, spell["image"]), "file_name": name_of(one), "width": 4, "height": 4}
            for one in draw(st.permutations(images))
        ],
        "annotations": [
            {
                "id": number,
                "image_id": spelled_id(one.number, spell["image_id"]),
                "category_id": spelled_id(ids[name], spell["category_id"]),
                "bbox": [0, 0, 2, 2],
                "iscrowd": chosen(draw, 0, "0", None, False),
                "area": chosen(draw, 4, None, "4.0"),
            }
            for number, (one, name) in enumerate(draw(st.permutations(regions)))
        ],
        "categories": [
            {"id": spelled_id(ids[name], spell["category"]), "name": name, "supercategory": "thing"}
            for name in draw(st.permutations(sorted(ids)))
        ],
    }


def voc(draw: Draw, truth: Truth, root: Path) -> Written:
    name_of, form = image_name(draw, truth)
    stem_of = lambda one: name_of(one).rpartition(".")[0]  # noqa: E731
    says = chosen(draw, True, True, False)
    words = split_words(draw, truth.splits)
    encoding = chosen(draw, "utf-8", "utf-16")
    documents: list[object] = [Tree(root, form, {f"JPEGImages/{name_of(one)}": one.number for one in truth.images})]
    for one in truth.images:
        names = [name for name in sorted(one.labels) for _ in range(chosen(draw, 1, 1, 2))]
        things = [f"<object><name>{escape(name)}</name><bndbox/></object>" for name in names]
        head = f'<?xml version="1.0" encoding="{encoding}"?>'
        path = root / f"Annotations/{stem_of(one)}.xml"
        documents.append(Lines(path, [head, "<annotation>", *things, "</annotation>"], encoding))
    for part in truth.splits if says else ():
        own = [
            stem_of(one) if chosen(draw, True, True, False) else name_of(one)
            for one in truth.images
            if one.split == part
        ]
        documents.append(Lines(root / f"ImageSets/Main/{words[part]}.txt", own))
    listed = chosen(draw, True, False)
    options = {"path": root, **({"classes": truth.classes} if listed else {})}
    return Written(options, documents, splits=says, listed=listed, order=truth.classes if listed else ())


# Containers


def shard_label(draw: Draw, truth: Truth, order: Sequence[str]) -> Callable[[TrueImage], tuple[str, bytes]]:
    """The suffix and the content of an image's label."""

    def npy(value: object) -> bytes:
        file = io.BytesIO()
        np.save(file, np.array(value))
        return file.getvalue()

    vector = lambda one: [int(name in one.labels) for name in order]  # noqa: E731
    if truth.multi:
        kind = chosen(draw, "npy", "float npy", "names", "numbers", "vectors")
        return {
            "npy": lambda one: ("npy", npy(vector(one))),
            "float npy": lambda one: ("npy", npy([float(mark) for mark in vector(one)])),
            "names": lambda one: ("json", json.dumps({"labels": sorted(one.labels)}).encode()),
            "numbers": lambda one: ("json", json.dumps({"labels": [order.index(own) for own in one.labels]}).encode()),
            "vectors": lambda one: ("json", json.dumps({"labels": vector(one)}).encode()),
        }[kind]
    kind = chosen(draw, "number", "name", "json number", "json name", "npy")
    return {
        "number": lambda one: ("cls", f"{order.index(one.label)}\n".encode()),
        "name": lambda one: ("cls", one.label.encode()),
        "json number": lambda one: ("json", json.dumps({"label": order.index(one.label)}).encode()),
        "json name": lambda one: ("json", json.dumps({"label": one.label}).encode()),
        "npy": lambda one: ("npy", npy(order.index(one.label))),
    }[kind]


def webdataset(draw: Draw, truth: Truth, root: Path) -> Written:
    suffix = chosen(draw, *(own for own in FORMS if own != "PNG"))
    names, order = class_list(draw, truth, root / "classnames.txt")
    label = shard_label(draw, truth, order)
    words = split_words(draw, truth.splits)
    layout = chosen(
        draw, "{split}/0.tar", "{split}/{piece}.tar", "{split}-{piece:06d}.tar", "pets-{split}.tar", "{piece}.tar"
    )
    says = "{split}" in layout
    shards: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
    for place, one in enumerate(truth.images):
        file = layout.format(split=words[one.split], piece=place % 2)
        kind, content = label(one)
        sample = (f"{one.number:06d}", {suffix: encoded(one.number, FORMS[suffix]), kind: content})
        shards.setdefault(file, []).append(sample)
    documents = [names, *(Tar(root / file, samples) for file, samples in shards.items())]
    options = {"path": root, **({} if truth.multi else {"base": "all"})}
    written = Written(options, documents, splits=says, listed=True, order=order)
    written.ambiguous = truth.multi  # lists of numbers may read as vectors, and the other way round
    return written


def hub_labels(draw: Draw, truth: Truth) -> tuple[str, object, Callable[[TrueImage], object], dict[str, object]]:
    """The column of labels, its feature, the label of an image in it, and options; and whether classes are listed."""
    order = tuple(draw(st.permutations(truth.classes)))
    named = datasets.ClassLabel(names=list(order))
    number = order.index
    own = {"classes": order}
    if truth.multi:
        kind = chosen(draw, "class labels", "names", "vectors", "objects")
        return {
            "class labels": ("labels", datasets.Sequence(named), lambda one: [number(name) for name in one.labels], {}),
            "names": ("labels", datasets.Sequence(datasets.Value("string")), lambda one: sorted(one.labels), {}),
            "vectors": (
                "labels",
                datasets.Sequence(datasets.Value(chosen(draw, "int64", "float32", "bool"))),
                lambda one: [int(name in one.labels) for name in order],
                own,
            ),
            "objects": (
                "objects",
                datasets.List({"category": named, "area": datasets.Value("int64")}),
                lambda one: [{"category": number(name), "area": 4} for name in one.labels],
                {},
            ),
        }[kind]
    kind = chosen(draw, "class label", "name", "number", "float")
    return {
        "class label": ("label", named, lambda one: number(one.label), {}),
        "name": ("label", datasets.Value("string"), lambda one: one.label, {}),
        "number": ("label", datasets.Value(chosen(draw, "int64", "uint8")), lambda one: number(one.label), own),
        "float": ("label", datasets.Value("float64"), lambda one: float(number(one.label)), own),
    }[kind]


HUB_NAMES = (
    "data/{split}-00000-of-00001.parquet",
    "default/{split}/0000.parquet",
    "{split}.parquet",
    "pets-{split}.parquet",
    "{split}-0.parquet",
    "",
)


def huggingface(draw: Draw, truth: Truth, root: Path) -> Written:
    column, feature, label, options = hub_labels(draw, truth)
    words = split_words(draw, truth.splits)
    layout = chosen(draw, *HUB_NAMES)
    says = chosen(draw, True, True, False)
    words = words if says else dict.fromkeys(truth.splits, "train")
    suffix = chosen(draw, *FORMS)
    features = datasets.Features({"image": datasets.Image(), column: feature})
    if len(truth.domains) > 1:
        features["domain"] = datasets.Value("string")
    tables: dict[str, list[Cells]] = {}
    numbers: dict[str, list[int]] = {}
    for one in truth.images:
        row: Cells = {"image": {"bytes": encoded(one.number, FORMS[suffix]), "path": None}, column: label(one)}
        tables.setdefault(words[one.split], []).append(row | ({"domain": one.domain} if len(truth.domains) > 1 else {}))
        numbers.setdefault(words[one.split], []).append(one.number)
    files = {word: layout.format(split=word) for word in tables}
    listed = "ClassLabel" in str(feature) or "classes" in options
    options = {"path": str(root), **({} if truth.multi or len(truth.domains) > 1 else {"base": "all"}), **options}
    documents = [Arrow(root, files, tables, features, numbers)]
    written = Written(options, documents, splits=says, domains=len(truth.domains) > 1, listed=listed)
    written.ambiguous = not says and layout == ""
    return written


Writer = Callable[[Draw, Truth, Path], Written]
WRITERS: Mapping[str, Writer] = {
    writer.__name__: writer
    for writer in (class_table, coco, huggingface, image_folder, label_table, sites, voc, webdataset)
}
# Which truths a source can have: several labels per image (None: both), and how many domains.
KINDS: Mapping[str, dict[str, object]] = {
    "class_table": {"multi": False, "domains": (0, 2)},
    "coco": {"multi": True},
    "huggingface": {"domains": (0, 2)},
    "image_folder": {"multi": False, "domains": (0, 2)},
    "label_table": {"multi": True, "domains": (0, 2)},
    "sites": {"multi": False, "domains": (1, 2)},
    "voc": {"multi": True},
    "webdataset": {},
}
# Sources that read no files of users: what they draw, or published files whose layouts have tests of their own.
OTHER_SOURCES = frozenset({"pictograms", "scenes", "published", "suite"})
