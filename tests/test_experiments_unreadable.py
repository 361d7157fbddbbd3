"""One picture that cannot be read stops nobody; many of them stop a run before it begins."""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from html import escape
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.config.recipe import Recipe, parse_recipe
from fedprompt.data.dataset import Dataset
from fedprompt.data.joined import JoinedDataset, join
from fedprompt.data.partition.base import Partition
from fedprompt.data.partition.class_chunks import class_chunks
from fedprompt.data.sources.image_folder import image_folder
from fedprompt.demo.emoji import emoji
from fedprompt.errors import UserError
from fedprompt.experiments import experiment, unreadable
from fedprompt.experiments import run as runs
from fedprompt.experiments.plan import resolve
from fedprompt.experiments.unreadable import exclude_unreadable, scan_used_images
from fedprompt.report import read_run
from test_data_quality import noise
from trees import picture

pytestmark = pytest.mark.usefixtures("blank_figures")

TRAIN, TEST = 6, 3  # pictures of a class
RECIPE = """
name = "sifted"
[data]
source = "image_folder"
path = "{path}"
base = "all"
[partition]
rule = "class_chunks"
classes_per_client = 1
shots = 4
[method]
name = "promptfl"
[train]
rounds = 2
batch_size = 3
[evaluate]
samples = 1
"""


def bomb() -> bytes:
    """A PNG of a hundred bytes that says it has 30,000 x 30,000 pixels."""
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "text": lambda _: b"this was an HTML page",
    "bomb": lambda _: bomb(),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        for split, count in (("train", TRAIN), ("test", TEST)):
            for number in range(count):
                picture(tmp_path / "pictures" / split / name / f"{number}.jpg")
    return tmp_path / "pictures"


def spoil(path: Path, kind: str = "text") -> None:
    path.write_bytes(DAMAGE[kind](path.read_bytes()))


def opened(folder: Path) -> tuple[Dataset, Partition]:
    data = image_folder(path=folder, base="all")
    return data, class_chunks(data, classes_per_client=1, shots=4)


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_cannot_be_read_is_left_out_with_its_reason(kind: str, folder: Path) -> None:
    data, dealt = opened(folder)
    row = dealt.shards[1].rows[2]
    tested = data.rows(split="test").tolist()[0]
    for lost in (row, tested):
        spoil(folder / data.source.files[lost], kind)
    looked = scan_used_images(data, dealt, whole=False, workers=0)
    assert looked.unreadable.keys() == {row, tested}
    data, dealt, left_out = exclude_unreadable(data, dealt, looked.unreadable, share=0.05)
    assert [one.row for one in left_out] == sorted((row, tested))
    places = {one.row: one.place for one in left_out}
    assert places == {row: "training images of client-1", tested: "test images of pictures"}
    assert all(one.picture in one.reason and one.reason.endswith(".") for one in left_out)
    assert row not in dealt.shards[1].rows and len(dealt.shards[1].rows) == 3 and len(dealt.shards[0].rows) == 4
    assert tested not in data.rows(split="test") and row not in data.rows(split="train")


def test_only_what_a_run_uses_is_opened(folder: Path) -> None:
    data, dealt = opened(folder)
    used = {row for shard in dealt.shards for row in shard.rows}
    unused = next(row for row in data.rows(split="train").tolist() if row not in used)
    spoil(folder / data.source.files[unused])
    looked = scan_used_images(data, dealt, whole=False, workers=0)
    assert not looked.unreadable and looked.digests.keys() == used | set(data.rows(split="test").tolist())
    looked = scan_used_images(data, dealt, whole=True, workers=0)
    assert (
        looked.unreadable.keys() == {unused} and exclude_unreadable(data, dealt, looked.unreadable, share=0.0)[2] == ()
    )
    drawn = emoji(train=1, test=1)
    assert not scan_used_images(drawn, class_chunks(drawn), whole=True, workers=0).digests


LARGE = (emoji(train=2, test=1), class_chunks(emoji(train=2, test=1), classes_per_client=3, shots=8))


@given(data=st.data())
@settings(max_examples=100)
def test_a_run_goes_on_without_one_or_a_share_and_never_without_all(data: st.DataObject) -> None:
    drawn, dealt = LARGE
    rows = [row for shard in dealt.shards for row in shard.rows]
    lost = data.draw(st.sets(st.sampled_from(rows), max_size=8))
    share = data.draw(st.sampled_from((0.0, 0.05, 0.2, 1.0)))

    def too_many(own: set[int]) -> bool:
        count = len(lost & own)
        return bool(count) and (not share or count == len(own) or (count > 1 and count > share * len(own)))

    wrong = any(too_many(set(own)) for own in (rows, *(shard.rows for shard in dealt.shards)))
    try:
        _, kept, left_out = exclude_unreadable(drawn, dealt, dict.fromkeys(lost, "It is bad."), share=share)
    except UserError as error:
        assert wrong and "cannot be read; with [data] unreadable" in str(error) and "It is bad." in str(error)
        return
    assert not wrong and {one.row for one in left_out} == lost
    assert {row for shard in kept.shards for row in shard.rows} == set(rows) - lost


def test_parts_of_a_suite_are_counted_each_by_itself() -> None:
    parts = [dataclasses.replace(emoji(train=1, test=1), name=name) for name in ("one", "two")]
    joined = join(parts)
    dealt = joined.partition_parts(class_chunks)
    start, tests = len(parts[0].source), parts[1].rows(split="test")
    row = start + int(tests[0])
    found, _, (left_out,) = exclude_unreadable(joined, dealt, {row: "It is bad."}, share=0.05)
    assert (
        isinstance(found, JoinedDataset) and found.part_of(left_out.row) == 1 and left_out.place == "test images of two"
    )
    assert row not in found.rows(split="test") and len(found.parts[1].rows(split="test")) == len(tests) - 1
    assert not found.parts[0].excluded


def recipe(folder: Path, *changes: str) -> Recipe:
    return parse_recipe(RECIPE.format(path=folder), changes)


def lines(run: Path, *events: str) -> list[dict]:
    found = map(json.loads, (run / "run.jsonl").read_text(encoding="utf-8").splitlines())
    return [{key: one[key] for key in one if key != "seconds"} for one in found if one["event"] in events]


class Impatient(runs.RunCallbacks):
    def __init__(self) -> None:
        self.warned: list[str] = []

    def on_warning(self, text: str) -> None:
        self.warned.append(text)

    def on_round(self, number: int, loss: float | None) -> None:
        raise KeyboardInterrupt


def test_a_run_warns_of_near_duplicates_in_its_test_part_and_of_classes_that_are_not_tested(tmp_path: Path) -> None:
    for number in range(16):
        place = ("train", "test")[number % 8 >= 6] + ("/cat", "/dog")[number // 8]
        noise(tmp_path / "noise" / place / f"{number}.png", number)
    for number in range(5):
        noise(tmp_path / "noise" / f"train/unicorn/{number}.png", 60 + number)
    noise(tmp_path / "noise/test/cat/copy.png", 0, side=200)
    said = Impatient()
    settings = recipe(tmp_path / "noise", "partition.shots=6")
    with pytest.raises(KeyboardInterrupt):
        runs.start(resolve(settings), tmp_path / "run", callbacks=said)
    near, untested, thin = said.warned
    assert near.startswith("1 image that is not for training looks almost like a training image") and "copy.png" in near
    assert untested == "1 of 3 classes has no test image, so nothing is known about it: unicorn."
    assert thin == "1 of 3 classes has only one or two test images, which say little: dog (2)."
    data = read_run(tmp_path / "run").header.data
    assert set(said.warned) <= set(data.notes), "for the report"
    assert (data.near_duplicates, data.near_of_same_name) == (1, 0), "for the verdict and the model card"


def test_a_run_that_hashes_no_images_says_what_looks_for_near_duplicates(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (unreadable, experiment):
        monkeypatch.setattr(module, "MOST_HASHED", 3)
    said = Impatient()
    with pytest.raises(KeyboardInterrupt):
        runs.start(resolve(recipe(folder)), tmp_path / "run", callbacks=said)
    assert said.warned[-1].startswith("fedprompt check looks for images that are almost the same")


def test_a_run_without_them_is_listed_in_full_and_resumes_to_the_bit(folder: Path, tmp_path: Path) -> None:
    data, dealt = opened(folder)
    for row, kind in ((dealt.shards[0].rows[1], "truncated"), (data.rows(split="test").tolist()[-1], "bomb")):
        spoil(folder / data.source.files[row], kind)
    whole, stopped, watch = tmp_path / "whole", tmp_path / "stopped", Impatient()
    page = runs.start(resolve(recipe(folder)), whole).read_text(encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        runs.start(resolve(recipe(folder)), stopped, callbacks=watch)
    assert "Left out because they cannot be read: 2 images" in watch.warned[0]
    assert "in several splits" in watch.warned[1] and "more like this" in watch.warned[1]
    assert "has different labels" in watch.warned[2] and "only one or two test images" in watch.warned[3]
    assert len(watch.warned) == 4
    runs.resume(stopped)
    assert lines(whole, "round", "score") == lines(stopped, "round", "score")
    name = Path("adapters/promptfl/adapter_model.safetensors")
    assert (whole / name).read_bytes() == (stopped / name).read_bytes()
    lost = read_run(whole).header.left_out
    assert len(lost) == 2 and "Images left out" in page
    leaks = [note for note in read_run(whole).header.data.notes if "in several splits" in note]
    assert leaks and leaks[0] in watch.warned[1] and escape(leaks[0]) in page
    assert all(one.picture in page and one.place in page for one in lost)
    assert "could not be read: 2 images." in (whole / "adapters/promptfl/README.md").read_text(encoding="utf-8")
    header = lines(whole, "header")[0]["data"]
    assert header["unreadable"] == 2 and header["images"] == {"test": 2 * TEST - 1, "train": 2 * TRAIN - 1}
    with pytest.raises(UserError, match=r"1 of the 4 training images of client-0 .* unreadable = 0 .* without 0"):
        runs.start(resolve(recipe(folder, "data.unreadable=0")), tmp_path / "strict")
    assert not (tmp_path / "strict").exists()
