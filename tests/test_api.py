"""The Python API: what `import fedprompt as fp` offers, on the tiny CLIP and tiny data."""

from __future__ import annotations

import doctest
import importlib
import inspect
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

import fedprompt as fp
from fedprompt.data.partition.base import make_shards
from fedprompt.methods.base import context_vectors, cosine_classifier, prompted_texts
from fedprompt.testing import tiny_clip, tiny_dataset

QUIET = {"progress": False}


class Small(fp.Method):
    """A method of one's own, defined in no module that the package knows."""

    def __init__(self, clip: fp.Clip, *, n_ctx: int = 2, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.context = context_vectors(clip, n_ctx=n_ctx, init="", generator=generator)

    def classifier(self, clip: fp.Clip, space: fp.LabelSpace) -> fp.Classifier:
        return cosine_classifier(clip, prompted_texts(clip, space, self.context), space.kind)


def halves(dataset: fp.Dataset, *, seed: int = 0) -> fp.Partition:
    """A partition rule of one's own."""
    rows = dataset.rows(split="train", domains=dataset.seen_domains, classes=dataset.base)
    return fp.Partition("halves", seed, make_shards(list(rows.chunk(2)), dataset.base))


@pytest.fixture(scope="module")
def clip() -> fp.Clip:
    return tiny_clip()


@pytest.fixture(scope="module")
def data() -> fp.Dataset:
    return tiny_dataset()


@pytest.fixture(scope="module")
def clients(data: fp.Dataset) -> fp.Clients:
    return fp.partition(data, "iid", clients=2, seed=1)


@pytest.fixture(scope="module")
def run(clip: fp.Clip, data: fp.Dataset, clients: fp.Clients) -> fp.Run:
    settings = {"evaluate.every": 1}
    options = {"n_ctx": 2, "init": ""}
    return fp.train(
        {"name": "promptfl", **options}, clip, data, clients, rounds=2, compare=["zeroshot"], settings=settings, **QUIET
    )


def test_importing_the_package_loads_neither_torch_nor_pandas() -> None:
    code = "import sys, fedprompt as fp; dir(fp); print({'torch', 'pandas', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize("name", fp.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    thing = getattr(fp, name)
    assert inspect.getdoc(thing) or name == "Classifier"  # a type, which has no docstring
    if inspect.isclass(thing) and thing.__module__.startswith("fedprompt.api"):
        own = [member for key, member in vars(thing).items() if not key.startswith("_") and callable(member)]
        assert all(inspect.getdoc(member) for member in own)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapters", "backbones", "callbacks", "datasets", "results", "training", "tuning"])
def test_examples_in_docstrings_run(name: str) -> None:
    found = doctest.testmod(importlib.import_module(f"fedprompt.api.{name}"))
    assert found.attempted and not found.failed


def test_a_run_gives_tidy_tables(run: fp.Run, data: fp.Dataset) -> None:
    assert run.finished and run.trials == ("zeroshot", "promptfl")
    scores = run.scores
    assert set(scores["round"]) == {0, 1, 2} and set(scores["test_set"]) == {"local", "base", "new", "unseen"}
    accuracy = scores[scores["metric"] == "accuracy"]
    last = accuracy[(accuracy["trial"] == "promptfl") & (accuracy["round"] == 2) & (accuracy["test_set"] == "new")]
    assert last["value"].item() == pytest.approx(run.table.loc["PromptFL", "New"] / 100)
    assert list(run.rounds["round"]) == [1, 2] and (run.rounds["clients"] == 2).all()
    predicted = run.predictions()
    assert set(predicted["truth"]) <= set(data.space.names) and len(predicted)
    assert {"promptfl"} <= set(run.intervals["trial"])


def test_a_run_is_shown_in_a_notebook(run: fp.Run) -> None:
    page, figure = run.report(), run.plot()
    assert "<iframe" in page._repr_html_() and page.path.is_file()
    assert "<svg" in figure.svg and "data:image/svg+xml" in figure._repr_html_()
    assert run.plot("loss").svg != run.plot("base").svg
    assert "PromptFL" in run._repr_html_()


def test_figures_are_written_as_their_suffix_says(run: fp.Run, clients: fp.Clients, tmp_path: Path) -> None:
    for figure in (run.plot(), run.plot("loss"), clients.plot()):
        assert figure.save(tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
        assert figure.save(tmp_path / "figure.svg").read_text().startswith("<?xml")
        with pytest.raises(fp.UserError, match=r"written as \.png or \.svg, not as \.pdf"):
            figure.save(tmp_path / "figure.pdf")


def test_the_same_call_gives_the_same_bits(run: fp.Run, clip: fp.Clip, data: fp.Dataset, clients: fp.Clients) -> None:
    again = fp.train({"name": "promptfl", "n_ctx": 2, "init": ""}, clip, data, clients, rounds=2, **QUIET)
    tensors = [one.adapter().folder.joinpath("adapter_model.safetensors").read_bytes() for one in (run, again)]
    assert tensors[0] == tensors[1]


def test_an_adapter_predicts_images_of_every_form(run: fp.Run, clip: fp.Clip, tmp_path: Path) -> None:
    folder = run.adapter().save(tmp_path / "mine")
    adapter = fp.load_adapter(folder, clip=clip)
    image = Image.fromarray(np.arange(40 * 36 * 3, dtype=np.uint8).reshape(36, 40, 3))
    image.save(tmp_path / "a.png")
    found = [
        adapter.predict(one, classes=["cat", "dog"]).probabilities
        for one in (image, np.asarray(image), str(tmp_path / "a.png"), [tmp_path / "a.png"], [image, image])
    ]
    assert all(torch.equal(found[0], other) for other in found[:4])
    assert torch.allclose(found[0].expand(2, -1), found[4], atol=1e-6)
    predicted = adapter.predict([image], classes=["cat", "dog"])
    assert predicted.labels == [predicted.top(1)[0][0][0]] and predicted.classes == ("cat", "dog")
    assert list(predicted.to_pandas().columns) == ["image", "label", "cat", "dog"]
    assert "data:image/png" in predicted._repr_html_()


def test_many_labels_have_thresholds(clip: fp.Clip, tmp_path: Path) -> None:
    data = tiny_dataset("multi")
    clients = fp.partition(data, "iid", clients=2, held_out=0.25)
    run = fp.train("zeroshot", clip, data, clients, **QUIET)
    adapter = fp.load_adapter(run.adapter().save(tmp_path / "mine"), clip=clip)
    predicted = adapter.predict(data.source.open(0))
    limit = adapter._files.card.thresholds
    assert limit is not None and predicted.present is not None
    assert torch.equal(predicted.present, predicted.probabilities >= torch.tensor(limit[0]))
    assert list(predicted.to_pandas()["labels"]) == predicted.labels
    assert repr(predicted) == f"Predictions of 1 image: {' + '.join(predicted.labels[0]) or 'none of the labels'}"
    assert repr(predicted).partition(": ")[2] in predicted._repr_html_()


def test_a_threshold_that_was_fitted_among_other_classes_is_not_used_and_warned_of(clip: fp.Clip) -> None:
    data = tiny_dataset("multi")
    run = fp.train("fedmpt", clip, data, fp.partition(data, "iid", clients=2), **QUIET)
    adapter, image = run.adapter(), data.source.open(0)
    base = [data.space.names[label] for label in data.base]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter.predict(image, classes=base)
        adapter.predict(image, classes=base[::-1])
    with pytest.warns(UserWarning, match=r"present from 50\.0%; the threshold .* one among the \d+ classes"):
        predicted = adapter.predict(image, classes=adapter.classes[:3])
    assert predicted.present is not None
    assert torch.equal(predicted.present, predicted.probabilities >= 0.5)


def test_a_threshold_that_was_fitted_among_base_classes_is_one_among_those_alone(clip: fp.Clip) -> None:
    data = tiny_dataset("multi")
    names, image = [data.space.names[label] for label in (*data.base, *data.new)], data.source.open(0)
    for method, holds in (("fedmpt", False), ("zeroshot", True)):  # shares among the candidates; a sigmoid per class
        run = fp.train(method, clip, data, fp.partition(data, "iid", clients=2, held_out=0.25), **QUIET)
        adapter = run.adapter()
        assert adapter._files.card.fitted_classes == len(data.base) and adapter.classes == tuple(names)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            adapter.predict(image, classes=names[:-2])
            if holds:
                adapter.predict(image)
        if not holds:
            with pytest.warns(
                UserWarning, match=f"one among the {len(data.base)} classes that the clients trained on,"
            ):
                adapter.predict(image)


def test_one_class_alone_is_warned_of(run: fp.Run) -> None:
    with pytest.warns(UserWarning, match="The only class is 'cat', so every image has it with 100%"):
        run.adapter().predict(pixels(0), classes=["cat"])


def test_an_adapter_is_saved_to_a_new_folder_or_refused_in_a_sentence(run: fp.Run, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("x")
    for place in (tmp_path / "a.png" / "x", Path("/proc/zz")):
        with pytest.raises(fp.UserError, match=r"The folder .* cannot be made \(.*\); give another\."):
            run.adapter().save(place)
    with pytest.raises(fp.UserError, match="exists already; give a folder that does not"):
        run.adapter().save(tmp_path / "a.png")
    assert run.adapter().save(tmp_path / "new" / "mine").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "new"]


def test_a_method_and_a_rule_of_ones_own_are_trained(clip: fp.Clip, data: fp.Dataset, tmp_path: Path) -> None:
    clients = fp.partition(data, halves)
    run = fp.train(Small, clip, data, clients, rounds=1, out=tmp_path / "run", **QUIET)
    assert run.trials == ("Small",) and len(clients) == 2
    image = data.source.open(0)
    assert torch.equal(
        run.adapter().predict(image, classes=["cat"]).probabilities,
        fp.load_adapter(tmp_path / "run", clip=clip, method=Small).predict(image, classes=["cat"]).probabilities,
    )


def test_a_callback_ends_training_early(clip: fp.Clip, data: fp.Dataset, clients: fp.Clients) -> None:
    class Two(fp.Callback):
        def __init__(self) -> None:
            self.losses: list[float | None] = []
            self.scored: list[str] = []

        def on_round(self, number: int, loss: float | None) -> None:
            self.losses.append(loss)

        def on_score(self, score: object) -> None:
            self.scored.append(score.split)  # type: ignore[attr-defined]

        def stops(self, number: int) -> bool:
            return number == 2

    callback = Two()
    run = fp.train("promptfl", clip, data, clients, rounds=5, callbacks=callback, **QUIET)
    assert len(callback.losses) == 2 and list(run.rounds["round"]) == [1, 2] and run.finished
    assert set(callback.scored) == {"local", "base", "new", "unseen"}


def test_an_interrupted_run_is_resumed_to_the_same_bits(
    run: fp.Run, clip: fp.Clip, data: fp.Dataset, clients: fp.Clients, tmp_path: Path
) -> None:
    class Failing(fp.Callback):
        def on_round(self, number: int, loss: float | None) -> None:
            raise RuntimeError("the kernel is gone")

    table = {"name": "promptfl", "n_ctx": 2, "init": ""}
    with pytest.raises(RuntimeError):
        fp.train(table, clip, data, clients, rounds=2, out=tmp_path / "run", callbacks=Failing(), **QUIET)
    with pytest.raises(fp.UserError, match=r"resume\(folder, data=\.\.\., clients=\.\.\.\)"):
        fp.resume(tmp_path / "run", **QUIET)
    resumed = fp.resume(tmp_path / "run", clip=clip, data=data, clients=clients, **QUIET)
    tensors = [one.adapter().folder.joinpath("adapter_model.safetensors").read_bytes() for one in (run, resumed)]
    assert tensors[0] == tensors[1]


class Interrupting(fp.Callback):
    """Presses Ctrl-C while the second client of a round trains."""

    def __init__(self, trial: str, number: int) -> None:
        self.trial, self.number, self.now, self.round = trial, number, "", 0

    def on_trial(self, name: str, rounds: int, done: int) -> None:
        self.now, self.round = name, done

    def on_round(self, number: int, loss: float | None) -> None:
        self.round = number

    def on_client(self, done: int, total: int) -> None:
        if self.now == self.trial and self.round + 1 == self.number and done == 2:
            self.number = 0  # once: clients are counted while they are scored, too
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_keeps_the_last_finished_round_and_the_run_can_go_on(
    run: fp.Run,
    clip: fp.Clip,
    data: fp.Dataset,
    clients: fp.Clients,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table, out = {"name": "promptfl", "n_ctx": 2, "init": ""}, tmp_path / "run"
    stopped = fp.train(
        table,
        clip,
        data,
        clients,
        rounds=2,
        out=out,
        callbacks=Interrupting("PromptFL", 2),
        compare=["zeroshot"],
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "Interrupted; PromptFL is scored after round 1. zeroshot has not begun. Go on: fp.resume(" in said
    assert not stopped.finished and list(stopped.rounds["round"]) == [1] and stopped.report().path.is_file()
    scores = stopped.scores.query("trial == 'promptfl'")
    assert set(scores["test_set"]) == {"local", "base", "new", "unseen"} and set(scores["round"]) == {1}
    assert len(stopped.adapter().predict(data.source.open(0), classes=["cat", "dog"])) == 1
    assert "not finished" in repr(stopped) and "PromptFL" in stopped._repr_html_()
    resumed = fp.resume(out, clip=clip, data=data, clients=clients, **QUIET)
    assert resumed.finished
    tensors = [one.adapter().folder.joinpath("adapter_model.safetensors").read_bytes() for one in (run, resumed)]
    assert tensors[0] == tensors[1]
    assert resumed.table.equals(run.table)
    assert set(resumed.scores.query("test_set == 'local' and trial == 'promptfl'")["round"]) == {2}
    assert set(map(tuple, resumed.scores.query("trial == 'promptfl'")[["round", "test_set"]].values)) == {
        (2, name) for name in ("local", "base", "new", "unseen")
    }


def test_ctrl_c_before_a_round_has_finished_is_an_interruption(
    clip: fp.Clip, data: fp.Dataset, clients: fp.Clients
) -> None:
    with pytest.raises(KeyboardInterrupt):
        fp.train("promptfl", clip, data, clients, rounds=2, callbacks=Interrupting("PromptFL", 1), **QUIET)


def test_ctrl_c_leaves_out_methods_that_have_not_begun(clip: fp.Clip, data: fp.Dataset, clients: fp.Clients) -> None:
    table = {"name": "fedclip", "train": {"lr": 0.01}}
    callback = Interrupting("FedCLIP", 2)
    run = fp.train(table, clip, data, clients, rounds=2, compare=["promptfl"], callbacks=callback, **QUIET)
    assert list(run.rounds["trial"]) == ["fedclip"] and run.adapter().method == "fedclip"
    with pytest.raises(fp.UserError, match="no trial 'promptfl'"):
        run.adapter("promptfl")


def test_runs_are_compared(run: fp.Run, tmp_path: Path) -> None:
    table = fp.compare([run, shutil.copytree(run.folder, tmp_path / "copy")])
    assert set(table["trial"]) == {"zeroshot", "promptfl"} and set(table["seed"]) == {1}
    means = table.pivot_table(index="trial", columns="column", values="value")
    assert means.loc["promptfl", "hm"] == pytest.approx(run.table.loc["PromptFL", "HM"] / 100)


def test_settings_are_searched_over_objects(
    clip: fp.Clip, data: fp.Dataset, clients: fp.Clients, tmp_path: Path
) -> None:
    grid, out = {"lr": [0.001, 0.05]}, tmp_path / "tuned"
    tuned = fp.tune(Small, clip, data, clients, rounds=1, grid=grid, compare=["zeroshot"], out=out, **QUIET)
    table = tuned.table
    assert list(table["lr"]) == [0.001, 0.05] and table["kept"].sum() == 1 and table["value"].between(0, 1).all()
    assert tuned.settings["Small"]["lr"] == table.loc[table["kept"], "lr"].item()
    assert tuned.run.finished and tuned.run.trials == ("zeroshot", "Small")
    assert tuned.run.adapter().predict(data.source.open(0), classes=["cat"]).labels == ["cat"]
    before = (out / "search" / "run.jsonl").read_bytes()
    assert fp.tune(Small, clip, data, clients, rounds=1, grid=grid, compare=["zeroshot"], out=out, **QUIET).run.finished
    assert (out / "search" / "run.jsonl").read_bytes() == before
    with pytest.raises(fp.UserError, match="or a method with what it is trained on"):
        fp.tune(Small, clip, data)
    with pytest.raises(fp.UserError, match=r"'lrr', which is no key of \[train\]; did you mean 'lr'\?$"):
        fp.tune(Small, clip, data, clients, grid={"lrr": [1]}, **QUIET)


def pixels(number: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (number, 0, 0))


def test_data_in_memory_is_read_as_data_in_files(tmp_path: Path) -> None:
    labels = ["cat", "dog"] * 6
    for number in range(12):
        pixels(number).save(tmp_path / f"{number}.png")
    files = [tmp_path / f"{number}.png" for number in range(12)]
    pairs = fp.load_dataset(list(zip(files, labels, strict=True)))
    frame = fp.load_dataset(pandas.DataFrame({"path": files, "label": labels}))
    assert pairs.space == frame.space and pairs.splits == frame.splits and torch.equal(pairs.targets, frame.targets)
    assert pairs.source.fingerprint == frame.source.fingerprint
    images = fp.load_dataset([(pixels(number), label) for number, label in enumerate(labels)])
    assert images.source.open(3).getpixel((0, 0)) == pairs.source.open(3).getpixel((0, 0)) == (3, 0, 0)
    numbers = pandas.DataFrame({"image": files, "y": [0, 1] * 6, "fold": ["train"] * 8 + ["test"] * 4})
    named = fp.load_dataset(numbers, label="y", split="fold", classes=["cat", "dog"])
    assert named.space.names == ("cat", "dog") and named.splits.count("test") == 4
    several = fp.load_dataset([(file, ["cat", "dog"][: 1 + number % 2]) for number, file in enumerate(files)])
    assert several.space.kind == "multi" and several.targets[:2].tolist() == [[1, 0], [1, 1]]


def test_hugging_face_tables_are_read() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    table = datasets.Dataset.from_dict({"image": [pixels(n) for n in range(6)], "label": [0, 1] * 3}, features)
    data = fp.load_dataset(table)
    assert data.space.names == ("cat", "dog") and data.targets.tolist() == [0, 1] * 3
    assert data.source.open(4).getpixel((0, 0)) == (4, 0, 0)


BAD = {
    "images has": (
        lambda: fp.load_dataset(pandas.DataFrame({"photo": ["a.png"], "label": ["x"]})),
        "no column 'image'",
    ),
    "lengths": (lambda: fp.load_dataset("image_folde"), "did you mean 'image_folder'"),
    "long": (lambda: fp.load_dataset([("x" * 5000, "cat"), ("y" * 5000, "dog")]), "2 cannot be opened, for example"),
    "missing": (
        lambda: fp.load_dataset([("/nowhere/a.png", "cat"), ("/nowhere/b.png", "dog")]),
        "png does not exist",
    ),
    "mixed": (lambda: fp.load_dataset([("a.png", "cat"), (pixels(0), "dog")]), "give either all paths or all images"),
    "array": (lambda: fp.load_dataset([(np.zeros((4, 4)), "cat"), (np.zeros((4, 4)), "dog")]), "float64"),
    "numbers": (lambda: fp.load_dataset([(pixels(0), 0), (pixels(1), 1)]), "`classes`"),
    "pairs": (lambda: fp.load_dataset(7), "not this int"),
    "option": (lambda: fp.load_dataset(tain=3), "did you mean 'train'"),
    "rule": (lambda: fp.partition(tiny_dataset(), "dirichlets"), "did you mean 'dirichlet'"),
    "clients": (lambda: fp.partition(tiny_dataset(), "iid", clients=10_000), "10000 clients cannot share"),
    "no partition": (lambda: fp.partition(tiny_dataset(), lambda dataset: 7), "returned an int"),
    "clip": (lambda: fp.load_clip("/nowhere"), "/nowhere"),
    "batch": (lambda: fp.load_clip(batch=0), "batch"),
    "run": (lambda: fp.read_run("/nowhere"), "/nowhere"),
    "recipe": (lambda: fp.run("demos"), "did you mean 'demo'"),
    "key": (lambda: fp.run("demo", rounds=3), "did you mean 'train.rounds'"),
    "adapter": (lambda: fp.load_adapter("/nowhere"), "does not exist"),
    "lengths of columns": (lambda: fp.load_dataset([(pixels(0), "a"), (pixels(1), "b")], splits=["train"]), "1 splits"),
    "type of data": (lambda: fp.partition("data", "iid"), "`data` is 'data', not a Dataset; make one with load_data"),
    "type of rule": (lambda: fp.partition(tiny_dataset(), 3), "`rule` is 3; give the name of a rule"),
    "type of clip": (lambda: fp.train("promptfl", "demo", None, None), "`clip` is 'demo', not a Clip"),
    "type of clients": (lambda: fp.train("promptfl", tiny_clip(), tiny_dataset(), [1]), "`clients` is [1]"),
    "type of backbone": (lambda: fp.load_clip(3), "`path` is 3; give a path"),
    "type of run": (lambda: fp.read_run(5), "`folder` is 5; give a path"),
    "type of runs": (lambda: fp.compare([5]), "`runs` holds 5; give runs, or the paths of their folders."),
    "type of recipe": (lambda: fp.run(3), "`recipe` is 3; give a path"),
    "type of adapter": (lambda: fp.load_adapter(None), "`place` is None; give a path"),
    "type of setting": (lambda: fp.run("demo", seed=None), "is no value of a recipe"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_sentence(case: str) -> None:
    call, said = BAD[case]
    with pytest.raises(fp.UserError) as error:
        call()
    assert said in str(error.value) and str(error.value).endswith((".", ")", "?"))


def test_mistakes_of_training_come_before_the_folder(
    clip: fp.Clip, data: fp.Dataset, clients: fp.Clients, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for call, said in (
        (lambda: fp.train("promptf", clip, data, clients, out=out), "did you mean 'promptfl'"),
        (lambda: fp.train("promptfl", clip, data, clients, out=out, round=3), "round"),
        (lambda: fp.train({"name": "promptfl", "nctx": 3}, clip, data, clients, out=out), "n_ctx"),
        (lambda: fp.train("promptfl", clip, tiny_dataset(), clients, out=out), "another data set"),
        (lambda: fp.train(torch.nn.Linear, clip, data, clients, out=out), "a class derived from fedprompt.Method"),
        (lambda: fp.train("promptfl", clip, data, clients, out=out, callbacks=[print]), "fedprompt.Callback"),
    ):
        with pytest.raises(fp.UserError, match=said):
            call()
        assert not out.exists()


@pytest.mark.parametrize("column", ["image", "Filename", "img_path", "picture"])
def test_a_frame_has_its_images_in_a_column_of_a_usual_name(column: str) -> None:
    images = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frame = pandas.DataFrame({"Label": ["cat", "dog"], column: images})
    assert fp.load_dataset(frame).space.names == ("cat", "dog")


def test_what_is_wrong_with_data_is_a_table(tmp_path: Path) -> None:
    for number in range(8):
        pixels(number // 2).save(tmp_path / f"{number}.png")  # each twice
    (tmp_path / "8.png").write_bytes(b"no image")
    files = [(tmp_path / f"{number}.png", "cat" if number % 2 else "dog") for number in range(9)]
    found = fp.check(fp.load_dataset(files))
    assert set(found["kind"]) >= {"unreadable", "labels", "warning"}
    (broken,) = found.loc[found["kind"] == "unreadable", "message"]
    assert "8.png" in broken


def test_a_repeated_path_is_named(tmp_path: Path) -> None:
    pixels(0).save(tmp_path / "a.png")
    with pytest.raises(fp.UserError, match=r"row 1.*stands in row 0 too"):
        fp.load_dataset([(tmp_path / "a.png", "cat"), (tmp_path / "a.png", "dog")])


def test_a_custom_loop_is_short(clip: fp.Clip, data: fp.Dataset, clients: fp.Clients) -> None:
    method = Small(clip, generator=torch.Generator().manual_seed(0))
    settings = fp.TrainSettings(rounds=2, lr=0.01, batch_size=16)
    transport = fp.Simulator(method, clip, clients, settings)
    losses = []
    for record in fp.federate(method, transport, clients=range(len(clients)), rounds=2, seed=1):
        losses.append(sum(update.loss for update in record.updates) / len(record.updates))
    test = data.examples(data.rows(split="test", classes=data.new), data.new)
    score = fp.evaluate(transport.restore(record.shared), clip, test, name="new", batch_size=32)
    assert len(losses) == 2 and 0 <= score.figures["accuracy"] <= 1


def test_values_are_shown_in_a_line(data: fp.Dataset, clients: fp.Clients) -> None:
    joined = fp.Partition("halves", 0, clients.partition.shards)
    for value in (data, clients, clients[0], clients[0].train, clients[0].train.images, joined):
        assert "\n" not in repr(value) and len(repr(value)) < 700, type(value)
    assert f"{len(data.source)} images" in repr(data)


def test_predictions_are_shown_in_a_line() -> None:
    few = fp.Predictions(("cat", "dog"), ("a", "b"), torch.tensor([[0.9, 0.1], [0.2, 0.8]]))
    assert repr(few) == "Predictions of 2 images: cat 90%, dog 80%"
    many = fp.Predictions(("cat",), ("a",) * 1000, torch.ones(1000, 1))
    assert repr(many).startswith("Predictions of 1,000 images: cat 100%") and len(repr(many)) < 400
