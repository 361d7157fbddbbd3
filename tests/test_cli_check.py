"""`fedprompt check`: what a reader understood, for every source, and all mistakes of a file at once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from fedprompt.api.progress import ProgressLines, plain_console
from fedprompt.config.registry import SOURCES
from fedprompt.records.reading import read_run
from test_cli import call
from test_data_users_files import DOT, annotations, changed, images, roboflow, shard, write, xml

pytestmark = pytest.mark.usefixtures("kept_backbone")


def pixel(text: str) -> bytes:
    """An image of one pixel that is unlike those of other texts."""
    return DOT[:-2] + sha256(text.encode()).digest()[:3]


def distinct(place: Path) -> Path:
    """The same files with another pixel in each: no image is in two splits."""
    for file in (place if place.is_dir() else place.parent).rglob("*.jpg"):
        file.write_bytes(pixel(str(file)))
    return place


def class_folders(root: Path) -> Path:
    images(root, *(f"{top}/{name}" for top in ("Training", "Testing") for name in ("cat", "dog")))
    (root / "Training/cat/notes.txt").write_text("x")
    return root


def table_of_classes(root: Path) -> Path:
    images(root, "images", each=6)
    rows = [f"{number}.jpg;{('cat', 'Löwe')[number % 2]};{('Training', 'Test')[number > 3]}" for number in range(6)]
    (root / "export.csv").write_bytes("\r\n".join(["Image;Label;Split", *rows]).encode("cp1252"))
    return root / "export.csv"


def table_of_labels(root: Path) -> Path:
    images(root, "", each=4)
    (root / "tags.csv").write_text('image,labels\n0.jpg,"haze, road"\n1.jpg,haze\n2.jpg,road\n3.jpg,haze\n')
    return root / "tags.csv"


def roboflow_export(root: Path) -> Path:
    roboflow(root)
    return root


def xml_files(root: Path) -> Path:
    images(root, "JPEGImages", each=4)
    for number in range(4):
        xml(root, str(number), "cat", "dog")
    return root


def tar_files(root: Path) -> Path:
    (root / "classnames.txt").write_text("cat\ndog\n")
    for split, labels in (("training", "01"), ("testing", "1")):
        files = {f"{split}{label}": label for label in labels}
        content = {f"{key}.ppm": pixel(key) for key in files} | {f"{key}.cls": files[key].encode() for key in files}
        shard(root / split / "0.tar", content)
    return root


def parquet_files(root: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    for split in ("train", "test"):
        file = root / "default" / split / "0000.parquet"
        file.parent.mkdir(parents=True)
        dots = [{"bytes": pixel(f"{split}{label}"), "path": None} for label in (0, 1)]
        datasets.Dataset.from_dict({"image": dots, "label": [0, 1]}, features=features).to_parquet(str(file))
    return root


FORMS = [
    (class_folders, "image_folder", "the folders Training and Testing", "train/val/test 4/0/4"),
    (table_of_classes, "class_table", "the column 'split': Test and Training", "train/val/test 4/0/2"),
    (table_of_labels, "label_table", "drawn with the seed 1", "names between commas"),
    (roboflow_export, "coco", "the files train, valid and test", "train/val/test 4/4/4"),
    (xml_files, "voc", "drawn with the seed 1", "train/val/test 2/1/1"),
    (tar_files, "webdataset", "the files training and testing", "train/val/test 2/0/1"),
    (parquet_files, "huggingface", "the files train and test", "train/val/test 2/0/2"),
]


@pytest.mark.parametrize(("make", "source", "origin", "counts"), FORMS)
def test_what_was_understood_is_shown_for_every_form(
    tmp_path: Path, make: Callable[[Path], Path], source: str, origin: str, counts: str
) -> None:
    place = distinct(make(tmp_path))
    found = json.loads(call("check", place, "--json"))["checked"][0]
    assert found["ok"] and found["source"] == source and found["error"] == "" and found["problems"] == []
    assert origin in found["summary"] and origin in found["intake"]["origins"]["splits"]
    assert counts in found["summary"] or counts == found["intake"]["labels"]
    assert sum(found["intake"]["splits"].values()) == found["intake"]["images"]
    said = call("check", place)
    assert f"read by the source {source}" in said and origin in said and "0 problems." in said
    head = next(line for line in said.splitlines() if "from where" in line)
    assert [cell.strip() for cell in head.strip("┃").split("┃")] == ["what", "found", "from where", "left out"]


def test_every_source_of_users_files_has_a_form_here() -> None:
    recognising = {name for name, source in SOURCES.builders.items() if hasattr(source, "recognises")}
    assert recognising == {source for _, source, *_ in FORMS}


def refused(*words: object) -> str:
    found = json.loads(call("check", *words, "--json", code=2))["checked"][-1]
    assert not found["ok"] and found["intake"] is None
    return str(found["error"])


def test_refusals_are_shown_with_the_reason_and_do_not_hide_what_else_is_checked(tmp_path: Path) -> None:
    good = distinct(class_folders(tmp_path / "good"))
    found = json.loads(call("check", good, tmp_path / "gone", "--json", code=2))
    assert [one["ok"] for one in found["checked"]] == [True, False] and not found["ok"]
    assert found["checked"][1]["error"].startswith("There is no recipe, folder or table")
    said = call("check", tmp_path / "gone", good, code=2)
    assert "gone is refused.\nThere is no" in said and "good: 8 images, 0 problems." in said
    assert "did you mean 'demo'?" in call("check", "demmo", code=2)


def test_a_file_that_is_neither_recipe_nor_table_is_refused(tmp_path: Path) -> None:
    assert "is no recipe (.toml), table (.csv" in refused(write(tmp_path / "a.json", annotations()))


def test_a_folder_that_two_sources_recognise_is_refused_with_the_key_that_settles_it(tmp_path: Path) -> None:
    tar_files(tmp_path)
    xml(tmp_path, "0", "cat")
    found = refused(tmp_path)
    assert "may be read by voc and webdataset" in found and 'data={source = "NAME", path = ' in found


def test_options_of_the_source_can_be_set(tmp_path: Path) -> None:
    table = distinct(table_of_labels(tmp_path))
    found = json.loads(call("check", table, "--set", 'data.separator="none"', "--json"))["checked"][0]
    assert found["intake"]["classes"] == ["haze", "haze, road", "road"]


def test_left_out_files_merged_names_and_a_single_class_are_said(tmp_path: Path) -> None:
    distinct(images(tmp_path, "cat ", "cat", each=2))
    (tmp_path / "cat/clip.mp4").write_bytes(b"x")
    os.mkfifo(tmp_path / "cat/pipe.jpg") if hasattr(os, "mkfifo") else (tmp_path / "cat/2.mp4").write_bytes(b"x")
    said = call("check", tmp_path, "--set", "data.test_fraction=0")
    assert "1 .mp4" in said and "1 pipe" in said and "1: cat" in said
    assert "Warning: " in said and "2 spellings of 'cat' are one class" in said
    assert "There is one class only, 'cat'" in said and "There is no image to test with." in said


def test_images_in_one_folder_beside_a_table_are_no_class(tmp_path: Path) -> None:
    table_of_classes(tmp_path)
    assert "'images', which is no class; if labels are in export.csv, give the path of that table." in refused(tmp_path)


def test_a_folder_that_is_no_tree_of_classes_is_refused_with_the_way_out(tmp_path: Path) -> None:
    assert "holds images and no class folders; give it one folder per" in refused(images(tmp_path / "a", ""))
    assert "holds all its images in one folder, 'train_images'" in refused(images(tmp_path / "b", "train_images"))
    wrapped = images(tmp_path / "c", *(f"archive/{top}/{name}" for top in ("train", "test") for name in ("cat", "dog")))
    assert f"holds everything in one folder, 'archive'; give {wrapped / 'archive'}" in refused(wrapped)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/photos.zip").write_bytes(b"x")
    assert "holds no images (only 1 .zip)" in refused(tmp_path / "d")


def test_a_folder_called_images_among_others_is_a_class_and_warned_of(tmp_path: Path) -> None:
    said = call("check", distinct(images(tmp_path, "images", "masks")))
    assert "the folder 'images' is read as a class; move it if it is none." in said


def test_mistakes_of_a_table_are_shown_together(tmp_path: Path) -> None:
    images(tmp_path, "", each=4)
    rows = ["0.jpg,cat,extra", "gone.jpg,cat", "1.jpg,", "2.jpg,cat,,", "3.jpg,dgo"]
    (tmp_path / "t.csv").write_text("\n".join(["image,label", *rows]))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    found = refused(tmp_path / "t.csv").splitlines()
    assert "has 4 mistakes" in found[0] and [line[:8] for line in found[1:]] == [
        f"  line {row}" for row in (2, 3, 4, 6)
    ]
    (tmp_path / "many.csv").write_text("\n".join(["image,labels", *(f"{row}.png,cat" for row in range(30))]))
    found = refused(tmp_path / "many.csv").splitlines()
    assert "has 30 mistakes" in found[0] and len(found) == 22 and found[-1] == "  and 10 more"


def test_a_table_of_which_no_row_can_be_read_shows_the_rows(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("{\n[1]\n")
    with_two = refused(tmp_path / "t.jsonl")
    assert (
        "2 mistakes" in with_two and "line 1: this is not JSON" in with_two and "line 2: this is not an obj" in with_two
    )


def test_empty_cells_beyond_the_last_column_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    table = table_of_classes(tmp_path)
    table.write_text(table.read_text(encoding="cp1252").replace("Training\n", "Training;;\n", 1), encoding="cp1252")
    distinct(table)
    assert "empty cells after the last column are left out, in line 2 for one." in call("check", table)


def test_mistakes_of_all_annotation_files_are_shown_together(tmp_path: Path) -> None:
    images(tmp_path, "images", each=4)
    write(tmp_path / "annotations/train.json", changed("images", 1, file_name="../../x.jpg"))
    write(tmp_path / "annotations/test.json", changed("categories", 1, name=None))
    found = refused(tmp_path)
    assert "'../../x.jpg' is not below" in found and "1 category has no name, the one with the id 2 for one" in found


def test_mistakes_of_all_shards_are_shown_together(tmp_path: Path) -> None:
    tar_files(tmp_path)
    (tmp_path / "training/1.tar").write_bytes(b"no archive")
    shard(tmp_path / "testing/1.tar", {"a.ppm": DOT, "b.cls": b"0"})
    found = refused(tmp_path)
    assert "has 3 mistakes" in found and "the shard training/1.tar cannot be read" in found
    assert "the sample 'a' in testing/1.tar has ppm, not an image with a label" in found


def test_mistakes_of_all_sites_are_shown_together(tmp_path: Path) -> None:
    images(tmp_path, "north/cat", "north/fox", "south/dgo")
    folders = "{" + ", ".join(f'{name} = "{tmp_path / name}"' for name in ("north", "south")) + "}"
    found = refused("own_folder", "--set", f'data={{source = "sites", classes = ["cat", "dog"], folders = {folders}}}')
    assert "north: the class 'fox' was not agreed on" in found and "the class 'dgo' was not agreed on; did you" in found


def test_every_empty_folder_is_named_beside_all_other_problems(tmp_path: Path) -> None:
    distinct(images(tmp_path, "cat", "dog", each=4))
    for name in ("eel", "fox"):
        (tmp_path / name).mkdir()
    (tmp_path / "cat/0.jpg").write_bytes(b"x")
    found = call("check", tmp_path, code=2)
    assert "Warning" in found and "2 folders without images make no class" in found and "for them: eel, fox." in found
    assert "cat/0.jpg" in found and "7 images, 1 problem." in found and "2: cat, dog" in found


def test_an_empty_folder_that_is_a_split_is_refused(tmp_path: Path) -> None:
    images(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog")
    (tmp_path / "val").mkdir()
    assert "val holds no images; add some or remove it" in refused(tmp_path)


def test_problems_of_images_are_shown_with_a_total(tmp_path: Path) -> None:
    distinct(images(tmp_path, "cat", "dog", each=15))
    for number in range(12):
        for name in ("cat", "dog"):
            (tmp_path / name / f"{number}.jpg").write_bytes(b"x")
    said = call("check", tmp_path, code=2)
    assert said.count("replace or remove the file.") == 20 and "and 4 more problems; --json lists all" in said
    found = json.loads(call("check", tmp_path, "--json", code=2))["checked"][0]
    assert len(found["problems"]) == 24 and found["intake"]["images"] == 6 and not found["ok"]


def test_classes_that_a_run_refuses_are_a_problem(tmp_path: Path) -> None:
    distinct(images(tmp_path, "Birds", "birds", "cat", each=4))
    sentence = "The classes 'Birds' and 'birds' are one to the backbone"
    assert sentence in call("check", "own_folder", "-s", f"data.path={tmp_path}", "-s", "backbone.path=demo", code=2)
    assert sentence in call("run", "own_folder", "-s", f"data.path={tmp_path}", *RUN, "--out", tmp_path / "r", code=2)


# Runs


RUN = (
    *("-s", "backbone.path=demo", "-s", "method.name=promptfl", "-s", "compare=[]", "-s", "train.rounds=1"),
    *("-s", "partition.rule=class_chunks", "-s", "partition.classes_per_client=1"),
    *("-s", "evaluate.every=0", "-s", "data.base=all"),
)


def test_a_run_begins_with_one_line_of_what_was_read_and_records_it(tmp_path: Path) -> None:
    own = distinct(class_folders(tmp_path / "own"))
    (own / "Training/cat/0.jpg").write_bytes(b"x")
    said = call("run", "own_folder", "-s", f"data.path={own}", *RUN, "--out", tmp_path / "run")
    line = (
        "7 images, 2 classes (cat, dog), train/val/test 3/0/4 (split: the folders Training and Testing), "
        "2 left out (1 .txt, 1 unreadable)."
    )
    assert line in said.splitlines()
    header = read_run(tmp_path / "run").header.data
    assert header.summary == line and header.left_out == {".txt": 1, "unreadable": 1}
    assert header.origins["splits"] == "the folders Training and Testing"
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8").partition("<main>")[0]
    assert line in page
    log = tmp_path / "run" / "run.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))  # as if killed before its end
    assert line in call("resume", tmp_path / "run")


def test_a_warning_is_shown_once_however_many_runs_have_it(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ProgressLines(plain_console())
    for text in ("a", "b", "a"):
        lines.on_warning(text)
    assert capsys.readouterr().out == "Warning: a\nWarning: b\n"


def test_compared_runs_each_say_what_they_read_and_warn_once(tmp_path: Path) -> None:
    own = distinct(images(tmp_path / "own", "cat", "dog ", "dog", each=4))
    said = call("compare", "own_folder", "-s", f"data.path={own}", *RUN, "--seeds", "1,2", "--out", tmp_path / "out")
    assert said.count("12 images, 2 classes (cat, dog)") == 2 and said.count("'dog '") == 1
    assert "drawn with the seed 1, 25%" in said and "drawn with the seed 2, 25%" in said


def test_figures_are_those_of_a_run_which_has_no_unreadable_image(tmp_path: Path) -> None:
    distinct(images(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog", each=6))
    for number in range(2):
        (tmp_path / f"train/cat/{number}.jpg").write_bytes(b"no image")
    found = json.loads(call("check", tmp_path, "--json", code=2))["checked"][0]
    assert found["intake"]["splits"] == {"train": 10, "test": 12} and "2 unreadable" in found["summary"]
    assert "1 of 2 classes has fewer than 5 training images: cat (4)." in found["warnings"]
