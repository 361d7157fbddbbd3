"""What names of folders, files and cells say about train, validation and test, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprompt.data.intake.split_places import split_folders, splits_of_files
from fedprompt.data.intake.splits import is_split, mentions_split, understand_splits
from fedprompt.errors import UserError


def parts(*names: str, **options) -> dict[str, str]:
    found = understand_splits(names, place="data", **options)
    return {} if found is None else dict(found.parts)


def tree(*tops: str, below: tuple[str, ...] = ("cat/1.jpg", "dog/2.jpg")) -> list[tuple[str, ...]]:
    return [(*top.split("/"), *path.split("/")) for top in tops for path in below]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("training_set", "test_set"),
        ("seg_train", "seg_test"),
        ("train", "dev"),
        ("train", "eval"),
        ("TRAIN", "TST"),
        ("trn", "tst"),
        ("train", "valid"),
        ("train", "evaluation"),
        ("train", "holdout"),
        ("train", "hold-out"),
        ("train", "held_out"),
        ("TrainSet", "TestSet"),
        ("train2014", "val2014"),
        ("birds-train", "birds-test"),
        ("trainingdata", "testdata"),
    ],
)
def test_training_and_testing_parts_are_known_by_any_of_their_names(train, test):
    assert parts(train, test) == {train: "train", test: "test"}
    found = split_folders(tree(train, test), root="data")
    assert [found.of(place) for place in tree(train, test)] == ["train", "train", "test", "test"]
    assert found.below((test, "cat", "1.jpg")) == ("cat", "1.jpg")


@pytest.mark.parametrize("word", ["val", "valid", "validation", "dev", "Development"])
def test_a_validation_part_beside_a_test_part_is_for_validation(word):
    assert parts("train", word, "test") == {"train": "train", word: "val", "test": "test"}


def test_an_evaluation_part_beside_a_test_part_is_for_validation_and_beside_both_is_refused():
    assert parts("train", "eval", "test") == {"train": "train", "eval": "val", "test": "test"}
    assert parts("train", "dev", "holdout") == {"train": "train", "dev": "val", "holdout": "test"}
    with pytest.raises(UserError, match=r"test and validation parts, and 'eval' beside them"):
        parts("train", "dev", "test", "eval")


def test_what_a_part_is_taken_for_is_said_where_its_name_does_not_say_it():
    found = understand_splits(("train", "dev"), place="data")
    assert found.remarks == ("data: dev is the test part.",) and found.has_test
    assert found.origin == "the folders train and dev"
    assert not understand_splits(("train", "val", "test"), place="data").remarks


@pytest.mark.parametrize(
    "names", [("cat", "dog"), ("latest", "contest"), ("device", "medieval"), ("retrained", "attestation"), ("trains",)]
)
def test_names_without_such_a_word_say_nothing(names):
    assert parts(*names) == {} and not any(map(mentions_split, names))


def test_a_name_with_such_a_word_beside_others_without_is_refused():
    with pytest.raises(
        UserError, match=r"'train', a split, beside 'extra', which is none; .*--set data.splits.extra=train"
    ):
        parts("extra", "train", "test")
    with pytest.raises(UserError, match=r"'test', a split, beside 'trian', which is none, unless 'train' is meant"):
        parts("trian", "test")


def test_what_a_name_is_can_be_declared():
    given_parts = {"extra": "train", "old": ""}
    assert parts("extra", "old", "test", declared=given_parts) == {"extra": "train", "old": "", "test": "test"}
    with pytest.raises(UserError, match=r"splits names 'extar', which data does not have; did you mean 'extra'"):
        parts("extra", "test", declared={"extar": "train"})
    with pytest.raises(UserError, match=r"splits says 'training' of 'extra'"):
        parts("extra", "test", declared={"extra": "training"})


@pytest.mark.parametrize("twins", [("train", "training"), ("train", "Train"), ("train2014", "train2017")])
def test_two_folders_of_one_part_are_refused(twins):
    with pytest.raises(UserError, match=r"both say train: put them together"):
        parts(*twins, "test")


def test_cells_of_a_table_may_say_one_part_in_two_ways_and_that_is_said():
    found = understand_splits(("train", "Training", "test"), place="a.csv", kind="cells")
    assert found.parts == {"train": "train", "Training": "train", "test": "test"}
    assert found.remarks == ("a.csv: Training and train are one part.",)


def test_two_data_sets_beside_each_other_are_refused():
    with pytest.raises(UserError, match=r"'birds_train' beside 'cars_test', which look like two data sets"):
        parts("birds_train", "cars_test")


@pytest.mark.parametrize("layout", [("cat/train", "cat/test", "dog/train", "dog/test")])
def test_splits_below_the_classes_are_found_there(layout):
    places = [(*place.split("/"), "1.jpg") for place in layout]
    found = split_folders(places, root="data")
    assert found.levels == (1,) and [found.of(place) for place in places] == ["train", "test", "train", "test"]
    assert found.below(places[0]) == ("cat", "1.jpg")


def test_an_archive_unpacked_into_a_folder_of_its_name_says_its_split_twice():
    places = tree("seg_train/seg_train", "seg_test/seg_test")
    assert split_folders(places, root="data").below(places[0]) == ("cat", "1.jpg")
    with pytest.raises(UserError, match=r"says twice, and differently, which split train/test/cat/1.jpg is in"):
        split_folders(tree("train/test", "test/train"), root="data")


def test_splits_above_domains_are_found():
    places = tree("train/photo", "train/sketch", "test/photo")
    assert split_folders(places, root="data").below(places[0]) == ("photo", "cat", "1.jpg")


def test_a_top_folder_that_is_no_split_beside_others_that_are_is_refused_unless_they_are_domains():
    places = tree("train", "photo")
    with pytest.raises(
        UserError, match=r"'train', which reads like a split, beside 'photo'.*--set data.layout=domains"
    ):
        split_folders(places, root="data")
    assert split_folders(places, root="data", domains=True) is None
    declared = split_folders(places, root="data", declared={"photo": "test"})
    assert declared.splits.parts == {"train": "train", "photo": "test"}


def test_a_class_may_be_called_train():
    assert split_folders([("bus", "1.jpg"), ("train", "2.jpg"), ("toy_train", "3.jpg")], root="data") is None
    assert is_split("train") and not is_split("toy_train")


def test_images_of_a_split_outside_class_folders_are_refused():
    for places in (
        [("train", "1.jpg"), ("test", "2.jpg")],
        [("train", "cat", "1.jpg"), ("test", "2.jpg")],
        [("train", "1.jpg"), ("test", "2.jpg"), ("other", "3.jpg")],
    ):
        with pytest.raises(UserError, match=r"not in class folders|beside 'other'"):
            split_folders(places, root="data")


def test_one_part_alone_is_refused():
    with pytest.raises(UserError, match=r"holds train and nothing else"):
        split_folders(tree("train"), root="data")
    with pytest.raises(UserError, match=r"no training part"):
        split_folders(tree("val", "test"), root="data")


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["default/train/0000.parquet", "default/test/0000.parquet"], ["train", "test"]),
        (["default/train/0000.parquet", "default/train/0001.parquet", "default/test/0.parquet"], None),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"], None),
        (["data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"], None),
        (["birds-train.parquet", "birds-test.parquet"], ["birds-train", "birds-test"]),
        (["training.parquet", "testing.parquet"], None),
        (["default/partial-train/0000.parquet", "default/test/0000.parquet"], None),
        (["training/00000.tar", "training/00001.tar", "testing/00000.tar"], None),
        (["train.parquet", "dev.parquet"], None),
    ],
)
def test_files_of_rows_say_their_split_in_a_folder_or_in_their_name(files, named):
    own, splits = splits_of_files(files, root="data")
    expected = ["train" if "train" in file else "test" for file in files]
    assert [splits.parts[own[file]] for file in files] == expected
    assert named is None or list(own.values()) == named


def test_a_part_of_a_split_is_said_to_be_one():
    _, splits = splits_of_files(["default/partial-train/0000.parquet", "default/test/0000.parquet"], root="data")
    assert splits.remarks == ("data: partial-train is the beginning of a split, not all of it.",)


@pytest.mark.parametrize(
    "files",
    [
        ["default/train/0.parquet", "small/train/0.parquet"],
        ["fold_1/train/0.parquet", "fold_2/train/0.parquet"],
        ["train.parquet", "mini/train.parquet"],
    ],
)
def test_two_configurations_side_by_side_are_refused(files):
    with pytest.raises(UserError, match=r"look like two configurations of one data set; give the path of one"):
        splits_of_files(files, root="data")


def test_files_that_say_nothing_are_one_part_and_beside_others_are_refused():
    assert splits_of_files(["0000.parquet", "0001.parquet"], root="data")[1] is None
    with pytest.raises(UserError, match=r"train.parquet, which says its split, beside 0000.parquet"):
        splits_of_files(["0000.parquet", "train.parquet"], root="data")


def test_files_of_several_parts_of_which_none_is_for_training_are_refused():
    with pytest.raises(UserError, match=r"data holds test and val and no training part; add it"):
        splits_of_files(["val.parquet", "test.parquet"], root="data")
    assert splits_of_files(["test.parquet"], root="data")[1] is not None


WORDS = {"train": ("train", "training", "trn"), "val": ("val", "valid", "dev"), "test": ("test", "testing", "tst")}


@given(st.data())
def test_every_spelling_of_three_parts_is_understood(data):
    prefix, suffix = data.draw(
        st.sampled_from([("", ""), ("seg_", ""), ("", "_set"), ("a-b.", "2014"), ("My", "Data")])
    )
    case = data.draw(st.sampled_from([str.lower, str.upper, str.title] if not prefix.isalpha() else [str.title]))
    own = {case(data.draw(st.sampled_from(words))): part for part, words in WORDS.items()}
    names = {f"{prefix}{name}{suffix}": part for name, part in own.items()}
    assert parts(*names) == names
