"""What the Python API shows and says about data, scores, adapters and own methods."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, get_type_hints

import pytest
import torch
from PIL import Image

import fedprompt as fp
from fedprompt.config.registry import PARTITION_RULES
from fedprompt.config.values import OrNegative
from fedprompt.data.labels import Kind
from fedprompt.errors import worded
from fedprompt.experiments.test_sets import make_test_sets
from fedprompt.methods import load
from fedprompt.records.run_record import MEASURES, TITLES
from fedprompt.report.legend import legend
from fedprompt.report.proposals import proposals
from fedprompt.testing import tiny_clip, tiny_dataset
from fedprompt.testing.properties import impossible_values
from test_cli import without_end


@cache
def objects() -> tuple[fp.Clip, fp.Dataset, fp.Clients]:
    data = tiny_dataset()
    return tiny_clip(), data, fp.partition(data, "iid", clients=2)


class Own(fp.Method):
    """A scale on zero-shot logits."""

    def __init__(self, clip: fp.Clip, *, generator: torch.Generator | None) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def classifier(self, clip: fp.Clip, space: fp.LabelSpace) -> fp.Classifier:
        texts = clip.text_features(space.texts())
        return lambda images: 20 * clip.image_features(images) @ texts.T * self.scale


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a method of one's own on a backbone that lies in no folder."""
    place = tmp_path_factory.mktemp("findings") / "run"
    fp.train(Own, *objects(), rounds=1, progress=False, out=place)
    return place


def test_scores_have_every_figure_that_was_recorded(folder: Path) -> None:
    scores = fp.read_run(folder).scores
    assert set(scores["metric"]) == {"accuracy", "macro_f1"}
    kinds = scores.groupby(["test_set", "name", "client"], dropna=False)["metric"].nunique()
    assert (kinds == 2).all()


def test_rows_left_out_by_hand_are_not_called_unreadable() -> None:
    data = tiny_dataset()
    less = data.without(range(3))
    assert len(less) == len(data) - 3
    assert "3 left out (3 by `without`)" in repr(less) and "unreadable" not in repr(less)
    assert "1 left out (1 blurred)" in repr(data.without([5], reason="blurred"))
    twice = less.without([3], reason="unreadable").without([0, 3])
    assert "4 left out (3 by `without`, 1 unreadable)" in repr(twice)


def test_a_check_is_about_the_images_that_are_left() -> None:
    data = tiny_dataset().without(range(0, 100))
    messages = " ".join(fp.check(data, duplicates=False, side=4096)["message"])
    assert "80 of 80 images are at most half as large" in messages


def test_a_check_takes_the_side_from_the_backbone() -> None:
    clip, data, _ = objects()

    def small(**options: object) -> bool:
        return "half as large" in " ".join(fp.check(data, duplicates=False, **options)["message"])

    side = clip.image_tower.side
    assert small(clip=clip) == small(side=side) and small(side=4096)
    assert not small()  # nothing is assumed
    with pytest.raises(fp.UserError, match="`side` is '32'; give a whole number of at least 1"):
        small(side="32")
    with pytest.raises(fp.UserError, match="leave `side` out"):
        small(side=32, clip=clip)


def test_an_unknown_class_of_a_method_is_asked_for_at_once(folder: Path) -> None:
    clip, data, _ = objects()
    run = fp.read_run(folder)
    for open_it in (lambda: run.adapter(clip=clip), lambda: fp.load_adapter(folder, clip=clip)):
        with pytest.raises(fp.UserError, match=r"There is no method 'Own' .*or its class, `method=Own`"):
            open_it()
    with pytest.raises(fp.UserError, match="lay in no folder; give it with `clip`"):
        run.adapter(method=Own).predict(data.source.open(0))
    given = run.adapter(method=Own, clip=clip).predict(data.source.open(0))
    loaded = fp.load_adapter(folder, method=Own, clip=clip).predict(data.source.open(0))
    assert torch.equal(given.probabilities, loaded.probabilities)
    with pytest.raises(fp.UserError, match="`method` is 'own', not a class derived from"):
        run.adapter(method="own")  # type: ignore[arg-type]


def test_a_class_takes_the_place_of_the_name_where_there_is_no_keyword_for_it(folder: Path) -> None:
    clip, data, clients = objects()
    with pytest.raises(fp.UserError, match=r"There is no method 'promptlf'.*its class in place of the name") as error:
        fp.train("promptlf", clip, data, clients, progress=False)
    assert "in place of the name: promptlf, without quotes" in str(error.value) and "method=" not in str(error.value)


def test_the_call_that_goes_on_has_the_class_of_a_method_of_ones_own(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    without_end(tmp_path / "run")
    clip, data, clients = objects()
    with pytest.raises(fp.UserError, match="or its class, `method=Own`"):
        fp.resume(tmp_path / "run", clip=clip, data=data, clients=clients, progress=False)
    going_on = proposals(fp.read_run(tmp_path / "run").records, str(tmp_path / "run")).resume()
    assert going_on.endswith("clients=clients, method=Own)")
    given = {"fp": fp, "clip": clip, "data": data, "clients": clients, "Own": Own}
    assert eval(going_on, given).finished


def test_a_shell_is_not_told_of_classes() -> None:
    with worded("shell"), pytest.raises(fp.UserError) as error:
        load("Own")
    assert "your own: package.module)" in str(error.value)


class Turned(fp.Method):
    """An option that may be negative by its type, and one that may not."""

    def __init__(self, clip: fp.Clip, *, turn: OrNegative = -1.0, gain: float = 1.0, generator: object) -> None:
        super().__init__()


def test_an_option_may_be_declared_to_be_negative() -> None:
    hints = get_type_hints(Turned.__init__, include_extras=True)
    assert -1.0 in impossible_values(hints["gain"])
    assert not any(value < 0 for value in impossible_values(hints["turn"])) and impossible_values(hints["turn"])
    assert impossible_values(Annotated[float, "other"]) == impossible_values(float)


@pytest.mark.parametrize("name", PARTITION_RULES.names())
def test_every_partition_rule_says_what_its_clients_are_tested_on(name: str) -> None:
    text = PARTITION_RULES.find(name, place="test").__doc__ or ""
    assert "tested on" in text or "test images are" in text


def test_some_clients_are_clients() -> None:
    clip, data, clients = objects()
    one = clients[1:]
    assert isinstance(one, fp.Clients) and len(one) == 1 and one[0].name == clients[1].name
    assert torch.equal(one[0].train.targets, clients[1].train.targets)
    run = fp.train("zeroshot", clip, data, one, progress=False)
    counts = run.records.header.partition
    assert counts is not None and counts.clients == (clients[1].name,)


def test_predictions_are_iterated_by_image(folder: Path) -> None:
    clip, data, _ = objects()
    found = fp.read_run(folder).adapter(method=Own, clip=clip).predict([data.source.open(row) for row in (0, 9)])
    assert [one.label for one in found] == found.labels and [one.name for one in found] == list(found.names)
    for one, row in zip(found, found.probabilities, strict=True):
        assert next(iter(one.probabilities)) == one.label
        assert list(one.probabilities.values()) == row.sort(descending=True).values.tolist()


def test_long_values_are_shown_in_a_line() -> None:
    clip, data, clients = objects()
    method = Own(clip, generator=None)
    simulator = fp.Simulator(method, clip, clients, fp.TrainSettings(rounds=1, batch_size=16))
    rounds = list(fp.federate(method, simulator, clients=range(2), rounds=1, seed=1))
    space = fp.LabelSpace(tuple(f"class {number}" for number in range(1000)), attributes={"class 1": ("fur",) * 500})
    score = fp.evaluate(method, clip, data.examples(data.rows(split="test")), name="all")
    for shown in (space, rounds[0], rounds[0].updates[0], score, data.space):
        assert len(repr(shown)) < 300 and "\n" not in repr(shown) and "tensor(" not in repr(shown)
    assert "1,000 classes (class 0, class 1," in repr(space) and "scale [1]" in repr(rounds[0].updates[0])


def test_data_and_clients_are_shown_in_a_notebook() -> None:
    _, data, clients = objects()
    assert "<td>180</td>" in data._repr_html_() and "<img" in clients._repr_html_()
    odd = fp.load_dataset([(Image.new("RGB", (4, 4), (n, 0, 0)), name) for n, name in enumerate(["<b>", "<b>", "c"])])
    assert "&lt;b&gt;" in odd._repr_html_() and "<b>" not in odd._repr_html_()


def test_published_experiments_are_listed() -> None:
    table = fp.published()
    row = table.set_index("name").loc["fedmvp/base-to-new"]
    assert "fedmvp" in row["methods"] and row["runs"] > 0 and row["data_sets"] and row["settings"]


REPRODUCE = {
    "a name": (
        {"name": "fedmvp/base-to-nw", "settings": [1]},
        r"did you mean 'fedmvp/base-to-new'\?; list .*hed\(\)",
    ),
    "no root": ({"root": "/nowhere", "settings": {"train.round": 1}}, "/nowhere does not exist; give with `root` the"),
    "settings": ({"settings": [1], "callbacks": print}, r"`settings` is \[1\]; give a table of keys"),
    "seeds": ({"seeds": ["a"]}, "`seeds` is 'a'; give a whole number"),
    "callbacks": ({"root": "/nowhere", "callbacks": print}, "derived from fedprompt.Callback, not <built-in"),
}


@pytest.mark.parametrize("case", REPRODUCE)
def test_what_is_given_is_checked_before_what_it_leads_to(case: str, tmp_path: Path) -> None:
    given, said = REPRODUCE[case]
    with pytest.raises(fp.UserError, match=said) as error:
        options = {"name": "fedmvp/base-to-new", "root": tmp_path, "out": tmp_path / "out", **given}
        fp.reproduce(options.pop("name"), **options)
    assert "--" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("clip", [False, True])
def test_a_search_for_a_method_without_data_says_what_it_needs(clip: bool) -> None:
    with pytest.raises(fp.UserError, match=r"'promptfl' is a method\. tune takes a recipe, or a method with what"):
        fp.tune("promptfl", *objects()[: int(clip)])


def test_a_search_tries_the_default_rate_of_the_method() -> None:
    tuned = fp.tune("promptfl", *objects(), rounds=1, lr=0.002, progress=False)
    found = tuned.table
    assert found.loc[found["default"], "lr"].tolist() == [0.002] and len(found) == 8


def test_a_path_alone_is_answered_with_the_call_that_reads_it(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("image,labels\na.png,cat;dog\n", encoding="utf-8")
    with pytest.raises(fp.UserError, match="is a path; name its form too") as error:
        fp.load_dataset(table)
    assert str(error.value).endswith(f", as in load_dataset('label_table', path={str(table)!r}).")


def trained_on_all(kind: Kind) -> fp.Dataset:
    data = tiny_dataset(kind)
    return replace(data, base=(*data.base, *data.new), new=())


@pytest.mark.parametrize(("rule", "same"), [("iid", True), ("class_chunks", False)])
def test_two_columns_that_are_equal_by_construction_are_said_to_be(rule: str, same: bool) -> None:
    clip, data, _ = objects()
    clients = fp.partition(data, rule, **({} if same else {"classes_per_client": 4}))
    records = fp.train("zeroshot", clip, data, clients, progress=False).records
    assert ("Local" in dict(legend(records))) and ("equal by construction" in dict(legend(records))["Local"]) == same


def test_a_method_with_a_label_of_its_own_is_trained_beside_itself() -> None:
    clip, data, clients = objects()
    others = [{"name": "promptfl", "label": "p2"}, {"name": "promptfl", "label": "p3", "train": {"lr": 0.1}}]
    run = fp.train("promptfl", clip, data, clients, rounds=1, compare=others, progress=False)
    assert set(run.trials) == {"promptfl", "p2", "p3"} and run.adapter("p2").method == "promptfl"


def test_a_baseline_that_becomes_another_one_by_the_data_is_left_out_with_a_word(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip, data, clients = objects()
    plain = {"name": "zeroshot", "label": "plain", "template": data.space.template}
    run = fp.train("zeroshot", clip, data, clients, compare=[plain])
    assert list(run.trials) == ["zeroshot"]
    assert "plain is left out: on these data it is the same as zeroshot." in " ".join(capsys.readouterr().out.split())


def test_the_page_on_python_has_a_word_for_every_heading() -> None:
    page = (Path(__file__).parent.parent / "docs" / "api.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "`" in line]
    for name, title in TITLES.items():
        assert any(f"`{name}`" in row and title in row.split("|")[1] for row in rows), name
    for data in (tiny_dataset(), tiny_dataset("multi"), trained_on_all("single"), trained_on_all("multi")):
        for test_set in make_test_sets(data):
            assert any(f"`{test_set.split}`" in row for row in rows), test_set.split
    for name, title in MEASURES.items():
        assert re.search(rf"`{name}` \((?:in headings )?{title}\)", page), name


def test_a_figure_is_chosen_by_its_word_or_its_heading() -> None:
    clip, data, clients = objects()
    run = fp.train("promptfl", clip, data, clients, rounds=2, settings={"evaluate.every": 1}, progress=False)
    assert run.plot("Base").svg == run.plot("base").svg != run.plot("New").svg
    with pytest.raises(fp.UserError, match="has no column 'Bse'"):
        run.plot("Bse")


@pytest.mark.parametrize("words", ["[N, C]", "`Score`", "Raises UserError", "[0, 1]", "Everingham"])
def test_scoring_is_documented_with_shapes_units_errors_and_source(words: str) -> None:
    assert words in (fp.evaluate.__doc__ or "")


def test_a_class_name_that_the_backbone_does_not_read_to_the_end_is_warned_of(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, data, _ = objects()
    long, said = "cat " * 200, r"The backbone reads the first \d+ of the \d+ tokens of the text of the class 'cat cat"
    adapter, image = fp.read_run(folder).adapter(method=Own, clip=clip), data.source.open(0)
    with pytest.warns(UserWarning, match=said):
        adapter.predict(image, classes=["dog", long.strip()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter.predict(image, classes=["dog", "cat"])
    pairs = [(data.source.open(row), (long.strip(), "dog")[row % 2]) for row in range(16)]
    told = Told()
    named = fp.load_dataset(pairs)
    clients = fp.partition(named, "iid", clients=2)
    fp.train(Own, clip, named, clients, rounds=1, out=tmp_path / "run", callbacks=told, progress=False)
    assert len([one for one in told.warnings if re.match(said, one)]) == 1


class Told(fp.Callback):
    """Callbacks that keep the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def on_warning(self, text: str) -> None:
        self.warnings.append(text)


def test_trials_of_one_name_and_seed_with_different_figures_are_not_compared(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    log = other / "run.jsonl"
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if line["event"] == "score":
            line["figures"] = dict.fromkeys(line["figures"], 0.125)
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    with pytest.raises(fp.UserError, match=r"trial called 'Own' with different figures; give one of them a label"):
        fp.compare([folder, other])
