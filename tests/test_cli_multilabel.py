"""Multi-label data end to end: a table from check to predictions, and invalid files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fedprompt.data.annotation import draw_missing
from fedprompt.demo.scenes import scenes
from fedprompt.records.adapter import load_adapter
from fedprompt.records.checkpoints import load_tensors
from test_cli import assert_fits_schema, call, output, sentence

pytestmark = pytest.mark.usefixtures("kept_backbone")

SMALL = ("-s", "backbone.path=demo", "-s", "train.rounds=1", "-s", "evaluate.every=0", "-s", "compare=[]", "-q")


def own_table(folder: Path, *, kind: str = "columns") -> Path:
    """Twenty scenes as files with a table; one image shows nothing, of one nothing is known."""
    data = scenes(seed=5, train=4, test=1)
    rows, names = range(20), data.space.names
    (folder / "images").mkdir(parents=True)
    for row in rows:
        data.source.open(row).save(folder / "images" / f"{row}.png")
    marks = [["1" if label == 1 else "0" for label in data.targets[row].tolist()] for row in rows]
    marks[3], marks[7] = ["0"] * len(names), [""] * len(names)
    if kind == "columns":
        lines = [",".join(("image", *names)), *(",".join((f"{row}.png", *marks[row])) for row in rows)]
    else:
        shown = [[name for name, mark in zip(names, marks[row], strict=True) if mark == "1"] for row in rows]
        lines = [json.dumps({"image": f"{row}.png", "labels": labels}) for row, labels in zip(rows, shown, strict=True)]
    table = folder / ("labels.csv" if kind == "columns" else "labels.jsonl")
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def settings(table: Path, *more: str) -> tuple[str, ...]:
    pairs = (f"data.path={table}", f"data.images={table.parent / 'images'}", *more)
    return tuple(word for pair in pairs for word in ("-s", pair))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    more = (
        "evaluate.held_out=0.3",
        "annotation.missing=0.2",
        "annotation.form=unknown",
        "partition.rule=label_clusters",
        "partition.heterogeneity=0.1",
    )
    call("run", "own_table", *settings(own_table(folder), *more), *SMALL, "--out", folder / "run")
    return folder


def test_a_table_is_checked_and_partitioned(finished: Path) -> None:
    own = settings(finished / "labels.csv")
    said = call("check", "own_table", *own, code=2)
    assert "1 image has no known label, for example 7.png" in said
    assert "all 2" in call("partition", "own_table", *own)


def test_every_line_of_a_run_with_many_labels_fits_the_schema(finished: Path) -> None:
    assert_fits_schema(finished / "run")


def test_a_run_on_a_table_writes_all_its_files(finished: Path) -> None:
    run = finished / "run"
    assert "Labels under conditions" in (run / "report.html").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in (run / "run.jsonl").read_text(encoding="utf-8").splitlines()]
    score = next(line for line in lines if line["event"] == "score" and line["split"] == "test")
    assert {"mean_average_precision", "cf1_macro", "cf1_hm", "of1", "of1_tuned", "top3_of1"} <= score["figures"].keys()
    assert not any(key.endswith("_oracle") for key in score["figures"]), "an oracle speaks only when asked"
    hidden = load_tensors(run / "annotation.safetensors")[0]["hidden"]
    assert hidden.any() and hidden.shape[0] == 20
    card = load_adapter(run / "adapters" / "fedmpt").card
    assert card.thresholds and len(set(card.thresholds)) == 1 and 0 < card.thresholds[0] < 1


def test_a_threshold_for_own_images_is_fitted_on_more_than_a_few_held_out_ones(finished: Path) -> None:
    header = json.loads((finished / "run" / "run.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert header["recipe"]["evaluate"]["threshold"] == "near_count"
    held, trained = map(int, re.findall(r"\d+", header["threshold"]))
    assert held < 7 and held + trained == sum(header["partition"]["sizes"])
    assert header["threshold"] in header["protocol"]


def test_predictions_name_the_labels_present_and_their_regions(finished: Path, tmp_path: Path) -> None:
    images = [finished / "images" / f"{row}.png" for row in (0, 9)]
    found = json.loads(output("predict", finished / "run", *images, "--json"))
    said = call("predict", finished / "run", *images, "--page", tmp_path / "seen.html")
    assert said.endswith(f"Written: {tmp_path / 'seen.html'} (2 images)\n")
    card = load_adapter(finished / "run" / "adapters" / "fedmpt").card
    for one in found:
        top = dict(one["top"])
        assert all((name in one["present"]) == (probability >= card.thresholds[0]) for name, probability in top.items())
    page = (tmp_path / "seen.html").read_text(encoding="utf-8")
    assert page.count("<article") == 2 * 2 and "Labels under conditions" in page
    assert " -> " in call("predict", finished / "run", images[0], "--classes", "car,horse,boat")


def test_the_same_labels_as_a_list_of_names(tmp_path: Path) -> None:
    assert "all 2" in call("partition", "own_table", *settings(own_table(tmp_path, kind="list")))


@pytest.mark.parametrize("rule", ["'label_clusters',heterogeneity=0.01", "'iid',clients=1"])
def test_one_client_and_labels_that_it_never_sees(finished: Path, rule: str, tmp_path: Path) -> None:
    own = settings(finished / "labels.csv", f"partition={{rule={rule}}}")
    call("run", "own_table", *own, *SMALL, "--out", tmp_path / "run")
    assert (tmp_path / "run" / "adapters" / "fedmpt" / "adapter_config.json").exists()


def test_one_class_needs_another_evidence_option(finished: Path, tmp_path: Path) -> None:
    table = finished / "one.csv"
    rows = [f"{row}.png,{int(row < 2)},{'train' if row < 4 else 'test'}\n" for row in range(6)]
    table.write_text("image,car,split\n" + "".join(rows), encoding="utf-8")
    own = settings(table, "partition={rule='iid',clients=1}")
    assert 'set method.evidence = "similarity"' in sentence("run", "own_table", *own, *SMALL, "--out", tmp_path / "a")
    said = call("run", "own_table", *own, "-s", "method.evidence=similarity", *SMALL, "--out", tmp_path / "b", code=1)
    assert "Nothing is measured: no test set has a label that is known and positive" in said


def test_invalid_files_are_named_before_anything_is_written(finished: Path, tmp_path: Path) -> None:
    table = finished / "wrong.csv"
    for text, words in (("image,car,car\n", "'car' stands 2 times"), ("image,car\n0.png,2\n", "line 2, column 'car'")):
        table.write_text(text, encoding="utf-8")
        assert words in sentence("run", "own_table", *settings(table), *SMALL, "--out", tmp_path / "run")
    conditions = tmp_path / "conditions.json"
    conditions.write_text('{"fedprompt_descriptions": 1, "conditions": ["light", ""]}', encoding="utf-8")
    own = settings(finished / "labels.csv", f"descriptions.conditions={conditions}")
    assert "wrong at conditions.1" in sentence("run", "own_table", *own, *SMALL, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_labels_are_the_same_for_every_trial_and_again() -> None:
    data = scenes(seed=5, train=4, test=1)
    first, second = (draw_missing(data, form="drop_positive", rate=0.5, seed=3) for _ in range(2))
    assert first.equal(second)


def test_the_multi_label_demo_is_a_valid_recipe() -> None:
    assert "multilabel.toml is valid: fedmpt, zeroshot" in call("config", "validate", "multilabel")
