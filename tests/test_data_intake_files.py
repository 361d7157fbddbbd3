"""Image files of a folder, counted by reason where they are left out, and paths that tables name."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from fedprompt.data.intake.given_images import find_given
from fedprompt.data.intake.image_files import find_images, has_image_name
from fedprompt.data.intake.paths import below, locate, missing_files
from fedprompt.data.intake.report import IntakeReport, Mistakes
from fedprompt.errors import UserError

JPEG = b"\xff\xd8\xff\xe0rest"


def tree(root: Path, *files: str, content: bytes = JPEG) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(content)
    return root


def test_every_kind_of_image_is_found_and_all_others_are_counted_by_reason(tmp_path):
    kinds = ("jpg", "jpeg", "JPE", "jfif", "png", "bmp", "webp", "gif", "tif", "TIFF", "ppm", "jp2", "avif", "heic")
    tree(tmp_path, *(f"cat/{number}.{kind}" for number, kind in enumerate(kinds)), "cat/phone")
    tree(tmp_path, "cat/notes.txt", "cat/more.txt", "labels.json", "cat/.hidden.jpg", "cat/README", content=b"words")
    tree(tmp_path, "cat/.DS_Store", "cat/Thumbs.db", "cat/._1.jpg", "__MACOSX/cat/1.jpg", ".git/1.jpg")
    found = find_images(tmp_path)
    assert len(found.files) == len(kinds) + 1 and ("cat", "phone") in found.files
    assert found.left_out == {".txt": 2, ".json": 1, "hidden": 1, "without suffix": 1}
    assert has_image_name("a.HEIC") and not has_image_name("a.txt")


def test_only_regular_files_are_images(tmp_path, monkeypatch):
    tree(tmp_path, "cat/1.jpg", "elsewhere.jpg")
    (tmp_path / "cat/link.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    (tmp_path / "cat/device.jpg").symlink_to("/dev/zero")
    (tmp_path / "cat/gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    (tmp_path / "cat/itself.jpg").symlink_to(tmp_path / "cat/itself.jpg")
    os.mkfifo(tmp_path / "cat/pipe.jpg")
    os.mkfifo(tmp_path / "cat/pipe")
    (tmp_path / "cat/folder.jpg").mkdir()
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    server = socket.socket(socket.AF_UNIX)
    server.bind("cat/socket.jpg")
    found = find_images(tmp_path)
    server.close()
    assert found.files == (("cat", "1.jpg"), ("cat", "link.jpg"), ("elsewhere.jpg",))
    assert found.left_out == {"pipes": 2, "devices": 1, "broken links": 1, "links to nowhere": 1, "sockets": 1}
    assert found.empty == (("cat", "folder.jpg"),)


def test_a_link_to_a_folder_above_is_not_followed_and_one_to_a_folder_beside_is_told(tmp_path):
    tree(tmp_path, "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "cat/up").symlink_to(tmp_path)
    (tmp_path / "fox").symlink_to(tmp_path / "dog")
    found = find_images(tmp_path)
    assert found.files == (("cat", "1.jpg"), ("dog", "2.jpg"), ("fox", "2.jpg"))
    assert found.left_out == {"links to a folder above": 1}
    assert found.remarks == ("dog and fox are one folder, and its images count twice.",)


def test_a_folder_that_is_none_or_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    tree(tmp_path, "cat/1.jpg")
    with pytest.raises(UserError, match=r"1.jpg is a file; give the folder"):
        find_images(tmp_path / "cat/1.jpg")
    with pytest.raises(UserError, match=r"dog does not exist"):
        find_images(tmp_path / "dog")
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "cat":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cat cannot be read \(Permission denied\)"):
        find_images(tmp_path)


def test_folders_below_the_depth_that_a_layout_has_are_counted(tmp_path):
    tree(tmp_path, "a/b/1.jpg", "a/b/c/2.jpg")
    found = find_images(tmp_path, depth=2)
    assert found.files == (("a", "b", "1.jpg"),) and found.left_out == {"folders more than 2 levels deep": 1}


@pytest.mark.parametrize(
    "path", ["a/b.jpg", "./a/b.jpg", "a\\b.jpg", "a//b.jpg", " a/b.jpg ", ".\\a\\b.jpg", "././a/b.jpg", "ROOT/a/b.jpg"]
)
def test_paths_of_all_systems_are_one(tmp_path, path):
    assert below(tmp_path, path.replace("ROOT", str(tmp_path))) == ("a/b.jpg", "")


@pytest.mark.parametrize(
    "path",
    [
        "../x.jpg",
        "../../x.jpg",
        "a/../../x.jpg",
        "/etc/x.jpg",
        "C:\\x.jpg",
        "c:/x.jpg",
        "..\\x.jpg",
        "~/x.jpg",
        "\\\\pc\\x.jpg",
    ],
)
def test_paths_that_lead_out_are_refused(tmp_path, path):
    assert "is not below" in below(tmp_path, path)[1]


@pytest.mark.parametrize("path", ["", ".", "a/./b.jpg", "nul", "a/COM1.jpg", "a\x00.jpg", "a\nb.jpg", "a\u202eb.jpg"])
def test_names_that_no_file_can_have_everywhere_are_refused(tmp_path, path):
    assert "is not a portable file name" in below(tmp_path, path)[1]


@pytest.mark.parametrize("path", ["https://a.org/1.jpg", "s3://a/1.jpg", "file:///a/1.jpg"])
def test_addresses_in_a_network_are_refused(tmp_path, path):
    assert "is an address in a network" in below(tmp_path, path)[1]


def test_a_link_that_leads_out_is_followed_on_request_only(tmp_path):
    tree(tmp_path, "out/1.jpg", "in/2.jpg")
    (tmp_path / "in/link").symlink_to(tmp_path / "out")
    assert "a link leads" in below(tmp_path / "in", "link/1.jpg")[1]
    assert below(tmp_path / "in", "link/1.jpg", links=True) == ("link/1.jpg", "")
    assert below(tmp_path / "in", "2.jpg") == ("2.jpg", "")


def test_images_are_looked_for_beside_the_table_and_in_its_folder_of_images(tmp_path):
    tree(tmp_path, "images/1.jpg", "images/2.jpg")
    mistakes = Mistakes("a.csv")
    found = locate(["1.jpg", "2.jpg"], folders=[tmp_path, tmp_path / "images"], mistakes=mistakes)
    assert found.root == tmp_path / "images" and found.files == ("1.jpg", "2.jpg") and not len(mistakes)
    assert locate(["images/1.jpg"], folders=[tmp_path, tmp_path / "images"], mistakes=mistakes).root == tmp_path
    tree(tmp_path, "1.jpg")
    assert locate(["1.jpg"], folders=[tmp_path, tmp_path / "images"], mistakes=mistakes).root == tmp_path
    assert not len(mistakes)
    locate(["2.jpg"], folders=[tmp_path], mistakes=mistakes)
    with pytest.raises(UserError, match=r"a.csv, column 'image': there is no file .*/2.jpg"):
        mistakes.check()


@pytest.mark.parametrize(
    ("path", "there"),
    [("A.JPG", "a.jpg"), ("a.png", "a.jpg"), ("a", "a.jpg"), ("big%20cat.jpg", "big cat.jpg")],
)
def test_a_file_that_is_not_there_is_told_with_what_is_there_under_a_like_name(tmp_path, path, there):
    tree(tmp_path, "a.jpg", "big cat.jpg")
    mistakes = Mistakes("a.csv")
    locate([path], folders=[tmp_path], mistakes=mistakes, lines=[2])
    with pytest.raises(UserError) as caught:
        mistakes.check()
    assert f"line 2, column 'image': there is no file {tmp_path / path}, but {there!r}" in str(caught.value)


def test_a_folder_or_a_pipe_is_not_the_file_that_a_table_names(tmp_path):
    (tmp_path / "1.jpg").mkdir()
    os.mkfifo(tmp_path / "2.jpg")
    tree(tmp_path, "3.jpg")
    assert missing_files(tmp_path, ["1.jpg", "2.jpg", "3.jpg", "4/5.jpg"]) == {0, 1, 3}


def test_a_report_tells_what_was_found_and_where_in_a_line_and_in_a_table():
    report = IntakeReport(
        images=1200,
        classes=("ant", "bee", "cat", "dog", "eel", "fox"),
        splits={"train": 1000, "test": 200},
        origins={"splits": "the folders Training and Testing", "classes": "folder names"},
        left_out={".txt": 2, "hidden": 1},
    )
    assert report.sentence() == (
        "1,200 images, 6 classes (ant, bee, cat, dog, eel, ...), train/val/test 1,000/0/200 "
        "(split: the folders Training and Testing), 3 left out (2 .txt, 1 hidden)."
    )
    assert report.table()[1:3] == [
        ("images", "1,200", "", "2 .txt, 1 hidden"),
        ("classes", "6: ant, bee, cat, dog, eel, ...", "folder names", ""),
    ]
    assert report.to_json()["splits"] == {"train": 1000, "test": 200}
    untested = IntakeReport(images=1, classes=("a",), splits={"train": 1})
    assert untested.sentence() == "1 image, 1 class (a), train/val/test 1/0/0, nothing to test with."


def test_mistakes_are_told_together_and_one_alone_in_a_sentence():
    mistakes = Mistakes("a.csv")
    mistakes.check()
    mistakes.add("it is blue", line=3, column="dog")
    with pytest.raises(UserError, match=r"^a.csv, line 3, column 'dog': it is blue; correct that cell\.$"):
        mistakes.check(fix="correct that cell")
    mistakes.add("it is red")
    with pytest.raises(
        UserError, match=r"^a.csv has 2 mistakes; correct these:\n  it is red\n  line 3, .*: it is blue$"
    ):
        mistakes.check()
    with pytest.raises(UserError, match=r"has 3 mistakes"):
        mistakes.refuse("nothing more can be said")
    with pytest.raises(UserError, match=r"^a.csv has 3 mistakes; correct these cells:"):
        mistakes.check(fix="correct that cell")
    with pytest.raises(UserError, match=r"^a.csv has 3 mistakes; rename these files or folders:"):
        mistakes.check(fix="rename that file or folder")


def test_images_that_are_named_come_once_and_in_the_order_in_which_people_count(tmp_path):
    tree(tmp_path, "10.jpg", "2.jpg", "B 1.png", "a 10.png", "a 9.png", "deep/1.jpg", "notes.txt", "deep/clip.mp4")
    found = find_given([tmp_path / "2.jpg", tmp_path, str(tmp_path / "*.png")])
    names = ["2.jpg", "10.jpg", "a 9.png", "a 10.png", "B 1.png", "deep/1.jpg"]
    assert [file.relative_to(tmp_path).as_posix() for file in found.files] == names
    assert found.left_out == {".txt": 1, ".mp4": 1, "given more than once": 4} and found.unusable == ()


def test_named_images_keep_unique_names_as_they_were_typed_and_none_is_absolute(tmp_path, monkeypatch):
    tree(tmp_path, "new/a.jpg", "new/sub/b.jpg", "old/new/a.jpg", "lone.jpg")
    monkeypatch.chdir(tmp_path)
    assert find_given(["new"]).names == ("new/a.jpg", "new/sub/b.jpg") == find_given([tmp_path / "new"]).names
    assert find_given([tmp_path / "new" / "**" / "*.jpg"]).names == ("new/a.jpg", "new/sub/b.jpg")
    assert find_given(["new/sub/b.jpg", tmp_path / "lone.jpg"]).names == ("new/sub/b.jpg", f"{tmp_path.name}/lone.jpg")
    both = find_given([tmp_path / "new" / "a.jpg", "old/new", tmp_path / "old" / "new", tmp_path / "gone.jpg"])
    assert both.names == ("new/a.jpg", "old/new/a.jpg") and both.left_out == {"given more than once": 1}
    clash = find_given([tmp_path / "new", tmp_path / "old" / "new"]).names
    assert clash == (f"{tmp_path.name}/new/a.jpg", "new/sub/b.jpg", "old/new/a.jpg")
    assert [one.name for one in both.unusable] == [f"{tmp_path.name}/gone.jpg"]
    (tmp_path / "list.csv").write_text(f"image\nnew/a.jpg\n{tmp_path}/new/sub/b.jpg\n")
    assert find_given([tmp_path / "list.csv"]).names == ("new/a.jpg", "sub/b.jpg")


def test_what_is_named_and_cannot_be_used_costs_only_itself(tmp_path):
    tree(tmp_path, "1.jpg", "notes.txt", "[1].jpg")
    (tmp_path / "empty").mkdir()
    found = find_given([tmp_path / name for name in ("1.jpg", "2.jpg", "empty", "*.tif", "*.txt", "[1].jpg")])
    assert [file.name for file in found.files] == ["1.jpg", "[1].jpg"]
    reasons = ("2.jpg does not exist", "empty holds no images", r"'.*\*.tif' matches no", r"'.*\*.txt' matches no")
    for one, reason in zip(found.unusable, reasons, strict=True):
        assert re.search(reason, one.reason) and str(tmp_path) in one.reason and str(tmp_path) not in one.error


def test_images_in_hidden_folders_are_counted_except_those_of_programs(tmp_path):
    tree(tmp_path, "cat/1.jpg", ".dog/1.jpg", ".git/1.jpg", "__MACOSX/1.jpg", ".cache/1.jpg")
    assert find_images(tmp_path).left_out == {"hidden folders": 1}
