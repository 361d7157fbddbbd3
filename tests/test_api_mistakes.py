"""Wrong calls of the Python API: each is one sentence in the words of Python, and nothing is taken in silence."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image

import fedprompt as fp
from fedprompt.testing import tiny_clip, tiny_dataset


def image(value: int = 0) -> Image.Image:
    return Image.new("RGB", (8, 8), (value, 0, 0))


@cache
def objects() -> tuple[fp.Clip, fp.Dataset, fp.Clients]:
    data = tiny_dataset()
    return tiny_clip(), data, fp.partition(data, "iid", clients=2)


def train(method: object = "promptfl", **options: object) -> object:
    return fp.train(method, *objects(), **{"rounds": 1, "progress": False, **options})


def tune(**options: object) -> object:
    return fp.tune("promptfl", *objects(), **{"rounds": 1, "progress": False, **options})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run `run` and its adapter `mine`."""
    folder = tmp_path_factory.mktemp("mistakes")
    run = train("zeroshot", out=folder / "run")
    run.adapter().save(folder / "mine")  # type: ignore[attr-defined]
    return folder


PAIR = [(image(1), "a"), (image(2), "b")]
TABLE = pandas.DataFrame({"image": [image(number) for number in range(4)], "label": list("abab")})
DATA: dict[str, tuple[Callable[[], object], str]] = {
    "a triple": (lambda: fp.load_dataset([*PAIR, (image(3), "a", "b")]), "; item 2 is a tuple, no pair."),
    "a path": (lambda: fp.load_dataset([*PAIR, "c.png"]), "; item 2 is 'c.png', no pair."),
    "a function": (lambda: fp.load_dataset(lambda: 3), "'<lambda>' returned an int; it is to return a Dataset."),
    "a dictionary of splits": (lambda: fp.load_dataset(Splits(train=1, test=2)), "the splits train, test; give one"),
    "a missing folder": (lambda: fp.load_dataset("image_folder", path="/nowhere"), "with `path='FOLDER'`."),
    "a split that is none": (
        lambda: fp.load_dataset(TABLE.assign(split=["train", "tets", "train", "test"])),
        "say what it is with `splits={'tets': 'train'}`",
    ),
    "one missing image": (
        lambda: fp.load_dataset([("/nowhere/a.png", "a")]),
        "The image /nowhere/a.png does not exist.",
    ),
    "a share": (lambda: fp.partition(tiny_dataset(), "iid", held_out=2), "`held_out` is 2; give a share of at least 0"),
    "a device": (lambda: fp.load_clip(device="gpu"), "There is no device 'gpu'; did you mean 'cpu'?"),
    "a float image": (lambda: fp.load_dataset([(np.zeros((4, 4, 3)), "a"), PAIR[1]]), "of float64; give [H, W]"),
}
CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "an option of the method": (
        lambda: train(n_ctx=8),
        "'n_ctx' is an option of the method, not of the training; write train({'name': 'promptfl', 'n_ctx': 8}, ...).",
    ),
    "a class of callbacks": (lambda: train(callbacks=fp.Callback), "; make one, Callback()."),
    "a method without a name": (lambda: fp.train({"n_ctx": 4}, *objects()), "has no name; write {'name'"),
    "callbacks": (lambda: train(callbacks=3), "`callbacks` is 3; give a list."),
    "compare": (lambda: train(compare="zero"), "'zero'"),
    "track": (lambda: train(track="tensorbord"), "did you mean 'tensorboard'"),
    "a setting": (lambda: train(settings={"rounds": 1}), "did you mean 'train.rounds'"),
    "a grid without values": (lambda: tune(grid={"lr": []}), "The grid of 'lr' is []; give a list of values to try."),
    "a grid of a number": (lambda: tune(grid={"lr": 0.1}), "The grid of 'lr' is 0.1; give a list of values to try."),
    "a grid of nothing": (lambda: tune(grid=3), "`grid` is 3; give the values to try by key"),
    "methods with data": (lambda: tune(methods=["fedvpt"]), "with data and clients, further ones are `compare`."),
    "nothing to compare": (lambda: fp.compare([]), "There is no run to compare"),
    "a method to resume": (lambda: fp.resume("/nowhere", method="fedvpt"), "`method` is 'fedvpt'; give the class"),
}
ADAPTERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "the same run twice": (lambda place: fp.compare([place / "run", place / "run"]), "is given twice"),
    "a folder that is taken": (lambda place: train(out=place / "run"), "choose another folder with `out`."),
    "a trial of an adapter": (lambda place: fp.load_adapter(place / "mine", trial="x"), "leave `trial` out."),
    "a method by name": (lambda place: fp.load_adapter(place / "mine", method="fedvpt"), "not a class derived from"),
    "a backbone by name": (lambda place: fp.load_adapter(place / "mine", clip="demo"), "`clip` is 'demo', not a Clip;"),
    "no image": (lambda place: adapter(place).predict(None), "`images` is None; give an image, a list of them"),
    "no class": (lambda place: adapter(place).predict(image()).top(0), "the number of classes must be 1 or more."),
    "numbers as classes": (lambda place: adapter(place).predict(image(), classes=[1, 2]), "`classes` has 1 among"),
    "an empty class": (lambda place: adapter(place).predict(image(), classes=[""]), "`classes` has '' among"),
    "attributes for nothing": (
        lambda place: adapter(place).predict(image(), attributes={"cat": ["fur"]}),
        "zeroshot reads no attributes, so they would change nothing",
    ),
}


class Splits(dict[str, int]):
    """Like a `datasets.DatasetDict`."""

    column_names = ("image", "label")


def adapter(place: Path) -> fp.Adapter:
    return fp.load_adapter(place / "mine", clip=objects()[0])


def sentence(call: Callable[[], object]) -> str:
    with pytest.raises(fp.UserError) as error:
        call()
    return str(error.value)


@pytest.mark.parametrize("case", [*DATA, *CALLS])
def test_a_wrong_call_is_one_sentence_in_the_words_of_python(case: str) -> None:
    call, said = (DATA | CALLS)[case]
    text = sentence(call)
    assert said in text and "--" not in text and len(text) < 400


@pytest.mark.parametrize("case", ADAPTERS)
def test_a_wrong_call_about_a_run_is_one_sentence(case: str, place: Path) -> None:
    call, said = ADAPTERS[case]
    text = sentence(lambda: call(place))
    assert said in text and "--" not in text


def test_one_text_stands_for_a_list_of_one(place: Path) -> None:
    run = train(compare="zeroshot", settings={"evaluate.local": False})
    assert run.trials == ("zeroshot", "promptfl")  # type: ignore[attr-defined]
    assert set(fp.compare(place / "run")["trial"]) == {"zeroshot"}


def test_values_of_a_column_may_be_said_to_be_splits() -> None:
    table = TABLE.assign(split=["train", "train", "extra", "test"])
    assert fp.load_dataset(table, splits={"extra": "test"}).splits == ("train", "train", "test", "test")
