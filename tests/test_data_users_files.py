"""Data as people have it: every case was reported in public for some tool, and is read right or refused here."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fedprompt.data.dataset import Dataset
from fedprompt.data.sources.class_table import class_table
from fedprompt.data.sources.coco import coco
from fedprompt.data.sources.image_folder import image_folder
from fedprompt.data.sources.label_table import label_table
from fedprompt.data.sources.sites import sites
from fedprompt.data.sources.voc import voc
from fedprompt.data.sources.webdataset import webdataset
from fedprompt.errors import UserError
from fedprompt.text_files import data_setting

DOT = b"P6 1 1 255\n\x10\x20"


def image(path: Path) -> None:
    """An image of one pixel that is unlike all others of other names, and a file unlike all others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(DOT + bytes([sum(path.name.encode()) % 256]) + os.fsencode(path))


def images(root: Path, *places: str, each: int = 2) -> Path:
    for place in places:
        for number in range(each):
            image(root / place / f"{number}.jpg")
    return root


def by_file(data: Dataset) -> dict[str, str]:
    return {data.source.describe(row): split for row, split in enumerate(data.splits)}


def sentence_of(data: Dataset) -> str:
    return data.report.sentence()


# Splits


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("training_set", "test_set"),
        ("seg_train", "seg_test"),
        ("train", "dev"),
        ("train", "eval"),
        ("TRAIN", "TEST"),
        ("train", "holdout"),
        ("trn", "tst"),
        ("train", "valid"),
        ("train-images", "test-images"),
    ],
)
def test_published_test_images_are_never_trained_on(tmp_path, train, test):
    data = image_folder(path=images(tmp_path, *(f"{top}/{name}" for top in (train, test) for name in ("cat", "dog"))))
    assert data.space.names == ("cat", "dog") and set(data.domains) == {""}
    assert all((split == "test") == file.startswith(f"{test}/") for file, split in by_file(data).items())
    assert f"the folders {train} and {test}" in sentence_of(data)


def test_three_folders_of_splits_are_a_layout_of_their_own(tmp_path):
    data = image_folder(path=images(tmp_path, "train/cat", "val/cat", "test/cat", "train/dog", "test/dog"))
    assert Counter(data.splits) == {"train": 4, "val": 2, "test": 4}
    assert "train/val/test 4/2/4 (split: the folders train, val and test)" in sentence_of(data)


def test_splits_below_the_classes_and_above_domains_are_found(tmp_path):
    below = images(tmp_path / "a", "cat/train", "cat/test", "dog/train", "dog/test")
    assert by_file(image_folder(path=below))["dog/test/0.jpg"] == "test"
    above = images(tmp_path / "b", *(f"{top}/{domain}/cat" for top in ("train", "test") for domain in ("day", "night")))
    data = image_folder(path=above)
    assert set(data.domains) == {"day", "night"} and by_file(data)["test/night/cat/1.jpg"] == "test"


def test_a_folder_that_reads_like_a_split_beside_others_is_refused_or_declared(tmp_path):
    images(tmp_path, "train/cat", "train/dog", "photos/cat", "photos/dog")
    with pytest.raises(UserError, match=r"'train', which reads like a split, beside 'photos'"):
        image_folder(path=tmp_path)
    data = image_folder(path=tmp_path, splits={"photos": "test"})
    assert by_file(data)["photos/cat/0.jpg"] == "test"
    images(tmp_path, "old/cat", "test/dog", "test/cat")
    data = image_folder(path=tmp_path, splits={"photos": "", "old": ""})
    assert len(data.source) == 8 and data.report.left_out == {"images of unused splits": 6}
    domains = image_folder(path=tmp_path, layout="domains", base="all")
    assert set(domains.domains) == {"train", "photos", "old", "test"}


def test_a_split_given_alone_is_said_to_have_others_beside_it(tmp_path):
    images(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog")
    warnings = image_folder(path=tmp_path / "train").report.warnings
    assert len(warnings) == 1 and "but test lies beside it" in warnings[0] and str(tmp_path) in warnings[0]
    assert image_folder(path=images(tmp_path / "x", "cat", "dog")).report.warnings == ()


def test_a_data_set_without_a_test_part_says_so(tmp_path):
    images(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog")
    data = image_folder(path=tmp_path, splits={"test": ""})
    assert "nothing to test with" in sentence_of(data) and set(data.splits) == {"train"}


def test_a_table_may_call_its_splits_as_it_likes_or_have_them_declared(tmp_path):
    images(tmp_path, "", each=4)
    rows = ["0.jpg,cat,Training", "1.jpg,dog,training", "2.jpg,cat,EVAL", "3.jpg,dog,eval"]
    (tmp_path / "t.csv").write_text("\n".join(["image,label,split", *rows]))
    data = class_table(path=tmp_path / "t.csv")
    assert data.splits == ("train", "train", "test", "test")
    assert any("Training and training are one part" in warning for warning in data.report.warnings)
    (tmp_path / "t.csv").write_text("\n".join(["image,label,split", "0.jpg,cat,1", "1.jpg,cat,2", "2.jpg,cat,3"]))
    with pytest.raises(UserError, match=r"line 2, column 'split': '1' is neither .* --set data.splits.1=train"):
        class_table(path=tmp_path / "t.csv")
    declared = class_table(path=tmp_path / "t.csv", splits={"1": "train", "2": "test", "3": ""})
    assert declared.splits == ("train", "test") and declared.report.left_out == {"rows of unused splits": 1}


@pytest.mark.parametrize("name", ["set", "subset", "phase", "Data Split"])
def test_a_column_that_holds_splits_under_another_name_is_not_overlooked(tmp_path, name):
    images(tmp_path, "", each=2)
    (tmp_path / "t.csv").write_text(f"image,label,{name}\n0.jpg,cat,train\n1.jpg,cat,test\n")
    said = re.escape(data_setting("columns.split", name))
    with pytest.raises(UserError, match=rf"The column {name!r} of .* says test and train, .*{said}"):
        class_table(path=tmp_path / "t.csv")
    assert class_table(path=tmp_path / "t.csv", columns={"split": name}).splits == ("train", "test")


# Names


def test_blanks_and_forms_of_letters_make_no_second_class(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Käse") for form in ("NFC", "NFD"))
    data = image_folder(path=images(tmp_path, composed, f"{decomposed} ", "red fox", "red\u00a0fox", "red  fox"))
    assert data.space.names == ("Käse", "red fox") and data.targets.tolist() == [0] * 4 + [1] * 6
    assert len(data.report.warnings) == 2 and all("spellings of" in text for text in data.report.warnings)


def test_twins_in_case_are_two_classes_and_warned_of(tmp_path):
    data = image_folder(path=images(tmp_path, "Road", "road"))
    assert data.space.names == ("Road", "road") and "are different classes" in data.report.warnings[0]


def test_a_cell_too_many_makes_no_fox_of_four(tmp_path):
    images(tmp_path, "", each=2)
    (tmp_path / "t.csv").write_text("image,label\n0.jpg,fox, red\n1.jpg,fox, grey\n")
    with pytest.raises(UserError, match=r"2 mistakes.*\n  line 2: there are 3 cells, not 2, the last one 'red'"):
        class_table(path=tmp_path / "t.csv")


def test_a_line_end_inside_quotes_is_a_blank_or_refused(tmp_path):
    images(tmp_path, "", each=2)
    (tmp_path / "t.csv").write_text('image,label\n0.jpg,"red\nfox"\n1.jpg,redfox\n')
    with pytest.raises(UserError, match="invisible characters"):
        class_table(path=tmp_path / "t.csv", test_fraction=0)


def test_lists_of_classes_and_labels_agree_in_what_they_count(tmp_path):
    images(tmp_path, "", each=3)
    (tmp_path / "t.csv").write_text("image,label\n0.jpg,0\n1.jpg,1\n2.jpg,2\n")
    (tmp_path / "classes.txt").write_text("\ufeff1 cat\n2 dog\n3 fox\n")
    data = class_table(path=tmp_path / "t.csv")
    assert data.space.names == ("cat", "dog", "fox") and data.targets.tolist() == [0, 1, 2]
    (tmp_path / "classes.txt").write_text("1\n2\n3\n")
    with pytest.raises(UserError, match="the labels are numbers, and so are names of classes"):
        class_table(path=tmp_path / "t.csv")
    (tmp_path / "classes.txt").write_text("cat\ndog\nfox\n")
    (tmp_path / "t.csv").write_text("image,label\n0.jpg,1\n1.jpg,2\n2.jpg,3\n")
    with pytest.raises(UserError, match=r"run from 1 to 3 where the 3 classes count from 0"):
        class_table(path=tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("image,label\n0.jpg,²\n1.jpg,1\n2.jpg,0\n")
    with pytest.raises(UserError, match="line 2: there is no class '²'"):
        class_table(path=tmp_path / "t.csv")


# Label cells


TAGS = [["haze", "primary"], ["primary"], ["haze"], ["clear", "primary"], ["clear", "water"]]


@pytest.mark.parametrize(
    "write",
    [str, json.dumps, ", ".join, " ".join, "/".join, "#".join, "; ".join, "|".join, lambda tags: str(np.array(tags))],
)
def test_every_dialect_of_tags_gives_the_same_classes(tmp_path, write):
    images(tmp_path, "", each=5)
    lines = [f'{number}.jpg\t"{write(tags).replace(chr(34), chr(34) * 2)}"' for number, tags in enumerate(TAGS)]
    (tmp_path / "t.tsv").write_text("\n".join(["image\tlabels", *lines]))
    data = label_table(path=tmp_path / "t.tsv")
    assert data.space.names == ("clear", "haze", "primary", "water")
    assert data.targets.tolist() == [[int(name in tags) for name in data.space.names] for tags in TAGS]
    assert "4 classes (clear, haze, primary, water)" in sentence_of(data)


def test_vectors_as_text_need_a_list_of_classes(tmp_path):
    images(tmp_path, "", each=3)
    (tmp_path / "t.csv").write_text("image,labels\n0.jpg,1 0 1\n1.jpg,0 1 0\n2.jpg,0 0 0\n")
    with pytest.raises(UserError, match=r"the labels are numbers, '0' for one; list the names .* classes.txt"):
        label_table(path=tmp_path / "t.csv")
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    assert label_table(path=tmp_path / "t.csv").targets.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("cell", ["nan", "None", "NULL", "<NA>"])
def test_what_stands_for_a_missing_value_is_no_class(tmp_path, cell):
    images(tmp_path, "", each=2)
    (tmp_path / "many.csv").write_text(f"image,labels\n0.jpg,cat\n1.jpg,{cell}\n")
    data = label_table(path=tmp_path / "many.csv")
    assert data.space.names == ("cat",) and data.targets.tolist() == [[1], [-1]]
    (tmp_path / "one.csv").write_text(f"image,label\n0.jpg,cat\n1.jpg,{cell}\n")
    with pytest.raises(UserError, match=f"line 3, column 'label': {cell!r} is not a label"):
        class_table(path=tmp_path / "one.csv")


def test_a_single_label_that_looks_like_several_is_refused_with_the_two_ways_out(tmp_path):
    images(tmp_path, "", each=3)
    (tmp_path / "t.csv").write_text('image,label\n0.jpg,"cat, dog"\n1.jpg,cat\n2.jpg,dog\n')
    with pytest.raises(
        UserError, match=r"'cat, dog' may be several labels: use --set data.source=label_table .*data.separator=none"
    ):
        class_table(path=tmp_path / "t.csv")
    (tmp_path / "classes.txt").write_text("cat\ndog\ncat, dog\n")
    assert class_table(path=tmp_path / "t.csv").targets.tolist() == [2, 0, 1]


def test_scores_are_labels_with_a_threshold_only(tmp_path):
    images(tmp_path, "", each=2)
    (tmp_path / "t.csv").write_text("image,cat,dog\n0.jpg,0.9,0.2\n1.jpg,0.5,\n")
    with pytest.raises(UserError, match=r"3 mistakes.*\n.*line 2, column 'cat': '0.9' is neither 1, 0, -1 nor blank"):
        label_table(path=tmp_path / "t.csv")
    data = label_table(path=tmp_path / "t.csv", threshold=0.5)
    assert data.targets.tolist() == [[1, 0], [1, -1]] and data.report.labels.endswith("present from 0.5 on")
    (tmp_path / "t.csv").write_text("image,cat,dog\n0.jpg,inf,0.2\n1.jpg,0.5,\n")
    with pytest.raises(UserError, match="'inf' is neither"):
        label_table(path=tmp_path / "t.csv", threshold=0.5)


# Tables


def test_an_excel_export_is_read_as_any_other_table(tmp_path):
    images(tmp_path, "images", each=4)
    rows = [("Image", "Label"), ("0.jpg", "Löwe"), ("1.jpg", "Bär"), ("2.jpg", "Löwe"), ("3.jpg", "Bär")]
    for encoding in ("utf-8", "utf-8-sig", "cp1252", "utf-16"):
        for delimiter in (",", ";", "\t"):
            (tmp_path / "t.csv").write_bytes("\r\n".join(map(delimiter.join, rows)).encode(encoding))
            data = class_table(path=tmp_path / "t.csv")
            assert data.space.names == ("Bär", "Löwe") and data.targets.tolist() == [1, 0, 1, 0]
            assert bool(data.report.warnings) == (encoding == "cp1252")


def test_rows_that_contradict_each_other_stop_a_run_unless_they_are_allowed(tmp_path):
    images(tmp_path, "", each=3)
    (tmp_path / "t.csv").write_text("image,label,split\n0.jpg,cat,train\n./0.jpg,cat,test\n1.jpg,cat,test\n")
    with pytest.raises(
        UserError, match=r"line 3, column 'image': '0.jpg' already stands in line 2, there in train, here"
    ):
        class_table(path=tmp_path / "t.csv")
    allowed = class_table(path=tmp_path / "t.csv", repeats="allow")
    assert allowed.splits == ("train", "test", "test") and "1 rows of images" in allowed.report.warnings[0]
    (tmp_path / "t.csv").write_text("image,label\n0.jpg,cat\n0.jpg,dog\n1.jpg,cat\n2.jpg,dog\n")
    with pytest.raises(UserError, match=r"already stands in line 2, there with 'cat', here with 'dog'"):
        class_table(path=tmp_path / "t.csv")


def test_json_lines_with_other_line_ends_in_their_text_are_valid(tmp_path):
    images(tmp_path, "", each=3)
    rows = [{"image": f"{number}.jpg", "labels": ["cat"], "domain": "a\u2028b"} for number in range(3)]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert len(label_table(path=tmp_path / "t.jsonl").source) == 3
    (tmp_path / "t.jsonl").write_text('{"image": "0.jpg", "labels": ["a"], "labels": ["b"]}')
    with pytest.raises(UserError, match=r"line 1: .*the key 'labels' stands twice"):
        label_table(path=tmp_path / "t.jsonl")


def test_all_mistakes_of_a_table_are_shown_at_once(tmp_path):
    images(tmp_path, "", each=1)
    lines = [f"{number}.jpg,{'perhaps' if number else 1}" for number in range(30)]
    (tmp_path / "t.csv").write_text("\n".join(["image,cat", *lines]))
    with pytest.raises(UserError) as caught:
        label_table(path=tmp_path / "t.csv")
    text = str(caught.value)
    assert "has 58 mistakes" in text and text.endswith("and 38 more") and text.count("\n") == 21


def test_a_file_on_a_mac_is_found_by_its_composed_name(tmp_path):
    image(tmp_path / unicodedata.normalize("NFD", "Käse.jpg"))
    image(tmp_path / "b.jpg")
    (tmp_path / "t.csv").write_text("image,label\nKäse.jpg,cheese\nb.jpg,cheese\n", encoding="utf-8")
    data = class_table(path=tmp_path / "t.csv")
    assert data.source.open(0).size == (1, 1) and data.report.warnings == ()


# Ids and joins


def annotations(count: int = 4, **change) -> dict[str, object]:
    """A COCO table: image i is called i.jpg and has the category i % 2 + 1."""
    return {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in range(count)],
        "annotations": [
            {"id": number, "image_id": number, "category_id": number % 2 + 1, "area": 4.0, "iscrowd": 0}
            for number in range(count)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        **change,
    }


def write(path: Path, table: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table))
    return path


def read_coco(root: Path, table: object, **options) -> Dataset:
    write(root / "annotations/train.json", table)
    images(root, "images", each=4)
    return coco(path=root, **options)


@pytest.mark.parametrize("spell", [str, float, "{:06d}".format, lambda number: f" {number}"])
@pytest.mark.parametrize("part", ["images", "annotations", "both"])
def test_ids_are_compared_in_one_form(tmp_path, spell, part):
    table = annotations()
    if part != "annotations":
        table["images"] = [row | {"id": spell(row["id"])} for row in table["images"]]
        table["categories"] = [row | {"id": spell(row["id"])} for row in table["categories"]]
    if part != "images":
        keys = ("image_id", "category_id")
        table["annotations"] = [row | {key: spell(row[key]) for key in keys} for row in table["annotations"]]
    data = read_coco(tmp_path, table)
    assert data.space.names == ("cat", "dog") and data.targets.tolist() == [[1, 0], [0, 1]] * 2


@pytest.mark.parametrize(
    ("crowd", "counts"),
    [(0, True), (1, False), ("0", True), ("1", False), ("false", True), (True, False), (None, True)],
)
def test_a_crowd_may_be_said_in_text(tmp_path, crowd, counts):
    table = annotations()
    table["annotations"][0]["iscrowd"] = crowd
    assert read_coco(tmp_path, table).targets[0].tolist() == [int(counts), 0]


def changed(part: str, row: int, **values) -> dict[str, object]:
    table = annotations()
    table[part][row].update(values)
    return table


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (changed("annotations", 0, image_id=99), "1 of 4 annotations name images that are not in the file, 99 for one"),
        (changed("annotations", 0, image_id=None), "1 of 4 annotations name images that are not in the file, None"),
        (changed("annotations", 0, category_id=9), "1 of 4 annotations name categories that are not in the file, 9"),
        (changed("annotations", 0, category_id=1.5), "name categories that are not in the file, 1.5"),
        (changed("annotations", 0, iscrowd="maybe"), "1 annotation has an iscrowd like 'maybe'; write 0 or 1"),
        (changed("images", 1, id=0), "1 id of images is given to different ones, '0' for one; if files were merged"),
        (changed("images", 1, id=None), "1 of 4 images has no id that can be used, None for one"),
        (changed("images", 1, file_name=None), "1 of 4 images have no file_name, the one with the id 1 for one"),
        (changed("images", 1, file_name="0.jpg"), "1 image file is listed more than once, '0.jpg' for one"),
        (changed("images", 1, file_name="../../x.jpg"), "'../../x.jpg' is not below"),
        (changed("categories", 1, id=1), "1 id of categories is given to different ones, '1' for one"),
        (changed("categories", 1, name="cat"), "two classes called 'cat'"),
        (changed("categories", 1, name=None), "1 category has no name, the one with the id 2 for one"),
        (annotations(annotations=None), "'annotations' is null; give a file with annotated images"),
        (annotations(annotations=[]), "'annotations' is empty"),
        (annotations(annotations=[None]), "1 of 1 annotations are not objects"),
        (annotations(images={"a": 1}), "'images' is not a list"),
        ([], "it is not a COCO file"),
    ],
)
def test_a_label_is_never_lost_in_silence(tmp_path, table, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_coco(tmp_path, table)
    assert str(tmp_path) in str(caught.value)


def test_ids_need_not_be_numbers_and_areas_may_be_missing(tmp_path):
    table = annotations()
    of = {1: "7f3c-a", 2: "1b2d-b"}
    table["categories"] = [row | {"id": of[row["id"]]} for row in table["categories"]]
    table["annotations"] = [
        row | {"category_id": of[row["category_id"]], "area": None, "bbox": [0, 0, 2, 3]}
        for row in table["annotations"]
    ]
    data = read_coco(tmp_path, table, min_area=6.0)
    assert data.space.names == ("dog", "cat") and data.targets.tolist() == [[0, 1], [1, 0]] * 2
    table["annotations"][0].pop("bbox")
    with pytest.raises(UserError, match=r"1 annotations have no area, None for one, and min_area needs one of each"):
        coco(path=write(tmp_path / "annotations/train.json", table).parent.parent, min_area=6.0)


def test_the_same_records_twice_count_once(tmp_path):
    table = annotations()
    doubled = {part: rows + rows for part, rows in table.items()}
    assert read_coco(tmp_path, doubled).targets.tolist() == [[1, 0], [0, 1]] * 2


def roboflow(root: Path) -> None:
    for split in ("train", "valid", "test"):
        images(root, split, each=4)
        table = annotations()
        table["categories"] = [
            {"id": 0, "name": "pets", "supercategory": "none"},
            *({"supercategory": "pets", **row} for row in table["categories"]),
        ]
        write(root / split / "_annotations.coco.json", table)


def cvat(root: Path) -> None:
    for split in ("Train", "Validation", "Test"):
        images(root, f"images/{split}", each=4)
        write(root / f"annotations/instances_{split}.json", annotations())


def coco2017(root: Path) -> None:
    for split, place in (("train", "train2017"), ("val", "val2017"), ("test", "test2017")):
        images(root, place, each=4)
        write(root / f"annotations/instances_{split}2017.json", annotations())
        write(root / f"annotations/captions_{split}2017.json", {"annotations": []})


@pytest.mark.parametrize("export", [roboflow, cvat, coco2017])
def test_what_annotation_tools_export_is_found(tmp_path, export):
    export(tmp_path)
    data = coco(path=tmp_path)
    assert data.space.names == ("cat", "dog") and data.targets.tolist() == [[1, 0], [0, 1]] * 6
    assert data.splits == ("train",) * 4 + ("val",) * 4 + ("test",) * 4
    assert all(data.source.open(row).size == (1, 1) for row in range(12))
    assert ("pets" in " ".join(data.report.warnings)) == (export is roboflow)


def test_an_annotation_file_that_says_no_split_is_not_passed_over_for_others_that_do(tmp_path):
    coco2017(tmp_path)
    (tmp_path / "annotations/instances_train2017.json").rename(tmp_path / "annotations/trian.json")
    with pytest.raises(UserError, match=r"has annotations/instances_test2017.json beside annotations/trian.json"):
        coco(path=tmp_path)
    (tmp_path / "annotations/trian.json").unlink()
    with pytest.raises(UserError, match=r"and no training part; add it"):
        coco(path=tmp_path)


def test_a_label_studio_export_is_divided(tmp_path):
    table = annotations()
    table["images"] = [row | {"file_name": f"images\\{row['file_name']}"} for row in table["images"]]
    images(tmp_path, "images", each=4)
    write(tmp_path / "result.json", table)
    data = coco(path=tmp_path)
    assert data.source.files[0] == "images/0.jpg" and Counter(data.splits) == {"train": 2, "val": 1, "test": 1}
    write(tmp_path / "result2.json", table)
    with pytest.raises(UserError, match=r"result.json and result2.json, and their names say no split; set `train`"):
        coco(path=tmp_path)


def test_annotation_files_must_have_the_same_classes_and_no_image_in_two_splits(tmp_path):
    images(tmp_path, "images", each=4)
    write(tmp_path / "annotations/train.json", annotations())
    write(tmp_path / "annotations/test.json", annotations())
    with pytest.raises(UserError, match=r"4 images are in two splits, for example images/0.jpg; keep each in one"):
        coco(path=tmp_path)
    other = annotations(categories=[{"id": 1, "name": "cat"}, {"id": 2, "name": "fox"}])
    write(tmp_path / "annotations/test.json", other)
    with pytest.raises(UserError, match=r"train.json and annotations/test.json .*categories, 'dog' for one"):
        coco(path=tmp_path, train="annotations/train.json", test="annotations/test.json")


def test_images_of_an_annotation_file_that_do_not_exist_are_counted(tmp_path):
    table = annotations()
    table["images"][1]["file_name"] = "gone.jpg"
    with pytest.raises(UserError, match=r"1 of 4 images do not exist, for example images/gone.jpg"):
        read_coco(tmp_path, table)


# VOC


def xml(root: Path, key: str, *names: str, encoding: str = "utf-8") -> None:
    objects = "".join(f"<object><name>{name}</name></object>" for name in names)
    text = f'<?xml version="1.0" encoding="{encoding}"?><annotation>{objects}</annotation>'
    path = root / f"Annotations/{key}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    image(root / f"JPEGImages/{key}.jpg")


def lists(root: Path, **keys: str) -> None:
    for name, lines in keys.items():
        path = root / f"ImageSets/Main/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines.split()))


def test_an_object_without_a_name_is_no_class(tmp_path):
    xml(tmp_path, "a", "cat")
    xml(tmp_path, "b", " ")
    xml(tmp_path, "c", "dog")
    (tmp_path / "Annotations/c.xml").unlink()
    with pytest.raises(UserError, match=r"2 mistakes.*\n.*b.xml has an object without a name\n.*no annotation .*c.xml"):
        voc(path=tmp_path)


def test_names_of_objects_have_one_form_and_xml_says_its_own_encoding(tmp_path):
    for number in range(4):
        xml(tmp_path, f"a{number}", "red fox", "red\u00a0fox ", encoding=("utf-8", "iso-8859-1")[number % 2])
    data = voc(path=tmp_path)
    assert data.space.names == ("red fox",) and data.targets.tolist() == [[1]] * 4
    assert "2 spellings of 'red fox'" in data.report.warnings[0] or "spellings" in data.report.warnings[0]


def test_lists_say_the_splits_by_any_of_their_names(tmp_path):
    for key in "abcdef":
        xml(tmp_path, key, "cat")
    lists(tmp_path, Training="a b", dev="c", Testing="d.jpg e", cat_train="a 1")
    data = voc(path=tmp_path)
    assert [(file[11], split) for file, split in by_file(data).items()] == list(
        zip("abcde", ("train", "train", "val", "test", "test"), strict=True)
    )
    assert data.report.left_out == {"images in no list": 1}
    lists(tmp_path, Training="a b c d")
    with pytest.raises(UserError, match=r"2 mistakes(.|\n)*dev.txt names the image 'c', which Training.txt names too"):
        voc(path=tmp_path)


def test_a_cvat_export_with_one_list_of_all_images_is_divided(tmp_path):
    for key in "abcd":
        xml(tmp_path, key, "cat")
    lists(tmp_path, default="a b c d")
    data = voc(path=tmp_path)
    assert set(data.splits) == {"train", "val", "test"} and "default.txt says no split" in data.report.warnings[0]


# WebDataset


def shard(path: Path, samples: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def npy(values: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values))
    return file.getvalue()


def shards(root: Path, *labels: tuple[str, bytes], folder: str = "train") -> Path:
    (root / "classnames.txt").write_text("\ufeffcat\ndog\nfox\n", encoding="utf-8")
    samples = {}
    for number, (kind, content) in enumerate(labels):
        samples |= {f"{number}.ppm": DOT + bytes([number]), f"{number}.{kind}": content}
    shard(root / folder / "0.tar", samples)
    return root


@pytest.mark.parametrize(("train", "test"), [("training", "testing"), ("train", "validation"), ("Train", "holdout")])
def test_shards_say_their_split_by_any_of_its_names(tmp_path, train, test):
    shards(tmp_path, ("cls", b"0"), ("cls", b"1"), folder=train)
    shards(tmp_path, ("cls", b"2"), folder=test)
    data = webdataset(path=tmp_path)
    assert data.space.names[0] == "cat" and sorted(zip(data.splits, data.targets.tolist(), strict=True)) == [
        ("test", 2),
        ("train", 0),
        ("train", 1),
    ]


def test_shards_that_say_no_split_are_divided(tmp_path):
    shards(tmp_path, *(("cls", b"0") for _ in range(8)), folder="")
    assert set(webdataset(path=tmp_path).splits) == {"train", "test"}


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("npy", npy([0.9, 0.2, 0.6]), "0.9 is neither 1, 0 nor -1; give --set data.threshold=0.5 if these are scores"),
        ("npy", npy([0, 2, 1]), "2 is neither 1, 0 nor -1"),
        ("npy", npy([0, 255, 1]), "255 is neither 1, 0 nor -1"),
        ("npy", npy([0.0, float("inf"), 1.0]), "inf is neither"),
        ("npy", b"", "this is not a label"),
        ("npy", b"PK", "this is not a label"),
        ("npy", npy([0, 1]), "there are 2 values, which does not fit 3 classes"),
        ("cls", b"0.9", "there is no class '0.9'"),
        ("cls", b"4", "there is no class 4; the 3 classes count from 0"),
        ("cls", b"-1", "1 of 1 rows have no label|there is no class '-1'"),
        ("cls", "²".encode(), "there is no class '²'"),
        ("json", b'{"label": NaN}', "NaN is not a number"),
        ("json", b'{"id": 3}', "it has neither 'label' nor 'labels'"),
        ("json", b'{"labels": [0, 0, 2]}', "2 is neither 1, 0 nor -1"),
        ("json", b'{"labels": ["bird"]}', "there is no class 'bird'"),
    ],
)
def test_a_number_that_cannot_be_meant_is_refused(tmp_path, kind, content, message):
    with pytest.raises(UserError, match=message):
        webdataset(path=shards(tmp_path, (kind, content)))


@pytest.mark.parametrize(
    ("kind", "content", "target"),
    [
        ("npy", npy([0, 1, -1]), [0, 1, -1]),
        ("npy", npy([False, True, True]), [0, 1, 1]),
        ("npy", npy([0.0, 1.0, 0.0]), [0, 1, 0]),
        ("npy", npy(2), 2),
        ("cls", b"2\n", 2),
        ("cls", b"dog", 1),
        ("json", b'{"label": "fox"}', 2),
        ("json", b'{"labels": ["fox", "cat"]}', [1, 0, 1]),
        ("json", b'{"labels": [2, 0]}', [1, 0, 1]),
    ],
)
def test_labels_of_shards_are_read_in_their_usual_forms(tmp_path, kind, content, target):
    assert webdataset(path=shards(tmp_path, (kind, content))).targets.tolist() == [target]
    if isinstance(target, list) and kind == "npy":
        data = webdataset(path=shards(tmp_path, (kind, npy([0.9, 0.2, 0.6]))), threshold=0.5)
        assert data.targets.tolist() == [[1, 0, 1]]


# Images and paths


def test_every_kind_of_image_is_taken_and_all_other_files_are_counted(tmp_path):
    for suffix in ("jpg", "JPEG", "jfif", "jpe", "heic", "avif", "jp2", "tif", "webp"):
        image(tmp_path / f"cat/a.{suffix}")
    (tmp_path / "cat/photo").write_bytes(b"\xff\xd8\xff\xe0" + bytes(32))
    for name in ("notes.txt", "clip.mp4", "clip2.mp4", ".DS_Store"):
        (tmp_path / "cat" / name).write_bytes(b"x" * 40)
    data = image_folder(path=tmp_path)
    assert len(data.source) == 10 and data.report.left_out == {".mp4": 2, ".txt": 1}
    assert sentence_of(data).endswith(", 3 left out (2 .mp4, 1 .txt).")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="other systems have no pipes")
def test_a_pipe_does_not_hang_any_reader(tmp_path):
    images(tmp_path, "cat", "dog")
    os.mkfifo(tmp_path / "cat/pipe.jpg")
    assert image_folder(path=tmp_path).report.left_out == {"pipes": 1}
    (tmp_path / "t.csv").write_text("image,label\ncat/pipe.jpg,cat\ncat/0.jpg,cat\n")
    with pytest.raises(UserError, match="line 2, column 'image': there is no file"):
        class_table(path=tmp_path / "t.csv")
    (tmp_path / "p.csv").symlink_to(tmp_path / "cat/pipe.jpg")
    with pytest.raises(UserError, match=r"p.csv is a pipe, not a regular file; give the table of images"):
        class_table(path=tmp_path / "p.csv")


@pytest.mark.parametrize("read", [class_table, label_table])
def test_a_folder_where_a_table_should_be_is_named(tmp_path, read):
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(UserError, match=r"t.csv is a folder; a folder of images is read by"):
        read(path=tmp_path / "t.csv")


def test_a_note_beside_class_folders_is_no_table(tmp_path):
    images(tmp_path / "photos", "cat", each=2)
    (tmp_path / "photos/readme.txt").write_text("thanks\n")
    with pytest.raises(UserError, match=r"photos is a folder; a folder of images is read by: fedprompt run own_folder"):
        label_table(path=tmp_path / "photos")
    (tmp_path / "photos/labels.csv").write_text("image,labels\ncat/0.jpg,cat\n")
    with pytest.raises(UserError, match=r"a table such as labels.csv is read by: fedprompt run own_table"):
        label_table(path=tmp_path / "photos")


def test_images_in_a_coco_folder_may_be_linked_from_elsewhere_on_request_only(tmp_path):
    images(tmp_path / "far", "", each=4)
    (tmp_path / "near/images").mkdir(parents=True)
    for number in range(4):
        (tmp_path / f"near/images/{number}.jpg").symlink_to(tmp_path / f"far/{number}.jpg")
    write(tmp_path / "near/annotations/train.json", annotations())
    with pytest.raises(UserError, match=r"a link leads '0.jpg' out of .*set `links = true`"):
        coco(path=tmp_path / "near")
    assert len(coco(path=tmp_path / "near", links=True).source) == 4


def test_every_site_has_a_report_of_its_own(tmp_path):
    images(tmp_path, "north/cat", "north/dog", "south/cat")
    (tmp_path / "south/cat/notes.txt").write_text("x")
    folders = {name: tmp_path / name for name in ("north", "south")}
    report = sites(classes=("cat", "dog"), folders=folders).report
    assert report.images == 6 and report.left_out == {".txt": 1} and report.domains == {"north": 4, "south": 2}
    assert report.parts["south"].images == 2 and report.parts["north"].left_out == {}
