"""Tables of images with many labels: both forms, unknown labels, and a sentence for every wrong cell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprompt.data.dataset import Dataset
from fedprompt.data.problems import ImageScan, find_problems
from fedprompt.data.sources.label_table import label_table
from fedprompt.errors import UserError

DOT = b"P6 1 1 255\n\x10\x20\x30"


def table(folder: Path, text: str, *, name: str = "labels.csv", images: int = 4, **options) -> Dataset:
    for number in range(images):
        (folder / f"{number}.ppm").write_bytes(DOT + bytes([number]))
    (folder / name).write_text(text, encoding="utf-8")
    return label_table(path=folder / name, **options)


def test_columns_are_classes(tmp_path):
    data = table(tmp_path, "image,split,dog,tv set\n0.ppm,train,1,0\n1.ppm,train,,1\n2.ppm,test,0,0\n")
    assert data.space.names == ("dog", "tv set") and data.space.kind == "multi" and data.base == (0, 1)
    assert data.targets.tolist() == [[1, 0], [-1, 1], [0, 0]] and data.splits == ("train", "train", "test")
    assert data.source.open(0).size == (1, 1)


@pytest.mark.parametrize("text", ["image;labels\n0.ppm;dog|cat\n1.ppm;\n", 'image,labels\n0.ppm,"dog; cat"\n1.ppm,\n'])
def test_a_list_says_what_is_there_and_the_rest_is_absent(tmp_path, text):
    data = table(tmp_path, "\ufeff" + text)
    assert data.space.names == ("cat", "dog") and data.targets.tolist() == [[1, 1], [0, 0]]
    said = " ".join(data.intake.warnings)
    assert "1 of 2 images has an empty cell in 'labels' (the first in line 3): every class counts as absent" in said


def test_json_lines_hold_lists_or_marks(tmp_path):
    rows = [
        {"image": "0.ppm", "labels": ["dog"], "domain": "day"},
        {"image": "1.ppm", "labels": {"cat": 1, "dog": None}, "domain": "night"},
        {"image": "2.ppm", "labels": {"cat": 0}},
    ]
    data = table(tmp_path, "\n".join(map(json.dumps, rows)) + "\n\n", name="rows.jsonl")
    assert data.space.names == ("cat", "dog") and data.domains == ("day", "night", "")
    assert data.targets.tolist() == [[0, 1], [1, -1], [0, -1]]


@given(st.integers(2, 12), st.integers(0, 99))
def test_drawn_splits_leave_something_to_train_and_to_test(tmp_path_factory, count, seed):
    folder = tmp_path_factory.mktemp("drawn")
    text = "image,dog\n" + "".join(f"{number}.ppm,1\n" for number in range(count))
    data = table(folder, text, images=count, seed=seed)
    assert set(data.splits) == {"train", "test"}


def test_attributes_and_conditions_beside_the_table_are_read(tmp_path):
    text = "image,dog,cat\n0.ppm,1,0\n1.ppm,0,1\n"
    (tmp_path / "attributes.json").write_text('{"dog": ["four legs"]}')
    conditions = tmp_path / "conditions.json"
    conditions.write_text('{"fedprompt_descriptions": 1, "conditions": ["light", "size "]}')
    space = table(tmp_path, text).space
    assert space.attributes == {"dog": ("four legs",)} and space.conditions == ("light", "size")
    conditions.write_text('{"fedprompt_descriptions": 1}')
    with pytest.raises(UserError, match="has no conditions"):
        table(tmp_path, text)
    conditions.unlink()
    assert table(tmp_path, text, new=("cat",)).new == (1,)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("shown,dog\n0.ppm,1\n", "has no column 'image'; name it so.*.found 'shown', 'dog'"),
        ("image,dog,dog\n0.ppm,1,1\n", "line 1: 'dog' stands 2 times"),
        ("image,,dog\n0.ppm,1,1\n", "line 1: column 2 has no name"),
        ("image,labels,dog\n0.ppm,dog,1\n", "beside 'labels' there is the column 'dog'"),
        ("image,dog\n0.ppm,1\n1.ppm,yes\n", "line 3, column 'dog': 'yes' is neither 1, 0, -1 nor blank"),
        ("image,dog\n0.ppm,1\n\n1.ppm\n", "line 4: there are 1 cells, not 2"),
        ("image,dog\n0.ppm,1\n0.ppm,1\n", "line 3, column 'image': '0.ppm' already stands in line 2"),
        ("image,dog\n9.ppm,1\n", "line 2, column 'image': there is no file .*9.ppm"),
        ("image,dog\n,1\n", "line 2, column 'image': it is empty"),
        ("image,split,dog\n0.ppm,tain,1\n", "line 2, column 'split': 'tain' is neither"),
        ("image,split,dog\n0.ppm,train,1\n1.ppm,,1\n", "line 3, column 'split': it is empty, and other rows have one"),
        ("image,split,dog\n0.ppm,train,1\n", "no row has the split 'test'"),
        ('image,dog\n0.ppm,"1\n', "this is not CSV"),
        ("image,dog\n", "has no rows"),
        ("image,labels\n0.ppm,\n", "has no labels"),
        (
            "image,label,indoor\n0.ppm,cat,1\n1.ppm,dog,1\n2.ppm,cow,0\n3.ppm,hen,1\n",
            r"the column 'label' looks like the labels, and 'indoor' like .*columns.labels=label.*ignore=\[\"label\"\]",
        ),
    ],
)
def test_a_wrong_cell_is_named(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence):
        table(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"image": "0.ppm", "labels": ["dog"]}\n{"image": ', "line 2: this is not JSON"),
        ("1", "line 1: this is not an object"),
        ('{"image": "0.ppm", "label": "dog"}', "line 1, column 'label': there is no such key; did you mean 'labels'"),
        ('{"image": 3, "labels": ["dog"]}', "line 1, column 'image': 3 is not text"),
        ('{"image": "0.ppm", "labels": {"dog": 2}}', "line 1, column 'labels': 2 of 'dog' is neither 1, 0 nor null"),
        ('{"image": "0.ppm", "labels": [" "]}', "line 1, column 'labels': a class has an empty name"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence):
        table(tmp_path, text, name="rows.jsonl")


def test_files_and_options_that_make_no_sense(tmp_path):
    for name in ("labels.xlsx", "missing.csv"):
        with pytest.raises(UserError, match=r"is none of .csv|does not exist"):
            label_table(path=tmp_path / name)
    with pytest.raises(UserError, match="does not have; did you mean 'dog'"):
        table(tmp_path, "image,dog\n0.ppm,1\n", new=("dogs",))
    with pytest.raises(UserError, match="less than 1, not"):
        table(tmp_path, "image,dog\n0.ppm,1\n", test_fraction=1.0)


def test_images_without_labels_and_classes_without_images_are_problems(tmp_path):
    data = table(tmp_path, "image,split,dog,cat\n0.ppm,train,1,0\n1.ppm,train,,\n2.ppm,test,0,1\n")
    kinds = {
        problem.message: problem.rows for problem in find_problems(data, ImageScan({}, {})) if problem.kind == "labels"
    }
    assert list(kinds.values()) == [(1,), ()]
    first, second = kinds
    assert "1.ppm" in first and "'cat'" in second
