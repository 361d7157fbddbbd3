"""Files for the battery of data sources: each function writes what the source of its name reads and returns options.

`content` is 0 or 1; with 1 the first image is another one.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from PIL import Image

from fedprompt.testing import tiny_images
from trees import TREES, as_json, text, xml

Options = dict[str, object]
CLASSES = ("cat", "dog")


def emoji(folder: Path, content: int) -> Options:
    return {"seed": content, "train": 1, "test": 1}


def scenes(folder: Path, content: int) -> Options:
    return {"seed": content, "train": 2, "test": 1}


def image_folder(folder: Path, content: int) -> Options:
    _write(folder, [f"{name}/{number}.png" for name in CLASSES for number in range(4)], content)
    return {"path": folder, "base": "all"}


def sites(folder: Path, content: int) -> Options:
    for site in ("east", "west"):
        image_folder(folder / site, content)
    image_folder(folder / "common", content)
    folders = {site: folder / site for site in ("east", "west")}
    return {"classes": CLASSES, "folders": folders, "test": folder / "common"}


def class_table(folder: Path, content: int) -> Options:
    files = [f"{number}.png" for number in range(8)]
    _write(folder, files, content)
    text(folder / "t.csv", ["image,label", *(f"{file},{CLASSES[row % 2]}" for row, file in enumerate(files))])
    return {"path": folder / "t.csv", "base": "all"}


def label_table(folder: Path, content: int) -> Options:
    files = [f"{number}.png" for number in range(8)]
    _write(folder, files, content)
    text(folder / "t.csv", ["image,cat,dog", *(f"{file},{row % 2},{row % 3 % 2}" for row, file in enumerate(files))])
    return {"path": folder / "t.csv"}


def coco(folder: Path, content: int) -> Options:
    files = [f"{number}.png" for number in range(8)]
    _write(folder / "images", files, content)
    table = {
        "images": [{"id": number, "file_name": file} for number, file in enumerate(files)],
        "annotations": [{"image_id": number, "category_id": number % 2} for number in range(len(files))],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES)],
    }
    as_json(folder / "annotations/train.json", table)
    return {"path": folder}


def voc(folder: Path, content: int) -> Options:
    _write(folder / "JPEGImages", [f"{number}.png" for number in range(8)], content)
    for number in range(8):
        xml(folder / f"Annotations/{number}.xml", [(CLASSES[number % 2], 0)])
    return {"path": folder}


def webdataset(folder: Path, content: int) -> Options:
    for split in ("train", "test"):
        (folder / split).mkdir()
        with tarfile.open(folder / split / "0.tar", "w") as tar:
            for number in range(4):
                for suffix, data in (("png", _png(number, content)), ("cls", str(number % 2).encode())):
                    member = tarfile.TarInfo(f"{number}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    text(folder / "classnames.txt", CLASSES)
    return {"path": folder, "base": "all"}


def published(folder: Path, content: int) -> Options:
    TREES["eurosat"](folder)
    _replace_one(folder, content)
    return {"name": "eurosat", "root": folder}


def suite(folder: Path, content: int) -> Options:
    for name in ("dtd", "eurosat"):
        TREES[name](folder)
    _replace_one(folder, content)
    return {"root": folder, "sets": ("dtd",), "targets": ("eurosat",)}


def _write(folder: Path, files: list[str], content: int) -> None:
    for number, file in enumerate(files):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_png(number, content))


def _png(number: int, content: int) -> bytes:
    file = io.BytesIO()
    tiny_images().open(11 if content and number == 0 else number).save(file, "PNG")
    return file.getvalue()


def _replace_one(folder: Path, content: int) -> None:
    if content:
        first = min(folder.rglob("*.jpg"))
        Image.new("RGB", (9, 9), "red").save(first, "PPM")  # the suffix does not matter
