"""Writers of one truth as programs keep it, COCO, VOC, WebDataset and the Hub; `WRITERS` are those of all sources."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import datasets
import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from dialects import (
    FORMS,
    Draw,
    chosen,
    class_list,
    class_table,
    image_folder,
    image_name,
    label_table,
    sites,
    split_words,
)
from documents import Arrow, Cells, Json, Lines, Tar, Tree, Written
from truths import TrueImage, Truth, encoded

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
OTHER_SOURCES = frozenset({"emoji", "scenes", "published", "suite"})
