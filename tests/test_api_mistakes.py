"""Wrong calls of the Python API: each is one sentence in the words of Python, and nothing is taken in silence."""

from __future__ import annotations

import pickle
import re
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
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
    "a named function of something else": (
        lambda: fp.load_dataset("os:getcwd"),
        "The function 'os:getcwd' returned a str; it is to return a Dataset.",
    ),
    "a recipe with such a function": (
        lambda: fp.run(
            fp.Recipe(
                name="x",
                data={"source": "os:getcwd"},
                partition={"rule": "iid"},
                method={"name": "zeroshot"},
                backbone={"path": "demo"},
            ),
            progress=False,
        ),
        "The function 'os:getcwd' returned a str; it is to return a Dataset.",
    ),
    "a name of no function": (
        lambda: fp.load_dataset("os:sep"),
        "load_dataset: 'os:sep' is no source; give a function (*, options) -> Dataset.",
    ),
    "a named function of further objects": (lambda: fp.load_dataset("os:rename"), "'os:rename' is no source;"),
    "a type": (lambda: fp.load_dataset(dict), "'dict' is no source; give a function"),
    "a rule that takes no data": (
        lambda: fp.partition(tiny_dataset(), "os:getcwd"),
        "'os:getcwd' is no partition rule; give a function (dataset, *, options) -> Partition.",
    ),
    "a dictionary of splits": (lambda: fp.load_dataset(Splits(train=1, test=2)), "the splits train, test; give one"),
    "a missing folder": (lambda: fp.load_dataset("image_folder", path="/nowhere"), "with `path='FOLDER'`."),
    "a split that is none": (
        lambda: fp.load_dataset(TABLE.assign(split=["train", "tets", "train", "test"])),
        "say what it is with `splits={'tets': 'train'}`",
    ),
    "one missing image": (
        lambda: fp.load_dataset([("/nowhere/a.png", "a")]),
        "The image /nowhere/a.png does not exist; give the path of an image file.",
    ),
    "a share": (lambda: fp.partition(tiny_dataset(), "iid", held_out=2), "`held_out` is 2; give a share of at least 0"),
    "a device": (lambda: fp.load_clip(device="gpu"), "There is no device 'gpu'; did you mean 'cpu'?"),
    "a share as text": (
        lambda: fp.partition(tiny_dataset(), "iid", held_out="a"),
        "`held_out` is 'a'; give a share of at least 0",
    ),
    "no columns": (lambda: fp.load_dataset(pandas.DataFrame()), "The table has no columns; give one of images"),
    "a table without labels": (
        lambda: fp.load_dataset(pandas.DataFrame({"path": ["a.png"], "zzz": ["x"]})),
        "name it, as in load_dataset(table, label='zzz').",
    ),
    "a table without usual names": (
        lambda: fp.load_dataset(pandas.DataFrame({"photo": ["a.png"], "kind": ["x"]})),
        "(columns: photo, kind); name it, as in load_dataset(table, image='photo', label='kind').",
    ),
    "a table whose images are named": (
        lambda: fp.load_dataset(pandas.DataFrame({"kind": ["x"], "photo": ["a.png"]}), image="photo"),
        "name it, as in load_dataset(table, image='photo', label='kind').",
    ),
    "a table of images alone": (
        lambda: fp.load_dataset(pandas.DataFrame({"path": ["a.png"]})),
        "no column 'label' or 'labels' (columns: path); add it.",
    ),
    "an unknown keyword of a table": (
        lambda: fp.load_dataset(pandas.DataFrame({"photo": ["a.png"], "label": ["x"]}), image_column="photo"),
        "a table has no option 'image_column' (its options: image, label, split, domain,",
    ),
    "a misspelt option beside a missing one": (
        lambda: fp.load_dataset("image_folder", pth="images"),
        "image_folder has no option 'pth'; did you mean 'path'?",
    ),
    "a row without a path": (
        lambda: fp.load_dataset([("a.png", "x"), (None, "y")]),
        "The image of row 1 is missing (None); give a path or an image there, or remove the row.",
    ),
    "a path among images": (
        lambda: fp.load_dataset([PAIR[0], ("b.png", "b")]),
        "The image of row 1 is a path and that of row 0 is an Image; give either all paths or all images.",
    ),
    "images as labels": (
        lambda: fp.load_dataset(pandas.DataFrame({"path": ["a.png"], "label": ["x"]}), label="path"),
        "The column 'path' cannot hold the images and the labels at once",
    ),
    "labels first": (
        lambda: fp.load_dataset([("a", image(1)), ("b", image(2))]),
        "The pairs are (label, image); give pairs (image, label)",
    ),
    "labels before paths": (lambda: fp.load_dataset([("a", __file__)]), "The pairs are (label, image)"),
    "a float image": (lambda: fp.load_dataset([(np.zeros((4, 4, 3)), "a"), PAIR[1]]), "of float64; give [H, W]"),
}
CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "settings of a recipe": (
        lambda: fp.run("own_folder", settings={"train.rounds": 3}),
        '`run` has no `settings`; give keys of the recipe as keywords, as in **{"train.rounds": 3}.',
    ),
    "an option of the method": (
        lambda: train(n_ctx=8),
        "not of the training; write train({'name': 'promptfl', 'n_ctx': 8, 'init': ''}, ...).",
    ),
    "an option of the method that keeps its start": (
        lambda: train(n_ctx=4),
        "'n_ctx' is an option of the method, not of the training; write train({'name': 'promptfl', 'n_ctx': 4}, ...).",
    ),
    "more vectors than words": (
        lambda: train({"name": "promptfl", "n_ctx": 8}),
        'or write {"n_ctx": 8, "init": ""} in the table of the method for a random start.',
    ),
    "no client to train": (
        lambda: fp.train("promptfl", *objects()[:2], objects()[2][:0]),
        "`clients` is empty; give at least one client.",
    ),
    "minutes as text": (lambda: tune(minutes="1"), "`minutes` is '1'; give a finite number of at least 0."),
    "minutes that are no number": (lambda: tune(minutes=float("nan")), "`minutes` is nan; give a finite number"),
    "negative minutes": (lambda: tune(minutes=-1), "`minutes` is -1; give a finite number of at least 0."),
    "true minutes": (lambda: tune(minutes=True), "`minutes` is True; give a finite number of at least 0."),
    "draws as text": (lambda: tune(draws="3"), "`draws` is '3'; give a whole number of at least 0."),
    "half a draw": (lambda: tune(draws=1.5), "`draws` is 1.5; give a whole number of at least 0."),
    "negative draws": (lambda: tune(draws=-1), "`draws` is -1; give a whole number of at least 0."),
    "a class of callbacks": (lambda: train(callbacks=fp.Callback), "; make one, Callback()."),
    "a method without a name": (lambda: fp.train({"n_ctx": 4}, *objects()), "has no name; write {'name'"),
    "callbacks": (lambda: train(callbacks=3), "`callbacks` is 3; give a list."),
    "a function for callbacks": (lambda: train(callbacks=print), "derived from fedprompt.Callback, not <built-in"),
    "a misspelt hook": (
        lambda: train(callbacks=Misspelt()),
        "has a method 'on_rounds', which is never called; did you",
    ),
    "an unknown hook": (
        lambda: train(callbacks=Unknown()),
        "has a method 'on_minibatch', which is never called (called",
    ),
    "a stop": (lambda: train(callbacks=Stop()), "has a method 'stop', which is never called; did you mean 'stops'?"),
    "progress": (lambda: train(progress="no"), "`progress` is 'no', not a bool; give True or False."),
    "a list of settings": (lambda: train(settings=[1]), "`settings` is [1]; give a table of keys and values, such as"),
    "settings of a search": (lambda: tune(settings="x"), "`settings` is 'x'; give a table of keys and values"),
    "a runtime": (lambda: train(on=3), "`on` is 3; give a table of keys and values, such as"),
    "compare": (lambda: train(compare="zero"), "'zero'"),
    "track": (lambda: train(track="tensorbord"), "did you mean 'tensorboard'"),
    "a setting": (lambda: train(settings={"rounds": 1}), "did you mean 'train.rounds'"),
    "a grid without values": (lambda: tune(grid={"lr": []}), "The grid of 'lr' is []; give a list of values to try."),
    "a grid of a number": (lambda: tune(grid={"lr": 0.1}), "The grid of 'lr' is 0.1; give a list of values to try."),
    "a grid of nothing": (lambda: tune(grid=3), "`grid` is 3; give the values to try by key"),
    "an empty grid": (lambda: tune(grid={}), "`grid` is empty; give the values to try by key, or leave it out"),
    "a key of the grid in words": (
        lambda: tune(grid={"learning": [0.1]}),
        "tune: [tuning] grid names 'learning', which is no key of [train]; did you mean 'lr'?",
    ),
    "an option of a search": (lambda: tune(round=3), "tune: [train] has no key 'round'"),
    "an option of the method in a search": (
        lambda: tune(n_ctx=4),
        "write tune({'name': 'promptfl', 'n_ctx': 4}, ...).",
    ),
    "methods with data": (lambda: tune(methods=["fedvpt"]), "with data and clients, further ones are `compare`."),
    "nothing to compare": (lambda: fp.compare([]), "There is no run to compare"),
    "a method to resume": (lambda: fp.resume("/nowhere", method="fedvpt"), "`method` is 'fedvpt'; give the class"),
}
LOOP: dict[str, tuple[Callable[[], object], str]] = {
    "a key of the settings": (
        lambda: fp.TrainSettings(round=2),
        "TrainSettings: has no key 'round'; did you mean 'rou",
    ),
    "a value of the settings": (
        lambda: fp.TrainSettings(rounds="x"),
        "rounds = 'x' is not accepted: it must be a whol",
    ),
    "a recipe": (lambda: fp.Recipe(nam="x"), "Recipe: lacks the key 'name'; add it."),
    "a method by name": (lambda: simulator("promptfl"), "`method` is 'promptfl', not a Method; make one from its"),
    "a clip by name": (lambda: simulator(Own(), clip="demo"), "`clip` is 'demo', not a Clip; open one with load_clip"),
    "no clients": (lambda: simulator(Own(), clients=objects()[1]), "`clients` is a Dataset; give a sequence of them"),
    "settings as a table": (lambda: simulator(Own(), settings={"rounds": 1}), "not a TrainSettings; make them with"),
    "a method of the loop": (lambda: loop(Own(), method="own"), "`method` is 'own', not a Method"),
    "a transport": (lambda: loop(Own(), transport="own"), "`transport` is 'own'; give one, such as Simulator("),
    "clients for ids": (lambda: loop(Own(), clients=objects()[2]), "`clients` holds a Client; give the ids of clients"),
    "a number of clients": (lambda: loop(Own(), clients=2), "`clients` is 2; give the ids of at least one client"),
    "a client too many": (lambda: loop(Own(), clients=[7]), "There is no client 7; there are 2, by their ids"),
    "rounds as text": (lambda: loop(Own(), rounds="2"), "`rounds` is '2'; give a whole number of at least 0."),
    "a data set to score": (
        lambda: fp.evaluate(Own(), objects()[0], objects()[1], name="x"),
        "`examples` is a Dataset, not an Examples; take them from a data set",
    ),
    "logits of two classes": (
        lambda: loop(Narrow()),
        "The classifier of Narrow returned logits [4, 2] for 4 images and",
    ),
    "logits of two classes to score": (
        lambda: score(Narrow()),
        "of Narrow returned logits [30, 2] for 30 images and 10",
    ),
    "no logits": (lambda: loop(Silent()), "The classifier of Silent returned None; return a tensor [B, C] of floats"),
    "a parameter that is not used": (lambda: loop(Detached()), "does not depend on what it trains (scale); use these"),
    "a loss per image": (lambda: loop(PerImage()), "The loss of PerImage is a tensor [4]; return a tensor of one num"),
    "a split": (lambda: objects()[1].rows(split="tst"), "has no split 'tst'; did you mean 'test'? (train, val, test)"),
    "a class by name": (
        lambda: objects()[1].rows(split="test", classes=["cat"]),
        "has no class 'cat'; give the numbers",
    ),
    "a domain": (lambda: objects()[1].rows(split="test", domains=["phot"]), "no domain 'phot'; did you mean 'photo'?"),
    "names as a text": (lambda: fp.LabelSpace("cat"), "The names of a label space are 'cat'; give a list of texts"),
    "a kind of labels": (lambda: fp.LabelSpace(("a", "b"), "singel"), "is 'singel'; give 'single' or 'multi'"),
}
ADAPTERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "the same run twice": (lambda place: fp.compare([place / "run", place / "run"]), "is given twice"),
    "a folder that is taken": (lambda place: train(out=place / "run"), "choose another folder with `out`."),
    "a trial": (lambda place: fp.read_run(place / "run").adapter("zeroshto"), "did you mean 'zeroshot'?"),
    "a trial of predictions": (
        lambda place: fp.read_run(place / "run").predictions("zeroshto"),
        "The run has no trial 'zeroshto'; did you mean 'zeroshot'? (its trials are zeroshot).",
    ),
    "a figure below a file": (
        lambda place: fp.read_run(place / "run").plot().save(place / "run" / "run.jsonl" / "a.png"),
        "run.jsonl",
    ),
    "a trial of an adapter": (lambda place: fp.load_adapter(place / "mine", trial="x"), "leave `trial` out."),
    "a method by name": (lambda place: fp.load_adapter(place / "mine", method="fedvpt"), "not a class derived from"),
    "a backbone by name": (lambda place: fp.load_adapter(place / "mine", clip="demo"), "`clip` is 'demo', not a Clip;"),
    "no image": (lambda place: adapter(place).predict(None), "`images` is None; give an image, a list of them"),
    "an empty list of images": (
        lambda place: adapter(place).predict([]),
        "`images` is empty; give at least one image.",
    ),
    "an empty batch": (lambda place: adapter(place).predict(np.zeros((0, 5, 5, 3), np.uint8)), "`images` is empty"),
    "an array without pixels": (
        lambda place: adapter(place).predict(np.zeros((0, 5, 3), np.uint8)),
        "image 0 has no pixels (0 x 5); give an image of at least 1 x 1.",
    ),
    "an image without pixels": (
        lambda place: adapter(place).predict([image(), Image.new("RGB", (5, 0))]),
        "image 1 has no pixels (0 x 5); give an image of at least 1 x 1.",
    ),
    "weights that are missing": (lambda place: damaged(place, None), "adapter_model.safetensors does not exist; copy"),
    "a pickle for weights": (
        lambda place: damaged(place, pickle.dumps({"scale": 1.0})),
        "adapter_model.safetensors cannot be read (it is no safetensors file); copy the adapter again.",
    ),
    "a header that is cut": (
        lambda place: damaged(place, (100).to_bytes(8, "little") + b"{"),
        "adapter_model.safetensors cannot be read (",
    ),
    "no class": (
        lambda place: adapter(place).predict(image()).top(0),
        "`count` is 0; give a whole number of at least 1.",
    ),
    "classes as text": (lambda place: adapter(place).predict(image()).top("1"), "`count` is '1'; give a whole number"),
    "an empty list of classes": (
        lambda place: adapter(place).predict(image(), classes=[]),
        "`classes` is an empty list; give names, or leave it out for the adapter's own classes.",
    ),
    "a number as column": (lambda place: fp.read_run(place / "run").plot(3), "`column` is 3, not a str; give a name"),
    "a table of images": (lambda place: adapter(place).predict({"a": image()}), "give an image, a list of them"),
    "a row without a class": (
        lambda place: tiny_dataset().examples(torch.tensor([0]), [9999]),
        "There is no class 9999; classes are numbers from 0 to",
    ),
    "numbers as classes": (lambda place: adapter(place).predict(image(), classes=[1, 2]), "`classes` has 1 among"),
    "an empty class": (lambda place: adapter(place).predict(image(), classes=[""]), "`classes` has '' among"),
    "attributes for nothing": (
        lambda place: adapter(place).predict(image(), attributes={"cat": ["fur"]}),
        "zeroshot reads no attributes, so they would change nothing",
    ),
}


class Own(fp.Method):
    """A scale on zero-shot logits."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def classifier(self, clip: fp.Clip, space: fp.LabelSpace) -> fp.Classifier:
        texts = clip.text_features(space.texts())
        return lambda images: clip.image_features(images) @ texts.T * self.scale


class Narrow(Own):
    def classifier(self, clip: fp.Clip, space: fp.LabelSpace) -> fp.Classifier:
        return lambda images: clip.image_features(images)[:, :2] * self.scale


class Silent(Own):
    def classifier(self, clip: fp.Clip, space: fp.LabelSpace) -> fp.Classifier:
        return lambda images: None  # type: ignore[arg-type,return-value]


class Detached(Own):
    def classifier(self, clip: fp.Clip, space: fp.LabelSpace) -> fp.Classifier:
        texts = clip.text_features(space.texts())
        return lambda images: clip.image_features(images) @ texts.T * self.scale.detach()


class PerImage(Own):
    def loss(self, clip: fp.Clip, images: fp.Images, *others: object, **options: object) -> torch.Tensor:
        return clip.image_features(images).sum(dim=1) * self.scale


class Misspelt(fp.Callback):
    def on_rounds(self, number: int, loss: float) -> None:
        """Never called."""


class Unknown(fp.Callback):
    def on_minibatch(self, number: int) -> None:
        """Never called."""


class Stop(fp.Callback):
    def stop(self, number: int) -> bool:
        return True


def simulator(method: object, **others: object) -> fp.Simulator:
    clip, _, clients = objects()
    given: dict[str, object] = {"clip": clip, "clients": clients}
    given |= {"settings": fp.TrainSettings(rounds=1, batch_size=4), **others}
    return fp.Simulator(method, given["clip"], given["clients"], given["settings"])  # type: ignore[arg-type]


def loop(own: fp.Method, **others: object) -> list[fp.Round]:
    given: dict[str, object] = {"method": own, "transport": simulator(own), "clients": range(2), "rounds": 1, "seed": 1}
    given |= others
    return list(fp.federate(given.pop("method"), given.pop("transport"), **given))  # type: ignore[arg-type]


def score(own: fp.Method) -> fp.Score:
    clip, data, _ = objects()
    return fp.evaluate(own, clip, data.examples(data.rows(split="test")), name="test")


class Splits(dict[str, int]):
    """Like a `datasets.DatasetDict`."""

    column_names = ("image", "label")


def adapter(place: Path) -> fp.Adapter:
    return fp.load_adapter(place / "mine", clip=objects()[0])


def damaged(place: Path, weights: bytes | None) -> fp.Adapter:
    """Load a copy of the adapter with other bytes, or none, in place of its tensors."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(place / "mine", Path(folder) / "copy")
        (copy / "adapter_model.safetensors").unlink()
        if weights is not None:
            (copy / "adapter_model.safetensors").write_bytes(weights)
        return fp.load_adapter(copy, clip=objects()[0])


def sentence(call: Callable[[], object]) -> str:
    with pytest.raises(fp.UserError) as error:
        call()
    return str(error.value)


@pytest.mark.parametrize("case", [*DATA, *CALLS, *LOOP])
def test_a_wrong_call_is_one_sentence_in_the_words_of_python(case: str) -> None:
    call, said = (DATA | CALLS | LOOP)[case]
    text = sentence(call)
    assert said in text and "--" not in text and len(text) < 400


@pytest.mark.parametrize("case", ADAPTERS)
def test_a_wrong_call_about_a_run_is_one_sentence(case: str, place: Path) -> None:
    call, said = ADAPTERS[case]
    text = sentence(lambda: call(place))
    assert said in text and "--" not in text


def test_a_method_that_cannot_be_built_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(fp.UserError, match="has 4 tokens but n_ctx = 8"):
        train("zeroshot", compare=[{"name": "promptfl", "n_ctx": 8}], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert (train("zeroshot", out=tmp_path / "run")).finished  # type: ignore[attr-defined]


def test_a_search_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(fp.UserError):
        tune(draws=-1, out=tmp_path / "tuned")
    with pytest.raises(fp.UserError, match="has 4 tokens but n_ctx = 8"):
        fp.tune({"name": "promptfl", "n_ctx": 8}, *objects(), rounds=1, progress=False, out=tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()


def test_one_text_stands_for_a_list_of_one(place: Path) -> None:
    run = train(compare="zeroshot", settings={"evaluate.local": False})
    assert run.trials == ("zeroshot", "promptfl")  # type: ignore[attr-defined]
    assert set(fp.compare(place / "run")["trial"]) == {"zeroshot"}


def test_values_of_a_column_may_be_said_to_be_splits() -> None:
    table = TABLE.assign(split=["train", "train", "extra", "test"])
    assert fp.load_dataset(table, splits={"extra": "test"}).splits == ("train", "train", "test", "test")


def test_an_unknown_name_of_the_package_has_a_suggestion() -> None:
    with pytest.raises(AttributeError, match=r"fedprompt has no name 'trian'; did you mean 'train'\?"):
        _ = fp.trian  # type: ignore[attr-defined]


def test_a_figure_is_saved_in_a_new_folder(place: Path) -> None:
    assert "<svg" in fp.read_run(place / "run").plot().save(place / "figures" / "new" / "a.svg").read_text()


def test_one_array_holds_a_batch_of_images(place: Path) -> None:
    batch = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    predicted = adapter(place).predict(batch)
    assert len(predicted) == 2 and predicted.labels == adapter(place).predict(list(batch)).labels


def test_one_of_a_thing_is_said_in_the_singular(place: Path) -> None:
    _, data, _ = objects()
    rows = data.rows(split="test")[:1]
    shown = (
        adapter(place).predict(image()),
        data.examples(rows, [int(data.targets[rows])]),
        data.examples(rows).images,
        fp.partition(data, "iid", clients=1),
        fp.Shard(name="a", rows=(1,), classes=(0,)),
    )
    for one in shown:
        assert re.search(r"\b1 (image|client)\b", repr(one)), repr(one)
