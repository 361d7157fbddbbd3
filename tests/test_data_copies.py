"""Copies of an image: drawn into one split in every source, and said, as are copies with other labels."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from PIL import Image

from fedprompt.data.copies import same_content, with_same_names
from fedprompt.data.dataset import Dataset
from fedprompt.data.file_source import FileSource
from fedprompt.data.problems import find_problems, scan_images
from fedprompt.data.sources.class_table import class_table
from fedprompt.data.sources.coco import coco
from fedprompt.data.sources.huggingface import huggingface
from fedprompt.data.sources.image_folder import image_folder
from fedprompt.data.sources.label_table import label_table
from fedprompt.data.sources.voc import voc
from fedprompt.data.sources.webdataset import webdataset
from fedprompt.data.splits import draw_stratified_splits, draw_test_splits
from test_data_users_files import shard, xml

COUNT = 24  # images, of which every second is a copy of the one before it
Drawn = Callable[[Path, int], Dataset]


def content(number: int) -> bytes:
    """Two images in a row are the same; all files are of one size, so that sizes do not tell them apart."""
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (number // 2, 7, 9)).save(file, "BMP")
    return file.getvalue()


def name(number: int) -> str:
    return f"{7 * number % COUNT:02}.bmp"  # copies do not stand side by side


def files(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number in range(COUNT):
        (folder / name(number)).write_bytes(content(number))
    return folder


def of_folder(root: Path, seed: int) -> Dataset:
    files(root / "data/cat")
    return image_folder(path=root / "data", seed=seed, layout="classes")


def of_class_table(root: Path, seed: int) -> Dataset:
    files(root / "images")
    rows = [f"{name(number)},{'cat' if number % 4 < 2 else 'dog'}" for number in range(COUNT)]
    (root / "labels.csv").write_text("\n".join(["image,label", *rows]))
    return class_table(path=root / "labels.csv", seed=seed)


def of_label_table(root: Path, seed: int) -> Dataset:
    files(root / "images")
    rows = [f"{name(number)},1,0" for number in range(COUNT)]
    (root / "labels.csv").write_text("\n".join(["image,cat,dog", *rows]))
    return label_table(path=root / "labels.csv", seed=seed)


def of_coco(root: Path, seed: int) -> Dataset:
    files(root / "images")
    table = {
        "images": [{"id": number, "file_name": name(number)} for number in range(COUNT)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": number, "image_id": number, "category_id": 1} for number in range(COUNT)],
    }
    (root / "instances.json").write_text(json.dumps(table))
    return coco(path=root, seed=seed)


def of_voc(root: Path, seed: int) -> Dataset:
    for number in range(COUNT):
        key = Path(name(number)).stem
        xml(root, key, "cat")
        (root / f"JPEGImages/{key}.jpg").write_bytes(content(number))
    return voc(path=root, seed=seed)


def of_shards(root: Path, seed: int) -> Dataset:
    root.mkdir(exist_ok=True)
    (root / "classnames.txt").write_text("cat\n")
    samples = {name(number): content(number) for number in range(COUNT)}
    shard(root / "shards/0.tar", samples | {f"{Path(one).stem}.cls": b"0" for one in samples})
    return webdataset(path=root, seed=seed)


def of_parquet(root: Path, seed: int) -> Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat"])})
    rows = [{"bytes": content(number), "path": None} for number in range(COUNT)]
    root.mkdir(exist_ok=True)
    table = datasets.Dataset.from_dict({"image": rows, "label": [0] * COUNT}, features=features)
    table.to_parquet(str(root / "train-00000-of-00001.parquet"))
    return huggingface(path=str(root), seed=seed)


@pytest.mark.parametrize(
    "read",
    [of_folder, of_class_table, of_label_table, of_coco, of_voc, of_shards, of_parquet],
    ids=lambda one: one.__name__,
)
def test_no_source_draws_an_image_for_testing_whose_copy_is_trained_on(tmp_path: Path, read: Drawn) -> None:
    data = read(tmp_path, 3)
    split_of: dict[bytes, set[str]] = {}
    for row, split in enumerate(data.splits):
        split_of.setdefault(data.source.open(row).tobytes(), set()).add(split)
    assert len(split_of) == COUNT / 2 and all(len(own) == 1 for own in split_of.values())
    assert {"train", "test"} <= set(data.splits)
    (said,) = [text for text in data.report.warnings if "byte for byte" in text]
    assert f"{COUNT // 2} images are copies of another one" in said and "in the same split" in said


@pytest.mark.parametrize("seed", range(5))
def test_copies_follow_the_image_that_is_drawn_without_them(seed: int) -> None:
    own = [f"cat/{number}.png" for number in range(9)]
    copies = [*own, "cat/z.png", "cat/zz.png"]
    for draw in (
        lambda files, **more: draw_test_splits(files, ["cat"] * len(files), test_fraction=0.4, seed=seed, **more),
        lambda files, **more: draw_stratified_splits(files, ["cat"] * len(files), seed=seed, **more),
    ):
        alone = draw(own)
        assert draw(own, contents=range(9)) == alone
        assert draw(copies, contents=[*range(9), 4, 4]) == [*alone, alone[4], alone[4]]


@pytest.mark.parametrize("seed", range(10))
def test_a_class_of_nothing_but_copies_is_trained_on(seed: int) -> None:
    paths = ["a/1.png", "a/2.png", "b/1.png"]
    for second in (0, 1):
        contents = [0, 1, second]
        splits = draw_test_splits(paths, ["a", "a", "b"], test_fraction=0.9, seed=seed, contents=contents)
        assert splits[2] == splits[second] == "train"


def test_rows_are_compared_by_a_dear_key_only_where_the_cheap_ones_agree() -> None:
    asked = []

    def dear(row: int) -> int:
        asked.append(row)
        return row // 2

    sizes = (1, 5, 2, 2, 2, 5)
    assert same_content(6, (sizes.__getitem__, dear)) == (0, 1, 2, 2, 4, 5)
    assert sorted(asked) == [1, 2, 3, 4, 5]


def test_files_that_cannot_be_read_are_copies_of_none(tmp_path: Path) -> None:
    files(tmp_path / "data")
    for number in (4, 5):
        (tmp_path / "data" / name(number)).unlink()
        (tmp_path / "data" / name(number)).symlink_to("nowhere")
    found = FileSource(tmp_path / "data", tuple(map(name, range(COUNT)))).contents
    assert found[4:6] == (4, 5) and found[6:8] == (6, 6)


def test_the_same_image_with_two_labels_is_a_problem_with_both_paths(tmp_path: Path) -> None:
    for place in ("fruit/tomato.bmp", "vegetable/red.bmp"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(content(0))
    for number, place in itertools.product((2, 4, 6), ("fruit", "vegetable")):
        (tmp_path / place / f"{number}.bmp").write_bytes(content(number + (place == "fruit") * 100))
    data = image_folder(path=tmp_path)
    (problem,) = find_problems(data, scan_images(data.source, range(len(data.source))))
    assert problem.kind == "labels" and "fruit/tomato.bmp (fruit)" in problem.message
    assert "vegetable/red.bmp (vegetable)" in problem.message


def test_same_names_join_copies_and_what_they_are_copies_of() -> None:
    files = ["grey/1.png", "colour/1.jpg", "colour/2.jpg", "blurred/2.jpg", "blurred/3.jpg"]
    assert with_same_names((), files) == (0, 0, 2, 2, 4)
    assert with_same_names((0, 1, 2, 3, 1), files) == (0, 0, 2, 2, 0)  # the last one has the bytes of colour/1.jpg


@pytest.mark.parametrize("reader", ["image_folder", "class_table", "label_table"])
def test_files_of_one_name_are_drawn_together_on_request(reader: str, tmp_path: Path) -> None:
    for domain, shift in (("grey", 100), ("colour", 0)):
        for number in range(COUNT):
            path = tmp_path / "data" / domain / "cat" / f"{number:02}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2), (number, shift, 9)).save(path, "BMP")
    paths = sorted(path.relative_to(tmp_path / "data").as_posix() for path in (tmp_path / "data").rglob("*.bmp"))
    table = tmp_path / "labels.csv"
    head, cell = ("image,label", "cat") if reader == "class_table" else ("image,cat", "1")
    table.write_text("\n".join([head, *(f"{path},{cell}" for path in paths)]))

    def apart(*, together: bool) -> int:
        if reader == "image_folder":
            data = image_folder(path=tmp_path / "data", names_together=together)
        else:
            read = class_table if reader == "class_table" else label_table
            data = read(path=table, images=tmp_path / "data", names_together=together)
        splits: dict[str, set[str]] = {}
        for row, split in enumerate(data.splits):
            splits.setdefault(Path(data.source.describe(row)).stem, set()).add(split)
        assert set(data.splits) == {"train", "test"} and len(splits) == COUNT
        stems = [Path(data.source.describe(row)).stem for row in range(len(data.splits))]
        same = {(group, stem) for group, stem in zip(data.groups, stems, strict=together)}
        assert len(same) == len(set(data.groups)) == COUNT * together, "one group per name, for intervals"
        return sum(len(own) > 1 for own in splits.values())

    assert apart(together=True) == 0 < apart(together=False)
