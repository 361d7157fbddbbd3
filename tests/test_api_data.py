"""Data sets from lists and tables in Python: drawn splits, names of images, and what cannot be read."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image

import fedprompt as fp
from fedprompt.config.recipe import Recipe, find_recipe, load_recipe
from fedprompt.config.registry import PARTITION_RULES, SOURCES
from fedprompt.data.in_memory import dataset_of_columns
from fedprompt.experiments.plan import resolve
from fedprompt.testing import tiny_clip


def image(value: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (value, 0, 0))


def tree(root: Path, count: int = 40) -> list[tuple[str, str]]:
    """Images in two class folders, as pairs of a path below the root and a class."""
    pairs = []
    for number in range(count):
        name = ("cat", "dog")[number % 2]
        (root / name).mkdir(parents=True, exist_ok=True)
        image(number).save(root / name / f"{number}.png")
        pairs.append((f"{name}/{number}.png", name))
    return pairs


def held_back(data: fp.Dataset) -> set[str]:
    return {data.source.describe(row) for row in range(len(data.source)) if data.splits[row] == "test"}


def test_a_drawn_split_does_not_depend_on_where_the_folder_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tree(tmp_path / "here" / "images")
    shutil.copytree(tmp_path / "here", tmp_path / "elsewhere" / "far")
    given = []
    for place in (tmp_path / "here" / "images", tmp_path / "elsewhere" / "far" / "images"):
        monkeypatch.chdir(place)
        given += [fp.load_dataset(pairs), fp.load_dataset([(place / path, name) for path, name in pairs])]
        given.append(fp.load_dataset(pandas.DataFrame(pairs, columns=["path", "label"])))
    folder = fp.load_dataset("image_folder", path=tmp_path / "here" / "images")
    assert len({frozenset(held_back(data)) for data in (*given, folder)}) == 1
    assert len({data.source.fingerprint for data in given}) == 1


def test_a_drawn_split_of_images_in_memory_follows_their_content() -> None:
    rows = [(image(number), "cat" if number % 2 else "dog") for number in range(40)]
    first, turned = fp.load_dataset(rows), fp.load_dataset(rows[::-1])
    assert first.splits == turned.splits[::-1] and {"train", "test"} == set(first.splits)


def test_copies_are_in_one_split_and_said() -> None:
    rows = [(image(number // 2), "cat") for number in range(40)]
    data = fp.load_dataset([*rows, (image(99), "dog"), (image(98), "dog")])
    assert all(data.splits[row] == data.splits[row + 1] for row in range(0, 40, 2))
    assert "20 images are copies" in data.report.all_warnings()[0]


def test_an_undecodable_image_of_a_hugging_face_table_costs_itself_alone(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    paths = [str(tmp_path / path) for path, _ in tree(tmp_path)]
    Path(paths[3]).write_bytes(b"no image")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    table = datasets.Dataset.from_dict({"image": paths, "label": [0, 1] * 20}, features)
    data = fp.load_dataset(table)
    assert len(data.source) == 40
    assert list(fp.check(data, duplicates=False).query("kind == 'unreadable'")["rows"]) == [(3,)]
    assert fp.load_dataset(table.select(range(39, -1, -1))).splits[::-1] == data.splits


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("split", ["train", None, "test", "train", np.nan, "train"], "The split of row 1 and those of 1 other row are"),
        ("split", ["train", "train", "test", "train", np.nan, "train"], "The split of row 4 is missing; write train"),
        ("domain", ["a", "a", "b", "b", "", "b"], "The domain of row 4 is missing; write the domain there"),
    ],
)
def test_a_missing_split_or_domain_is_named_by_its_row(column: str, values: list[object], said: str) -> None:
    table = pandas.DataFrame({"image": [image(number) for number in range(6)], "label": list("ababab")})
    with pytest.raises(fp.UserError) as error:
        fp.load_dataset(table.assign(**{column: values}))
    assert str(error.value).startswith(said) and len(str(error.value)) < 200


def test_a_column_that_stands_twice_is_named() -> None:
    table = pandas.DataFrame(
        [[image(0), image(0), "a"], [image(1), image(1), "b"]], columns=["image", "image", "label"]
    )
    with pytest.raises(fp.UserError, match="2 columns 'image'; rename or drop"):
        fp.load_dataset(table)


def test_predictions_have_the_names_that_were_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, 4)
    monkeypatch.chdir(tmp_path)
    data = fp.load_dataset([(image(number), "ab"[number % 2]) for number in range(8)])
    clip = tiny_clip()
    adapter = fp.train("zeroshot", clip, data, fp.partition(data, "iid", clients=1), progress=False).adapter()
    absolute = [str(tmp_path / "cat" / "0.png"), str(tmp_path / "dog" / "1.png")]
    assert list(adapter.predict(absolute).to_pandas()["image"]) == absolute
    assert list(adapter.predict(["cat/0.png"]).to_pandas()["image"]) == ["cat/0.png"]
    assert adapter.predict("cat").names == ("cat/0.png", "cat/2.png")
    assert adapter.predict(tmp_path / "cat").names == ("cat/0.png", "cat/2.png")
    with pytest.raises(fp.UserError, match="give an image, a list of them, or a folder"):
        adapter.predict(None)


def test_a_file_that_cannot_be_read_costs_itself_in_a_folder_and_raises_where_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path, 4)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat" / "bad.png").write_bytes(b"no image")
    (tmp_path / "cat" / "sub").mkdir()
    data = fp.load_dataset([(image(number), "ab"[number % 2]) for number in range(8)])
    adapter = fp.train("zeroshot", tiny_clip(), data, fp.partition(data, "iid", clients=1), progress=False).adapter()
    for place in ("cat", "cat/*.png"):
        with pytest.warns(UserWarning, match="1 of 3 images cannot be read and are left out"):
            found = adapter.predict(place)
        assert found.names == ("cat/0.png", "cat/2.png") and list(found.unreadable) == ["cat/bad.png"]
        assert len(found.images) == len(found.probabilities) == 2
    listed = sorted((tmp_path / "cat").iterdir())
    with pytest.warns(UserWarning, match="2 of 4 images cannot be read"):
        found = adapter.predict(listed, on_error="skip")
    assert found.names == tuple(map(str, listed[:2])) and str(listed[3]) in found.unreadable
    for place in ("cat/bad.png", ["cat/0.png", "cat/bad.png"]):
        with pytest.raises(fp.UserError, match=r"bad.png is none of"):
            adapter.predict(place)
    with pytest.raises(fp.UserError, match=r"bad.png is none of"):
        adapter.predict("cat", on_error="raise")
    with pytest.raises(fp.UserError, match=r"Of 4 images 1 cannot be opened, for example .*/cat/sub is a folder"):
        adapter.predict(listed)
    with pytest.raises(fp.UserError, match='give "skip" or "raise"'):
        adapter.predict("cat", on_error="ignore")  # type: ignore[arg-type]


def test_python_and_a_recipe_draw_the_same_test_images_and_clients(tmp_path: Path) -> None:
    tree(tmp_path / "images")
    plan = resolve(load_recipe(find_recipe("own_folder"), [f"data.path={tmp_path / 'images'}"]))
    expected = plan.source()
    data = fp.load_dataset("image_folder", path=tmp_path / "images")
    assert list(data.splits) == list(expected.splits)
    assert fp.partition(data).partition.shards == plan.partition(expected).shards


def test_every_source_and_rule_has_the_seed_of_the_recipes() -> None:
    expected = Recipe.model_fields["seed"].default
    seeds = {
        name: inspect.signature(registry.find(name, place="")).parameters["seed"].default
        for registry in (SOURCES, PARTITION_RULES)
        for name in registry.names()
        if "seed" in inspect.signature(registry.find(name, place="")).parameters
    }
    assert seeds and set(seeds.values()) == {expected}
    assert inspect.signature(dataset_of_columns).parameters["seed"].default == expected
