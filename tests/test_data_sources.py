from __future__ import annotations

import io
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from fedprompt.data.intake.paths import below
from fedprompt.data.sources.class_table import class_table
from fedprompt.data.sources.coco import coco
from fedprompt.data.sources.label_table import label_table
from fedprompt.data.sources.voc import voc
from fedprompt.data.sources.webdataset import webdataset
from fedprompt.errors import UserError
from fedprompt.testing import SourceTests
from trees import as_json, coco2014, picture, text, xml

datasets = pytest.importorskip("datasets")


def pictures(folder, *names):
    for name in names:
        picture(folder / name)


def test_a_table_of_one_label_takes_names_or_numbers(tmp_path):
    pictures(tmp_path / "p", *"abcd")
    text(tmp_path / "classes.txt", ["dog", "cat"])
    text(tmp_path / "t.csv", ["image,label,split,domain", "p/a,dog,train,x", "p\\b,cat,train,y", "p/c,cat,test,x"])
    told = []
    data = class_table(path=tmp_path / "t.csv", base="half", on_step=lambda *step: told.append(step))
    assert told == [(1, 1)]
    assert data.space.names == ("dog", "cat") and data.targets.tolist() == [0, 1, 1]
    assert data.splits == ("train", "train", "test") and data.domains == ("x", "y", "x")
    assert data.source.open(1).mode == "RGB" and (data.base, data.new) == ((0,), (1,))
    text(tmp_path / "t.csv", ["image,label,split,domain", "p/a,0,train,x", "p/b,1,train,y", "p/c,1,test,x"])
    assert class_table(path=tmp_path / "t.csv").targets.tolist() == [0, 1, 1]
    text(tmp_path / "t.csv", ["image,label,split,domain", "p/a,dog,train,x", "p/b,1,train,y", "p/c,1,test,x"])
    with pytest.raises(UserError, match=r"line 3: the label is the number 1, and other labels are names"):
        class_table(path=tmp_path / "t.csv")


def test_open_clips_table_and_json_lines_are_read(tmp_path):
    pictures(tmp_path, "a", "b", "c", "d")
    text(tmp_path / "t.tsv", ["filepath\ttitle", "a\tdog", "b\tcat", "c\tdog", "d\tcat"])
    data = class_table(path=tmp_path / "t.tsv", columns={"image": "filepath", "label": "title"}, base="all")
    assert data.space.names == ("cat", "dog") and {"train", "test"} == set(data.splits)
    text(tmp_path / "t.jsonl", [json.dumps({"image": name, "label": "dog"}) for name in "ab"])
    assert class_table(path=tmp_path / "t.jsonl").targets.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image,label,split", "a,dog,train", "b,cat,test"], "no image of 'cat' is in the split 'train'"),
        (["image,label", "a,0", "b,1"], "numbers for labels"),
        (["image,label", "gone,dog"], "line 2, column 'image': there is no file"),
        (["image,name", "a,dog"], r"has no column 'label'; name it so.* \(found 'image', 'name'"),
        (["image,label", "a,"], "line 2, column 'label': it is empty"),
        (["image,label,split", "a,dog,tain"], "line 2, column 'split': 'tain' is neither train, val nor test"),
        (["image,label"], "has no rows"),
    ],
)
def test_a_wrong_table_is_explained(lines, message, tmp_path):
    pictures(tmp_path, "a", "b")
    text(tmp_path / "t.csv", lines)
    with pytest.raises(UserError, match=message):
        class_table(path=tmp_path / "t.csv")


PARTS = st.sampled_from(
    ["..", ".", "", "a", "b.jpg", "/", "\\", "C:", "con", "NUL.png", "\0", "\u202egpj.exe", "\n", "~"]
)


@given(parts=st.lists(PARTS | st.text(max_size=5), min_size=1, max_size=6))
@settings(max_examples=500)
def test_no_path_of_a_table_leaves_its_folder(parts):
    root, path = Path("/data/pictures"), "/".join(parts)
    own, wrong = below(root, path)
    if wrong:
        return
    whole = os.path.normpath(root / own)
    assert whole == str(root) or whole.startswith(f"{root}/")
    assert not set(own) & set("\0\n\\\u202e") and not {"con", "nul"} & set(own.lower().split("/"))


def test_absolute_paths_below_the_folder_are_taken_as_they_are_meant(tmp_path):
    pictures(tmp_path / "p", "a", "b", "c", "d")
    lines = [f"{tmp_path}/p/a,dog", "p\\b,cat", "./p/c,dog", "p/d,cat"]
    text(tmp_path / "t.csv", ["image,label", *lines])
    assert class_table(path=tmp_path / "t.csv").source.files[:2] == ("p/a", "p/b")
    text(tmp_path / "many.csv", ["image,labels", *lines])
    assert label_table(path=tmp_path / "many.csv").source.files[:2] == ("p/a", "p/b")
    for wrong in ("../secret.jpg", "/etc/passwd", "p/nul.jpg"):
        for read, head in ((class_table, "image,label"), (label_table, "image,labels")):
            text(tmp_path / "t.csv", [head, "p/a,dog", f"{wrong},dog"])
            with pytest.raises(UserError, match=r"t\.csv, line 3, column 'image': "):
                read(path=tmp_path / "t.csv")


def test_a_link_may_lead_elsewhere_in_the_folder_but_not_out_of_it(tmp_path):
    pictures(tmp_path / "in", "a")
    pictures(tmp_path / "out", "b")
    for name, target in (("same", "in"), ("other", "../out"), ("b.jpg", "../out/b")):
        (tmp_path / "in" / name).symlink_to(target)
    assert below(tmp_path / "in", "same/a") == ("same/a", "")
    for path in ("other/b", "b.jpg"):
        assert re.search("a link leads .* set `links = true`", below(tmp_path / "in", path)[1])
        assert below(tmp_path / "in", path, links=True) == (path, "")


def test_an_unknown_label_is_named_by_line(tmp_path):
    pictures(tmp_path, "a")
    text(tmp_path / "classes.txt", ["dog", "cat"])
    text(tmp_path / "t.csv", ["image,label", "a,dogs"])
    with pytest.raises(UserError, match=r"line 2: there is no class 'dogs'; did you mean 'dog'"):
        class_table(path=tmp_path / "t.csv")


def test_ones_own_coco_file_is_a_data_set(tmp_path):
    coco2014(tmp_path)
    data = coco(
        path=tmp_path / "coco",
        train="annotations/instances_train2014.json",
        test="annotations/instances_val2014.json",
        train_images="train2014",
        test_images="val2014",
    )
    assert data.space.kind == "multi" and data.splits.count("test") == 4 and data.targets.sum() == 6
    table = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "category_id": number, "area": 10.0 * number} for number in (1, 2)],
        "categories": [{"id": number, "name": f"class {number}"} for number in (1, 2)],
    }
    as_json(tmp_path / "areas/annotations/train.json", table)
    picture(tmp_path / "areas/images/a.jpg")
    assert coco(path=tmp_path / "areas", min_area=15.0).targets.tolist() == [[0, 1]]
    drawn = coco(path=tmp_path / "coco", train="annotations/instances_train2014.json", train_images="train2014")
    assert sorted(drawn.splits) == ["test", "train", "train", "val"]
    with pytest.raises(UserError, match="not a COCO file"):
        as_json(tmp_path / "x/annotations/train.json", [])
        coco(path=tmp_path / "x")


@pytest.mark.parametrize(("difficult", "value"), [("ignore", -1), ("negative", 0), ("positive", 1)])
def test_ones_own_voc_xml_is_a_data_set(difficult, value, tmp_path):
    objects = {"a": [("cat", 1), ("dog", 0), ("dog", 1)], "b": [("cat", 0)], "c": [], "d": [("dog", 1), ("dog", 0)]}
    for key, things in objects.items():
        picture(tmp_path / f"JPEGImages/{key}.jpg")
        xml(tmp_path / f"Annotations/{key}.xml", things)
    data = voc(path=tmp_path, difficult=difficult)
    assert data.space.names == ("cat", "dog") and data.space.kind == "multi"
    assert data.targets.tolist() == [[value, 1], [1, 0], [0, 0], [0, 1]]
    assert sorted(data.splits) == ["test", "train", "train", "val"]
    for word, keys in (("train", "ab"), ("val", "d")):
        text(tmp_path / f"ImageSets/Main/{word}.txt", list(keys))
    listed = voc(path=tmp_path, classes=("dog", "cat"), difficult=difficult)
    assert listed.source.files == ("JPEGImages/a.jpg", "JPEGImages/b.jpg", "JPEGImages/d.jpg")
    assert listed.splits == ("train", "train", "test") and listed.targets[0].tolist() == [1, value]
    with pytest.raises(UserError, match="'dog'; did you mean 'dogs'"):
        voc(path=tmp_path, classes=("dogs", "cat"))
    (tmp_path / "Annotations/b.xml").write_text("<annotation>")
    with pytest.raises(UserError, match=r"b\.xml is not XML"):
        voc(path=tmp_path)
    text(tmp_path / "ImageSets/Main/train.txt", ["z"])
    with pytest.raises(UserError, match="names the image 'z'"):
        voc(path=tmp_path)


def shard(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def jpeg(color):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, "JPEG")
    return file.getvalue()


def png(shade):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def npy(*values):
    file = io.BytesIO()
    np.save(file, np.array(values))
    return file.getvalue()


def test_shards_of_one_label_are_read_in_place(tmp_path):
    shard(tmp_path / "train/0.tar", {"a.jpg": jpeg("red"), "a.cls": b"1", "b.jpg": jpeg("blue"), "b.cls": b"0"})
    shard(tmp_path / "test/0.tar", {"a.jpg": jpeg("lime"), "a.json": b'{"label": 1}'})
    text(tmp_path / "classnames.txt", ["cat", "dog"])
    text(tmp_path / "zeroshot_classification_templates.txt", ["a photo of a {c}.", "art of a {c}."])
    data = webdataset(path=tmp_path)
    assert data.splits == ("test", "train", "train") and data.targets.tolist() == [1, 1, 0]
    told = []
    webdataset(path=tmp_path, on_step=lambda *step: told.append(step))
    assert told == [(1, 2), (2, 2)]
    assert data.source.open(0).getpixel((4, 4))[1] > 200
    assert data.space.ensemble == ("art of a {}.",) and len(data.source.fingerprint) == 32


def test_shards_of_many_labels_and_wrong_ones(tmp_path):
    text(tmp_path / "classnames.txt", ["cat", "dog"])
    shard(tmp_path / "train/0.tar", {"x/a.png": jpeg("red"), "x/a.npy": npy(0, 1)})
    shard(tmp_path / "train/1.tar", {"a.png": jpeg("red"), "a.npy": npy(1, 1)})
    assert webdataset(path=tmp_path).targets.tolist() == [[0, 1], [1, 1]]
    shard(tmp_path / "train/2.tar", {"a.png": jpeg("red"), "a.npy": npy(1, 1, 0)})
    with pytest.raises(UserError, match="does not fit 2 classes"):
        webdataset(path=tmp_path)
    shard(tmp_path / "train/2.tar", {"a.txt": b"words"})
    with pytest.raises(UserError, match="not an image with a label"):
        webdataset(path=tmp_path)


def table(path, *, names=("b", "a"), labels=(0, 1, 0, 1), extra=None, shade=7):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(names)),
            **({"domain": datasets.Value("string")} if extra else {}),
        }
    )
    grey = io.BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("L", (12, 9), shade).save(grey, "JPEG", exif=exif)
    rows = {
        "image": [{"bytes": grey.getvalue() + bytes([row]), "path": None} for row in range(len(labels))],
        "label": list(labels),
    }
    made = datasets.Dataset.from_dict(rows | ({"domain": extra} if extra else {}), features=features)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.to_parquet(str(path))
    return made


def huggingface(**options):
    from fedprompt.data.sources.huggingface import huggingface as read

    return read(**options)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))


def test_parquet_keeps_its_order_and_images_are_decoded_by_us(tmp_path):
    table(tmp_path / "data/train-00000-of-00001.parquet")
    table(tmp_path / "data/test-00000-of-00001.parquet", labels=(1,))
    data = huggingface(path=str(tmp_path))
    assert data.space.names == ("b", "a") and sorted(set(data.splits)) == ["test", "train"]
    assert data.source.open(0).size == (9, 12) and data.source.open(0).mode == "RGB"  # upright, as files are
    assert len(data.source.fingerprint) == 32


def test_a_copy_is_mapped_by_name_into_our_order(tmp_path):
    table(tmp_path / "train-0.parquet", names=("apple_pie", "cheesecake", "cheese_plate"), labels=(0, 1, 2))
    table(tmp_path / "validation-0.parquet", names=("apple_pie", "cheesecake", "cheese_plate"), labels=(1,))
    data = huggingface(path=str(tmp_path), like="food101")
    assert data.space.names == ("apple_pie", "cheese_plate", "cheesecake")
    pairs = sorted(zip(data.splits, data.targets.tolist(), strict=True))
    assert pairs == [("test", 2), ("train", 0), ("train", 1), ("train", 2)]
    assert data.space.template == "a photo of {}, a type of food." and "Hub copy" in data.intake.warnings[0]
    table(tmp_path / "f/train-0.parquet", names=("1", "10", "2"), labels=(0, 1, 2))
    with pytest.raises(UserError, match=r"are called '1' and so on; set data\.classes"):
        huggingface(path=str(tmp_path / "f"), like="oxford_flowers")
    with pytest.raises(UserError, match="has 3 classes, but 1 were named"):
        huggingface(path=str(tmp_path / "f"), like="oxford_flowers", classes=("primrose",))
    flowers = huggingface(path=str(tmp_path / "f"), like="oxford_flowers", classes=("primrose", "orchid", "thistle"))
    assert flowers.space.names == ("primrose", "orchid", "thistle") and flowers.targets.tolist() == [0, 2, 1]
    table(tmp_path / "c/train-0.parquet", names=("AM General Hummer SUV 2000",), labels=(0,))
    assert huggingface(path=str(tmp_path / "c"), like="stanford_cars").space.names == ("2000 AM General Hummer SUV",)


def test_wordnet_ids_are_no_class_names(tmp_path):
    features = datasets.Features(
        {"image": datasets.Image(), "wnid": datasets.Value("string"), "class_name": datasets.Value("string")}
    )
    rows = {"image": [{"bytes": jpeg("red"), "path": None}] * 3, "wnid": ["n2", "n1", "n2"]}
    made = datasets.Dataset.from_dict({**rows, "class_name": ["shark", "goldfish", "shark"]}, features=features)
    made.to_parquet(str(tmp_path / "test-0.parquet"))
    data = huggingface(path=str(tmp_path), like="imagenet_r", base="all")
    assert data.space.names == ("goldfish", "shark") and data.targets.tolist() == [1, 0, 1]


def test_of_a_video_the_middle_frame_is_taken(tmp_path):
    names = ["HammerThrow", "Hammering", "HandstandPushups"]  # bytewise, as the copy has them
    features = datasets.Features(
        {
            "image": datasets.Image(),
            **{column: datasets.Value("int64") for column in ("video_id", "clip_id", "frame")},
            "label": datasets.ClassLabel(names=names),
        }
    )
    frames = [(1, 1, frame, 0) for frame in (4, 0, 3, 1, 2)] + [(1, 2, 0, 0), (1, 1, 7, 1), (1, 1, 8, 1)]
    shades = [{"bytes": png(10 * row), "path": None} for row in range(len(frames))]
    columns = dict(zip(("video_id", "clip_id", "frame", "label"), map(list, zip(*frames, strict=True)), strict=True))
    for split in ("train", "test"):
        made = datasets.Dataset.from_dict({"image": shades, **columns}, features=features)
        made.to_parquet(str(tmp_path / f"{split}-0.parquet"))
    data = huggingface(path=str(tmp_path), like="ucf101", base="all")
    assert data.space.names == ("Hammering", "Hammer_Throw", "Handstand_Pushups")
    assert sorted(zip(data.splits, data.targets.tolist(), strict=True)) == sorted(
        (split, label) for split in ("train", "test") for label in (1, 1, 0)
    )
    # Frame 2 of 0 to 4 is row 4, the only frame of the second clip row 5, the later of two row 7.
    assert [data.source.open(row).getpixel((0, 0))[0] for row in range(3)] == [40, 50, 70]
    alone = data.source.take((2, 0))
    assert [alone.open(row).getpixel((0, 0))[0] for row in range(len(alone))] == [70, 40]


def test_domains_come_along_and_one_split_is_divided(tmp_path):
    places = ["art_painting"] * 4 + ["sketch"] * 4
    table(tmp_path / "train-0.parquet", names=("dog", "horse"), labels=(0, 0, 1, 1) * 2, extra=places)
    data = huggingface(path=str(tmp_path), like="pacs", unseen_domains=("sketch",))
    assert data.domains == tuple(places) and set(data.splits) == {"train", "test"}


def test_saved_tables_of_many_labels(tmp_path):
    rows = {"image": [{"bytes": jpeg("red"), "path": None}] * 2}
    many = datasets.List(datasets.ClassLabel(names=["cat", "dog"]))
    features = datasets.Features({"image": datasets.Image(), "labels": many})
    datasets.Dataset.from_dict({**rows, "labels": [["dog"], []]}, features=features).save_to_disk(str(tmp_path / "a"))
    assert huggingface(path=str(tmp_path / "a")).targets.tolist() == [[0, 1], [0, 0]]
    boxes = datasets.Features({"image": datasets.Image(), "objects": {"category": many.__class__(many.feature)}})
    nested = {**rows, "objects": [{"category": [1, 1]}, {"category": [0, 1]}]}
    datasets.Dataset.from_dict(nested, features=boxes).save_to_disk(str(tmp_path / "b"))
    assert huggingface(path=str(tmp_path / "b")).targets.tolist() == [[0, 1], [1, 1]]


def test_webdataset_copies_have_columns_of_their_own(tmp_path):
    features = datasets.Features(
        {"webp": datasets.Image(), "cls": datasets.Value("int64"), "__key__": datasets.Value("string")}
    )
    for split, label in (("train", 1), ("test", 0)):
        rows = {"webp": [{"bytes": jpeg("red"), "path": None}] * 2, "cls": [0, label], "__key__": ["0", "1"]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / f"{split}-0.parquet"))
    data = huggingface(path=str(tmp_path), classes=("cat", "dog"))
    assert data.targets[[word == "train" for word in data.splits]].tolist() == [0, 1]
    assert data.source.open(0).getpixel((4, 4))[0] > 200
    with pytest.raises(UserError, match="no names for them"):
        huggingface(path=str(tmp_path), like="fgvc_aircraft")


def test_hub_mistakes_are_explained(tmp_path):
    table(tmp_path / "train-0.parquet")
    with pytest.raises(UserError, match=r"no column 'labl'; did you mean 'label'"):
        huggingface(path=str(tmp_path), label_column="labl")
    text(tmp_path / "s/script.py", [""])
    with pytest.raises(UserError, match="script, which no longer runs"):
        huggingface(path=str(tmp_path / "s"))
    plain = datasets.Dataset.from_dict({"image": [{"bytes": jpeg("red"), "path": None}], "label": [3]})
    plain.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "n"))
    with pytest.raises(UserError, match="no names for them"):
        huggingface(path=str(tmp_path / "n"))
    with pytest.raises(UserError, match=r"row 0: there is no class 3; the 2 classes count from 0"):
        huggingface(path=str(tmp_path / "n"), classes=("a", "b"))


class TestHuggingFace(SourceTests):
    source = "huggingface"

    @staticmethod
    def options(folder, content):
        for split, labels in (("train", (0, 1, 0, 1)), ("test", (1, 0))):
            table(folder / f"{split}-0.parquet", labels=labels, shade=7 + content)
        return {"path": str(folder), "base": "all"}
