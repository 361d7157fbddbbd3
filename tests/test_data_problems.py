from __future__ import annotations

import dataclasses
import io

import pytest
from PIL import Image

from fedprompt.data.dataset import Dataset
from fedprompt.data.problems import Problem, find_problems, scan_images
from fedprompt.data.sources.image_folder import image_folder


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    """Four different images of two classes in a train and a test folder each."""
    for number, place in enumerate(("train/cat", "train/dog", "test/cat", "test/dog")):
        (tmp_path / place).mkdir(parents=True)
        for shade in (2 * number, 2 * number + 1):
            Image.new("RGB", (4, 4), (shade, 0, 0)).save(tmp_path / place / f"{shade}.png")
    return image_folder(path=tmp_path)


def problems_of(dataset: Dataset) -> list[Problem]:
    return find_problems(dataset, scan_images(dataset.source, range(len(dataset.source))))


def test_a_sound_data_set_has_no_problems_and_progress_is_reported(dataset, monkeypatch):
    assert problems_of(dataset) == []
    monkeypatch.setattr("fedprompt.data.problems.BATCH", 3)
    steps = []
    scan_images(dataset.source, range(8), on_step=lambda done, total: steps.append((done, total)))
    assert steps == [(3, 8), (6, 8), (8, 8)]


def test_only_the_rows_asked_for_are_opened_and_processes_see_the_same(dataset, monkeypatch):
    (dataset.source.root / dataset.source.files[5]).write_bytes(b"")
    monkeypatch.setattr("fedprompt.data.problems.BATCH", 1)
    alone, together = (scan_images(dataset.source, (1, 5, 7), workers=workers) for workers in (0, 2))
    assert alone == together and alone.digests.keys() == {1, 7} and alone.unreadable.keys() == {5}


def test_all_unreadable_images_are_named(dataset):
    bad = {1: "text", 6: "not an image either"}
    for row, content in bad.items():
        (dataset.source.root / dataset.source.files[row]).write_text(content)
    problems = problems_of(dataset)
    assert [(problem.kind, problem.rows) for problem in problems] == [("unreadable", (1,)), ("unreadable", (6,))]
    assert all(dataset.source.files[row] in problem.message for row, problem in zip(bad, problems, strict=True))


def test_a_test_image_that_is_trained_on_is_a_leak_under_any_name_and_format(dataset):
    source = dataset.source
    tested, trained = (dataset.splits.index(word) for word in ("test", "train"))
    copy = io.BytesIO()
    source.open(tested).save(copy, "BMP")  # other bytes, the same pixels
    (source.root / source.files[trained]).write_bytes(copy.getvalue())
    (problem,) = problems_of(dataset)
    assert (problem.kind, problem.rows) == ("leak", tuple(sorted((tested, trained))))
    assert f"{source.files[tested]} (test)" in problem.message and f"{source.files[trained]} (train)" in problem.message


def test_twins_within_a_split_are_no_leak(dataset):
    assert problems_of(dataclasses.replace(dataset, splits=("train",) * 8)) == []
    source = dataset.source
    trained = [row for row, word in enumerate(dataset.splits) if word == "train"]
    source.open(trained[0]).save(source.root / source.files[trained[1]])
    assert problems_of(dataset) == []


def test_the_shape_counts_as_content(dataset):
    source = dataset.source
    for row, size in ((dataset.splits.index("train"), (4, 2)), (dataset.splits.index("test"), (2, 4))):
        Image.new("RGB", size).save(source.root / source.files[row])
    assert problems_of(dataset) == []


def test_classes_without_attributes_are_reported_where_others_have_some(dataset):
    space = dataclasses.replace(dataset.space, attributes={"cat": ("whiskers",)})
    (problem,) = problems_of(dataclasses.replace(dataset, space=space))
    assert problem.kind == "attributes" and "1 of 2 classes" in problem.message and "'dog'" in problem.message
