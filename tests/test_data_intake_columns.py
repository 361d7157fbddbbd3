"""Columns of users' tables: images under other usual names, columns that are no labels, and settings in messages."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from fedprompt.config.recipe import find_recipe, load_recipe
from fedprompt.config.settings import apply_settings
from fedprompt.data.intake.path_tables import read_paths
from fedprompt.data.sources.class_table import class_table
from fedprompt.data.sources.label_table import label_table
from fedprompt.errors import UserError
from fedprompt.experiments.plan import resolve
from fedprompt.text_files import data_setting

IMAGES = {"a.jpg": "cat", "b.jpg": "dog", "c.jpg": "cat", "d.jpg": "dog"}


def written(folder: Path, *lines: str) -> Path:
    for number, file in enumerate(IMAGES):
        (folder / file).write_bytes(b"P6 1 1 255\n\x10\x20" + bytes([number]))
    (folder / "own.csv").write_text("\n".join(lines))
    return folder / "own.csv"


@pytest.mark.parametrize("name", ["path", "file", "Filename", "image_path", "filepath", "file_name", "picture", "img"])
def test_a_column_of_images_of_another_usual_name_is_taken_and_said(tmp_path: Path, name: str) -> None:
    rows = [f"{file},{label}" for file, label in IMAGES.items()]
    for read, label in ((class_table, "label"), (label_table, "labels")):
        data = read(path=written(tmp_path, f"{name},{label}", *rows))
        assert data.source.files == tuple(IMAGES) and data.space.names == ("cat", "dog")
        assert f"own.csv: the images are those of the column {name!r}." in " ".join(data.report.warnings)
    assert [path.name for path, _ in read_paths(tmp_path / "own.csv")] == list(IMAGES)


def test_a_mistake_names_the_heading_of_the_file(tmp_path: Path) -> None:
    for read, label in ((class_table, "label"), (label_table, "labels")):
        table = written(tmp_path, f"file,{label}", "a.jpg,cat", "gone.jpg,dog")
        with pytest.raises(UserError, match="line 3, column 'file': there is no file"):
            read(path=table)


def test_a_path_is_set_as_the_documentation_writes_it() -> None:
    assert data_setting("path", "/path/to/images") == "--set data.path=/path/to/images"
    assert data_setting("path", "./images") == "--set data.path=./images"


def test_a_class_called_as_columns_of_images_are_is_a_class(tmp_path: Path) -> None:
    rows = [f"1,{file},{number % 2}" for number, file in enumerate(IMAGES)]
    data = label_table(path=written(tmp_path, "path,picture,road", *rows))
    assert data.source.files == tuple(IMAGES) and data.space.names == ("path", "road")


def test_all_missing_columns_are_named_with_the_setting_that_says_them(tmp_path: Path) -> None:
    rows = [f"{file},{label}" for file, label in IMAGES.items()]
    with pytest.raises(UserError) as caught:
        class_table(path=written(tmp_path, "shown,kind of animal", *rows))
    said = str(caught.value)
    assert "own.csv has 2 mistakes:" in said
    assert "it has no column 'image'; name it so, or say what it is called with --set data.columns.image=shown" in said
    assert "it has no column 'label'; name it so, or say what it is called with --set data.columns.label=COL" in said


def test_texts_beside_labels_are_left_out_and_named(tmp_path: Path) -> None:
    rows = [f"{file},{label},{7 * number},a {label} on a sofa" for number, (file, label) in enumerate(IMAGES.items())]
    data = label_table(path=written(tmp_path, "image,labels,id,caption", *rows))
    assert data.space.names == ("cat", "dog") and data.targets.tolist() == [[1, 0], [0, 1]] * 2
    assert any("columns left out: id, caption." in text for text in data.report.warnings)


def test_a_column_beside_labels_that_may_be_a_class_is_refused_until_it_is_ignored(tmp_path: Path) -> None:
    rows = [f"{file},{label},{number % 2}" for number, (file, label) in enumerate(IMAGES.items())]
    table = written(tmp_path, "image,labels,indoor", *rows)
    with pytest.raises(UserError, match=r"'indoor', which looks like a class of its own .*--set 'data.ignore=\[\"indo"):
        label_table(path=table)
    assert label_table(path=table, ignore=("indoor",)).space.names == ("cat", "dog")
    with pytest.raises(UserError, match=r"`ignore` names 'indor', and there is no such column; did you mean 'indoor'"):
        label_table(path=table, ignore=("indor",))


def test_texts_and_numbers_beside_columns_of_classes_are_told_from_them(tmp_path: Path) -> None:
    rows = [f"{file},{number % 2},a {label} no. {number}" for number, (file, label) in enumerate(IMAGES.items())]
    data = label_table(path=written(tmp_path, "image,cat,caption", *rows))
    assert data.space.names == ("cat",)
    assert any("columns left out: caption." in text for text in data.report.warnings)
    rows = [f"{file},{number % 2},{number + 20},{'xy'[number % 2]}" for number, file in enumerate(IMAGES)]
    with pytest.raises(UserError) as caught:
        label_table(path=written(tmp_path, "image,cat,id,dog", *rows))
    said = str(caught.value)
    assert "the column 'id' holds '20', '21', '22', which are neither 1, 0, -1 nor blank" in said
    assert "the column 'dog' holds 'x', 'y', which" in said and said.count("leave the column out with --set") == 2


def test_a_table_whose_labels_stand_under_another_name_is_refused_with_the_setting(tmp_path: Path) -> None:
    rows = [f"{file},the {label} of number {number}" for number, (file, label) in enumerate(IMAGES.items())]
    with pytest.raises(UserError) as caught:
        label_table(path=written(tmp_path, "image,kinds", *rows))
    assert "--set data.columns.labels=kinds" in str(caught.value)
    assert "recipe own_folder with --set data.source=class_table --set data.columns.label=kinds" in str(caught.value)


def test_a_table_with_one_label_per_image_is_refused_with_the_recipe_that_reads_it(tmp_path: Path) -> None:
    rows = [f"{file},{label}" for file, label in IMAGES.items()]
    path = written(tmp_path, "image,label", *rows)
    recipe, settings = find_recipe("own_table"), [f"data.path={path}"]
    with pytest.raises(UserError) as caught:
        resolve(load_recipe(recipe, settings)).source()
    said = str(caught.value)
    assert "run the recipe own_folder with --set data.source=class_table" in said and "columns.label=" not in said
    plan = resolve(load_recipe(find_recipe("own_folder"), [*settings, "data.source=class_table"]))
    assert (plan.source().space.kind, plan.recipe.defaults) == ("single", "single-label")


@pytest.mark.parametrize(
    ("key", "value", "said", "meant"),
    [
        ("columns.image", "path", "--set data.columns.image=path", "path"),
        ("columns.image", "my path", "--set 'data.columns.image=\"my path\"'", "my path"),
        ("splits.old", "", "--set data.splits.old=", ""),
        ("splits.fold 1.b", "train", '--set \'data.splits={"fold 1.b" = "train"}\'', "train"),
        ("separator", " ", "--set 'data.separator=\" \"'", " "),
        ("separator", "#", "--set 'data.separator=\"#\"'", "#"),
        ("columns.label", "0", "--set 'data.columns.label=\"0\"'", "0"),
        ("threshold", 0.5, "--set data.threshold=0.5", 0.5),
        ("links", True, "--set data.links=true", True),
        ("ignore", ["a", "b c"], '--set \'data.ignore=["a", "b c"]\'', ["a", "b c"]),
    ],
)
def test_a_setting_that_a_message_names_means_what_it_says(key: str, value: object, said: str, meant: object) -> None:
    hint = data_setting(key, value)
    assert hint == said
    tables: dict = {"data": {}}
    apply_settings(tables, shlex.split(hint)[1:], keys=())
    first, _, rest = key.partition(".")
    assert (tables["data"][first][rest] if rest else tables["data"][first]) == meant
