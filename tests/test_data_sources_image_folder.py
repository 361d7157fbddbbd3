from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedprompt.data import file_source
from fedprompt.data.file_source import FileSource
from fedprompt.data.sources.image_folder import image_folder
from fedprompt.data.splits import draw_test_splits
from fedprompt.errors import UserError

DOT = b"P6 1 1 255\n\x10\x20\x30"  # the smallest picture there is


def fill(root: Path, *places: str, each: int = 4) -> Path:
    """`each` one-pixel images in every folder."""
    for place in places:
        folder = root / place
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(each):
            (folder / f"{number}.ppm").write_bytes(DOT + f"{place}/{number}".encode())
    return root


def split_of(dataset) -> dict[str, str]:
    return {dataset.source.describe(row): word for row, word in enumerate(dataset.splits)}


def test_class_folders_are_a_data_set(tmp_path):
    fill(tmp_path, "dog", "Zebra", "cat")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "dog" / ".hidden.png").write_bytes(b"")
    (tmp_path / "dog" / "0.ppm").rename(tmp_path / "dog" / "0.PPM")
    data = image_folder(path=tmp_path)
    assert data.space.names == ("Zebra", "cat", "dog")  # bytewise, as everyone else orders folders
    assert (data.base, data.new) == ((0, 1, 2), ())
    halves = image_folder(path=tmp_path, base="half")
    assert (halves.base, halves.new) == ((0, 1), (2,))
    assert data.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.source.describe(8) == "dog/0.PPM" and data.source.open(8).getpixel((0, 0)) == (16, 32, 48)
    assert set(data.domains) == {""} and data.name == tmp_path.name


def test_domains_are_found_and_may_lack_a_class(tmp_path):
    fill(tmp_path, "sketch/cat", "sketch/dog", "photo/dog")
    (tmp_path / "photo/cat").mkdir()  # a class may be empty in one domain
    data = image_folder(path=tmp_path, unseen_domains=("sketch",), base="all")
    assert data.space.names == ("cat", "dog") and data.new == ()
    assert data.domains == ("photo",) * 4 + ("sketch",) * 8
    assert data.seen_domains == ("photo",)


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("train", "test"), {"train", "test"}),
        (("Train", "valid"), {"train", "test"}),
        (("train", "validation", "test"), {"train", "val", "test"}),
    ],
)
@pytest.mark.parametrize("domain", ["", "art/"])
def test_split_folders_decide_the_splits(tmp_path, folders, words, domain):
    outer = (domain, "photo/") if domain else ("",)
    fill(tmp_path, *(f"{folder}/{place}{name}" for folder in folders for place in outer for name in ("cat", "dog")))
    data = image_folder(path=tmp_path)
    assert set(data.splits) == words and data.space.names == ("cat", "dog")
    assert set(data.domains) == ({"art", "photo"} if domain else {""})


def test_a_class_may_be_called_train(tmp_path):
    assert image_folder(path=fill(tmp_path, "train", "truck")).space.names == ("train", "truck")


@pytest.mark.parametrize(
    ("base", "expected"),
    [("half", (0, 1)), ("all", (0, 1, 2)), (("c", "a"), (2, 0)), ((unicodedata.normalize("NFD", "b"),), (1,))],
)
def test_base_classes_are_half_all_or_named(tmp_path, base, expected):
    data = image_folder(path=fill(tmp_path, "a", "b", "c"), base=base)
    assert data.base == expected
    assert sorted(data.base + data.new) == [0, 1, 2]


def test_the_same_name_in_two_spellings_is_one_class(tmp_path):
    names = [unicodedata.normalize(form, "Käse_日本") for form in ("NFC", "NFD")]
    fill(tmp_path, f"a/{names[0]}", f"b/{names[1]}")
    data = image_folder(path=tmp_path)
    assert data.space.names == (names[0],) and data.space.texts() == (f"a photo of a {names[0].replace('_', ' ')}.",)
    assert data.source.open(7).size == (1, 1)  # found under the name it has on disk


def test_adding_a_file_moves_one_other_of_its_class_at_most(tmp_path):
    fill(tmp_path, "cat", "dog", each=30)
    before = split_of(image_folder(path=tmp_path, seed=3))
    fill(tmp_path, "ant")
    for number in range(30, 60):
        (tmp_path / "cat" / f"{number}.ppm").write_bytes(DOT + f"cat/{number}".encode())
    after = split_of(image_folder(path=tmp_path, seed=3))
    assert {name: before[name] for name in before if name.startswith("dog")}.items() <= after.items()
    (tmp_path / "cat" / "new.ppm").write_bytes(DOT + b"cat/new")
    later = split_of(image_folder(path=tmp_path, seed=3))
    assert sum(later[name] != after[name] for name in after) <= 1
    assert set(before.values()) == {"train", "test"}
    assert split_of(image_folder(path=tmp_path, seed=4)) != after


@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    fraction=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 1000),
)
def test_every_class_is_trained_and_tested_where_it_can_be(counts, fraction, seed):
    files = [f"class {label}/{number}.png" for label, count in enumerate(counts) for number in range(count)]
    classes = [file.partition("/")[0] for file in files]
    splits = draw_test_splits(files, classes, test_fraction=fraction, seed=seed)
    for name, count in Counter(classes).items():
        words = {split for split, own in zip(splits, classes, strict=True) if own == name}
        assert "train" in words
        assert ("test" in words) == (count > 1 and fraction > 0)
        tested = sum(split == "test" for split, own in zip(splits, classes, strict=True) if own == name)
        assert not words >= {"train", "test"} or tested in (1, count - 1) or abs(tested - fraction * count) <= 0.5
    again = draw_test_splits(files[::-1], classes[::-1], test_fraction=fraction, seed=seed)
    assert again[::-1] == splits


def test_the_test_share_is_about_the_one_asked_for(tmp_path):
    data = image_folder(path=fill(tmp_path, "a", "b", each=200), test_fraction=0.3)
    assert 0.25 < data.splits.count("test") / 400 < 0.35


@given(
    rows=st.lists(st.sets(st.integers(0, 3), max_size=3), min_size=40, max_size=80),
    fraction=st.sampled_from([0.2, 0.25, 0.4]),
    seed=st.integers(0, 100),
)
def test_each_label_has_its_share_of_the_test_images_whatever_the_order(rows, fraction, seed):
    files = [f"{number}.png" for number in range(len(rows))]
    labels = [[int(label in own) for label in range(4)] for own in rows]
    drawn = partial(draw_test_splits, test_fraction=fraction, seed=seed)
    splits = drawn(files, [""] * len(files), labels=labels)
    rarest = min(range(4), key=lambda label: (sum(own[label] for own in labels) or 99, label))
    count = sum(own[rarest] for own in labels)
    tested = sum(own[rarest] for own, split in zip(labels, splits, strict=True) if split == "test")
    assert count < 2 or tested == min(count - 1, max(1, round(fraction * count)))
    for label in range(4):
        count = sum(own[label] for own in labels)
        tested = sum(own[label] for own, split in zip(labels, splits, strict=True) if split == "test")
        assert count < 2 or tested >= 1
    assert drawn(files[::-1], [""] * len(files), labels=labels[::-1])[::-1] == splits


def test_attributes_are_read(tmp_path):
    fill(tmp_path, "cat", "dog")
    (tmp_path / "attributes.json").write_text(json.dumps({"dog": ["four legs", "a tail"]}))
    space = image_folder(path=tmp_path, template="one {}.").space
    assert space.attributes == {"dog": ("four legs", "a tail")}
    assert space.attribute_texts()[1] == ("one dog, which has four legs.", "one dog, which is a tail.")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not a descriptions file"),
        ('{"cat": "furry"}', "is wrong at attributes.cat"),
        ('{"cat": [" "]}', "is wrong at attributes.cat.0"),
        ('{"cats": ["furry"]}', "names the class 'cats'.*did you mean 'cat'"),
    ],
)
def test_wrong_attributes_are_named(tmp_path, content, message):
    fill(tmp_path, "cat", "dog")
    (tmp_path / "attributes.json").write_text(content)
    with pytest.raises(UserError, match=rf"attributes\.json.*{message}"):
        image_folder(path=tmp_path)


@pytest.mark.parametrize(
    ("places", "options", "message"),
    [
        ((), {}, "holds no images"),
        (("train/cat", "train/dog"), {}, "holds train and nothing else: add the other parts"),
        (("test/cat", "val/cat"), {}, "holds test and val and no training part"),
        (("cat", "photo/dog"), {}, r"not clear which .* cat/\d.ppm and photo/dog/\d.ppm"),
        (("", "cat"), {}, r"not clear which .* \d.ppm and cat/\d.ppm"),
        (("a/b/c/d",), {}, r"not clear which .* a/b/c/d/\d.ppm"),
        (("photo/cat",), {}, "holds everything in one folder, 'photo'; give "),
        (("",), {}, "holds images and no class folders"),
        (("cat/2020", "dog/2021"), {}, "like cat/2020, occurs in two outer ones"),
        (
            ("photo/cat", "photo/dog"),
            {"layout": "classes"},
            r"photo/dog/\d.ppm in .* does not fit the layout 'classes'",
        ),
        (("cat", "dog"), {"layout": "domains"}, "does not fit the layout 'domains'"),
        (("cat", "dog"), {"base": ("dogs",)}, "base names the class 'dogs'.*did you mean 'dog'"),
        (("cat", "dog"), {"base": ("dog", "dog")}, "distinct"),
        (("cat", "dog"), {"test_fraction": 1.0}, "less than 1, not"),
        (("cat", "dog"), {"template": "a photo"}, "has no {}"),
        (("a/cat", "b/cat"), {"unseen_domains": ("c",)}, "has no domain 'c'"),
    ],
)
def test_wrong_folders_and_options_are_named(tmp_path, places, options, message):
    with pytest.raises(UserError, match=message) as caught:
        image_folder(path=fill(tmp_path, *places), **options)
    assert str(caught.value).endswith(".")


def test_a_declared_layout_is_believed(tmp_path):
    fill(tmp_path, "photo/cat", "photo/dog")
    assert set(image_folder(path=tmp_path, layout="domains").domains) == {"photo"}


def test_a_folder_that_is_missing_or_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for name, what in (("nowhere", "does not exist"), ("file", "is a file")):
        with pytest.raises(UserError, match=f"The folder .*{name} {what}"):
            image_folder(path=tmp_path / name)


def test_a_class_without_images_is_left_out_and_named(tmp_path):
    fill(tmp_path, "cat", "dog")
    (tmp_path / "bird").mkdir()
    (tmp_path / "bird" / "song.mp3").write_bytes(b"")
    data = image_folder(path=tmp_path)
    assert data.space.names == ("cat", "dog")
    assert "1 folder without images makes no class, and nothing is trained or tested for it: bird." in " ".join(
        data.report.warnings
    )


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot be read .Permission denied.; check its permissions"):
        image_folder(path=tmp_path)


def test_a_link_in_a_circle_is_not_followed_and_that_is_said(tmp_path):
    fill(tmp_path, "cat", "dog")
    (tmp_path / "dog" / "again").symlink_to(tmp_path)
    data = image_folder(path=tmp_path)
    assert len(data.source) == 8 and data.report.left_out == {"links to a folder above": 1}


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such names")
def test_a_name_that_is_not_text_is_refused(tmp_path):
    fill(tmp_path, "cat")
    (tmp_path / "cat" / os.fsdecode(b"\xff.png")).write_bytes(DOT)
    with pytest.raises(UserError, match="not valid UTF-8"):
        image_folder(path=tmp_path)


@pytest.mark.parametrize("limit", [1 << 28, 0])
def test_the_fingerprint_sees_names_contents_and_window(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(file_source, "HASHED_BYTES", limit)
    fill(tmp_path, "cat", "dog")
    files = ("cat/0.ppm", "dog/1.ppm")

    def fingerprint(*names: str, window=None) -> str:
        return FileSource(tmp_path, names, window).fingerprint

    first = fingerprint(*files)
    assert fingerprint(*files) == first
    others = [fingerprint(*files[::-1]), fingerprint(files[0]), fingerprint(*files, window=(0, 100))]
    (tmp_path / files[0]).write_bytes(DOT[:-1] + b"!" + bytes([0]))
    os.utime(tmp_path / files[0], ns=(1, 1))
    assert len({first, *others, fingerprint(*files)}) == 5


def test_the_fingerprint_of_a_small_set_ignores_times_and_the_place(tmp_path):
    first = fill(tmp_path / "here", "cat")
    second = fill(tmp_path / "there", "cat")
    os.utime(second / "cat/0.ppm", ns=(1, 1))
    assert image_folder(path=first).source.fingerprint == image_folder(path=second).source.fingerprint


def test_a_file_that_went_away_is_named(tmp_path):
    data = image_folder(path=fill(tmp_path, "cat"))
    (tmp_path / "cat/2.ppm").unlink()
    with pytest.raises(UserError, match=r"cat/2\.ppm cannot be read"):
        _ = data.source.fingerprint
    with pytest.raises(UserError, match=r"cat/2\.ppm does not exist"):
        data.source.open(2)


def test_deep_greys_are_seen_through_the_window(tmp_path):
    (tmp_path / "scan").mkdir()
    Image.new("I;16", (2, 2), 600).save(tmp_path / "scan" / "0.png")
    for window, level in ((None, 2), ((500, 700), 128)):
        assert image_folder(path=tmp_path, window=window).source.open(0).getpixel((0, 0)) == (level,) * 3


def test_listing_says_how_far_it_is(tmp_path):
    fill(tmp_path, "a", "b")
    told = []
    image_folder(path=tmp_path, on_step=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
