"""Warnings of `check` on near-duplicates between splits, class counts and image sizes, and what they leave alone."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

import fedprompt as fp
from fedprompt.data.dataset import Dataset
from fedprompt.data.near_duplicates import DISTANCE, near_duplicates, perceptual_hash
from fedprompt.data.problems import scan_images
from fedprompt.data.quality import quality_warnings
from fedprompt.data.sources.image_folder import image_folder
from fedprompt.demo.emoji import emoji
from test_cli import call


@pytest.fixture(scope="module")
def drawings() -> list[Image.Image]:
    source = emoji(train=1, test=1).source
    return [source.open(row) for row in range(40)]


def jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file).convert("RGB")


def half(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2))


def brighter(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.1)


def distance(first: Image.Image, second: Image.Image) -> int:
    hashes = perceptual_hash(first), perceptual_hash(second)
    assert hashes[0] is not None and hashes[1] is not None
    return (hashes[0] ^ hashes[1]).bit_count()


@pytest.mark.parametrize("change", [jpeg, half, brighter])
def test_a_changed_copy_is_near_and_another_image_is_far(
    drawings: list[Image.Image], change: Callable[[Image.Image], Image.Image]
) -> None:
    near = [distance(image, change(image)) <= DISTANCE for image in drawings]
    assert sum(near) >= 0.9 * len(near)
    assert min(distance(drawings[0], other) for other in drawings[1:]) > DISTANCE


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20),
    st.lists(st.tuples(st.integers(0, 19), st.lists(st.integers(0, 63), max_size=8)), max_size=20),
)
def test_bands_find_the_pairs_that_comparing_all_finds(words: list[int], changes: list[tuple[int, list[int]]]) -> None:
    first = dict(enumerate(words))
    second = {
        100 + number: words[place % len(words)] ^ sum(1 << bit for bit in set(bits))
        for number, (place, bits) in enumerate(changes)
    }
    expected = {}
    for row, word in second.items():
        distances = [(word ^ own).bit_count() for own in words]
        if min(distances) <= DISTANCE:
            expected[row] = (distances.index(min(distances)), min(distances))
    assert {row: (place, bits) for place, row, bits in near_duplicates(first, second)} == expected


def test_an_image_of_one_grey_has_no_hash() -> None:
    assert perceptual_hash(Image.new("RGB", (50, 40), (10, 200, 30))) is None


def noise(path: Path, seed: int, *, side: int = 300) -> Image.Image:
    """Blots of its own for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC)
    image.save(path)
    return image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of eight training and three test images each, all different and large."""
    for number in range(22):
        place = ("train", "test")[number % 11 >= 8] + ("/cat", "/dog")[number // 11]
        noise(tmp_path / place / f"{number}.png", number)
    return tmp_path


def warnings_of(folder: Path, **options: bool) -> tuple[str, ...]:
    dataset: Dataset = image_folder(path=folder)
    scan = scan_images(dataset.source, range(len(dataset.source)), perceptual=options.get("perceptual", True))
    return tuple(one.message for one in quality_warnings(dataset, scan, input_side=224))


def test_a_sound_folder_has_no_warning(folder: Path) -> None:
    assert warnings_of(folder) == ()


def test_a_near_duplicate_in_the_test_part_is_named_with_its_training_image(folder: Path) -> None:
    with Image.open(folder / "train/cat/0.png") as image:
        jpeg(image).resize((280, 280)).save(folder / "test/cat/copy.jpg", quality=70)
    (found,) = warnings_of(folder)
    assert found == (
        "1 image that is not for training looks almost like a training image; "
        "if they show the same, figures are too high: "
        "test/cat/copy.jpg (test) and train/cat/0.png (train)."
    )
    assert warnings_of(folder, perceptual=False) == ()


def test_the_same_pixels_are_left_to_the_problems(folder: Path) -> None:
    (folder / "test/cat/copy.png").write_bytes((folder / "train/cat/0.png").read_bytes())
    assert warnings_of(folder) == ()
    said = call("check", folder, code=2)
    assert "The same image is in several splits" in said and "looks almost like" not in said


def test_imbalanced_and_tiny_classes_are_counted(folder: Path) -> None:
    for number in range(30, 50):
        noise(folder / f"train/cat/{number}.png", number)
    for number in (12, 13, 14, 15, 16, 17):
        (folder / f"train/dog/{number}.png").unlink()
    assert warnings_of(folder) == (
        "1 of 2 classes has fewer than 5 training images: dog (2).",
        "The classes are imbalanced: cat has 28 training images and dog has 2; see the figures per class.",
    )


def test_a_class_without_any_test_image_is_named(folder: Path) -> None:
    for number in range(5):
        noise(folder / f"train/unicorn/{number}.png", 60 + number)
    assert warnings_of(folder) == ("1 of 3 classes has no test image, so nothing is known about it: unicorn.",)


def test_classes_with_one_or_two_test_images_are_named(folder: Path) -> None:
    (folder / "test/dog/21.png").unlink()
    assert warnings_of(folder) == ("1 of 2 classes has only one or two test images, which say little: dog (2).",)


def test_a_rare_class_with_almost_the_name_of_a_common_one_is_questioned(folder: Path) -> None:
    for number in range(40):
        noise(folder / f"train/house/{number}.png", 100 + number)
    for name in ("huose", "hotel", "house 2"):
        noise(folder / f"train/{name}/x.png", 200 + len(name) + ord(name[1]))
    found = [one for one in warnings_of(folder) if "the same class" in one]
    assert found == ["Are these the same class, written in two ways? huose (1 image) and house (40)."]


def test_all_near_duplicates_are_listed_on_request(folder: Path) -> None:
    for number in (0, 1):
        with Image.open(folder / f"train/cat/{number}.png") as image:
            jpeg(image).resize((280, 280)).save(folder / f"test/cat/copy{number}.jpg", quality=70)
    assert f"for one; fedprompt check {folder} --json lists all pairs." in call("check", folder)
    data = fp.load_dataset("image_folder", path=folder)
    ((rows, said),) = fp.check(data)[["rows", "message"]].itertuples(index=False)
    assert [data.source.describe(row) for row in rows] == ["test/cat/copy0.jpg", "test/cat/copy1.jpg"]
    assert said.endswith("leave them out by data.without(rows).") and fp.check(data.without(rows)).empty
    (checked,) = json.loads(call("check", folder, "--json"))["checked"]
    assert checked["near_duplicates"] == [
        {"train": f"train/cat/{number}.png", "other": f"test/cat/copy{number}.jpg", "split": "test"}
        for number in (0, 1)
    ]


@pytest.mark.parametrize("same_pixels", [False, True])
@pytest.mark.parametrize("same_names", [False, True])
def test_copies_that_share_a_file_name_lead_to_the_option_that_keeps_them_together(
    tmp_path: Path, *, same_pixels: bool, same_names: bool
) -> None:
    for number in range(24):
        image = noise(tmp_path / f"colour/{('cat', 'dog')[number % 2]}/{number}.png", number)
        copy = tmp_path / f"other/{('cat', 'dog')[number % 2]}/{number if same_names else number + 100}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        (image if same_pixels else jpeg(image).resize((280, 280))).save(copy, compress_level=1)  # other bytes
    found = call("check", tmp_path, code=2 if same_pixels else 0)
    command = f"fedprompt check {tmp_path} --set data.names_together=true"
    assert (command in found) == same_names
    data = fp.load_dataset("image_folder", path=tmp_path)
    said = " ".join(fp.check(data)["message"])
    assert ("load_dataset(..., names_together=True)" in said) == same_names
    together = fp.load_dataset("image_folder", path=tmp_path, names_together=True)
    again = " ".join(fp.check(together)["message"])
    assert "names_together" not in again and ("several splits" not in again or not same_names)


def test_images_much_smaller_than_the_backbone_reads_are_counted(folder: Path) -> None:
    noise(folder / "train/cat/small.png", 50, side=60)
    noise(folder / "train/cat/middle.png", 51, side=113)
    (found,) = warnings_of(folder)
    assert found == (
        "1 of 24 images is at most half as large as what the backbone reads (224 x 224 pixels), and is enlarged: "
        "train/cat/small.png has 60 x 60."
    )


def test_check_prints_each_warning_in_a_line_and_does_not_fail(folder: Path) -> None:
    noise(folder / "train/cat/small.png", 50, side=60)
    said = call("check", folder)
    assert "Warning: 1 of 23 images is at most half as large" in said and "0 problems." in said
    demo = call("check", "own_folder", "-s", f"data.path={folder}", "-s", "backbone.path=demo")
    assert "at most half as large" not in demo  # the embedded CLIP reads 64 x 64 pixels
    with Image.open(folder / "train/cat/0.png") as image:
        jpeg(image).save(folder / "test/cat/copy.jpg")
    assert "looks almost like" in call("check", folder)
    assert "looks almost like" not in call("check", folder, "--no-duplicates")
