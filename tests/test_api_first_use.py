"""What a new user of the Python API meets: examples that may be copied, warnings, and sentences on mistakes."""

from __future__ import annotations

import gc
import re
import tempfile
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops

import fedprompt as fp
from fedprompt.testing import tiny_clip, tiny_dataset
from pages import ROOT, blocks

QUIET: dict[str, Any] = {"progress": False}


@cache
def objects() -> tuple[fp.Clip, fp.Dataset, fp.Clients]:
    data = tiny_dataset()
    return tiny_clip(), data, fp.partition(data, "iid", clients=2)


def example(word: str) -> str:
    """The block of the page on Python that has a word, up to its first call of `fp.train`."""
    (found,) = [one.text for one in blocks(ROOT / "docs" / "api.md") if one.language == "python" and word in one.text]
    return found.partition("stopped =")[0]


def test_the_callback_on_the_page_judges_every_method_by_its_own_losses() -> None:
    names: dict[str, Any] = {"fp": fp}
    exec(example("class Patience"), names)
    patience = names["Patience"]()
    for trial, losses, ends in (("promptfl", [0.1, 0.1, 0.1], True), ("fedclip", [9.0, 8.0, 7.0], False)):
        patience.on_trial(trial, 3, 0)
        for number, loss in enumerate(losses, start=1):
            patience.on_round(number, loss)
        assert patience.stops(3) is ends, trial
    assert "on_trial" in (fp.Callback.__doc__ or "")


@cache
def pictures() -> tuple[list[np.ndarray], list[str]]:
    """Forty images in two classes."""
    arrays = [np.full((16, 16, 3), 6 * value, dtype=np.uint8) for value in range(40)]
    return arrays, ["night"] * 20 + ["day"] * 20


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[fp.Clip, fp.Dataset, fp.Clients]:
    """A folder of images of which one cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    for number, (array, label) in enumerate(zip(*pictures(), strict=True)):
        (folder / label).mkdir(exist_ok=True)
        Image.fromarray(array).save(folder / label / f"{number}.png")
    (folder / "day" / "11.png").write_bytes(b"no image")
    data = fp.load_dataset("image_folder", path=folder)
    return tiny_clip(), data, fp.partition(data, "iid", clients=2)


CALLS: dict[str, Callable[..., object]] = {
    "train": lambda objects, out: fp.train("promptfl", *objects, rounds=1, out=out, **LENIENT),
    "tune": lambda objects, out: fp.tune("promptfl", *objects, rounds=1, out=out, grid={"lr": [0.01]}, **LENIENT),
    "run": lambda objects, out: fp.run(
        "own_folder",
        clip=objects[0],
        out=out,
        **folder_of(objects),
        **{"train.rounds": 1},
        **QUIET,
    ),
}
LENIENT: dict[str, Any] = {**QUIET, "settings": {"data.unreadable": 0.5}}


def folder_of(objects: tuple[fp.Clip, fp.Dataset, fp.Clients]) -> dict[str, Any]:
    table = {"source": "image_folder", "path": objects[1].table["path"], "unreadable": 0.5}
    return {"data": table, "partition": {"rule": "iid", "clients": 2}}


@pytest.mark.parametrize("case", CALLS)
def test_without_progress_a_run_warns_as_python_does(
    case: str, damaged: tuple[fp.Clip, fp.Dataset, fp.Clients], tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="Left out because they cannot be read: 1 image") as found:
        CALLS[case](damaged, tmp_path / "run")
    assert {one.filename for one in found if "Left out because" in str(one.message)} == {__file__}


class Failing(fp.Callback):
    def on_round(self, number: int, loss: float | None) -> None:
        raise RuntimeError("the kernel is gone")


@pytest.mark.parametrize("fails", [True, False])
def test_a_run_without_a_folder_leaves_neither_files_nor_warnings(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with pytest.raises(RuntimeError) if fails else nullcontext():
            fp.train("promptfl", *objects(), rounds=1, callbacks=Failing() if fails else (), **QUIET)
        gc.collect()
    assert not list(tmp_path.iterdir()) and not [one for one in found if one.category is ResourceWarning]


def test_a_resumed_run_warns_as_python_does(damaged: tuple[fp.Clip, fp.Dataset, fp.Clients], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), pytest.warns(UserWarning, match="cannot be read"):
        fp.train("promptfl", *damaged, rounds=1, out=tmp_path / "run", callbacks=Failing(), **LENIENT)
    recipe = tmp_path / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("lr = ", "lr = 1"), encoding="utf-8")
    with pytest.warns(UserWarning, match="goes on although it has changed"):
        fp.resume(tmp_path / "run", clip=damaged[0], data=damaged[1], clients=damaged[2], accept_changes=True, **QUIET)


def test_a_run_without_test_images_says_that_nothing_was_tested() -> None:
    data = fp.load_dataset(list(zip(*pictures(), strict=True)), test_fraction=0)
    with pytest.warns(UserWarning, match="has no test images"):
        run = fp.train("promptfl", tiny_clip(), data, fp.partition(data, "iid", clients=2), rounds=1, **QUIET)
    assert run.verdict.startswith("Nothing was tested, so there are no figures: the data set has no test images")
    assert list(run.table.columns) == []


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_figure_of_few_classes_is_as_wide_as_what_it_shows(suffix: str, tmp_path: Path) -> None:
    _, _, clients = objects()
    file = clients.plot().save(tmp_path / f"clients{suffix}")
    if suffix == ".svg":
        width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', file.read_text(encoding="utf-8"))[0])
        assert 2 < width / height < 3
        return
    with Image.open(file) as image:
        left, _, right, _ = ImageChops.invert(image.convert("RGB")).getbbox() or (0, 0, 0, 0)
        assert left < 0.1 * image.width and right > 0.9 * image.width
