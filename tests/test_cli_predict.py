"""`fedprompt predict`: tables of paths, files of predictions, comparison with given labels, and the page."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from fedprompt.cli.main import app
from fedprompt.data.dataset import Dataset
from fedprompt.data.sources.image_folder import image_folder
from fedprompt.demo import LIMIT
from fedprompt.demo.emoji import emoji
from fedprompt.demo.scenes import scenes
from fedprompt.experiments import predict as prediction
from fedprompt.experiments.adapters import open_adapter
from fedprompt.experiments.sample_images import png
from fedprompt.records.adapter import save_adapter
from fedprompt.records.events import MistakesEvent, SampleEvent, TrialEvent
from fedprompt.records.reading import read_run
from fedprompt.report import predictions_page
from fedprompt.report.collapse import alike
from fedprompt.report.verdict import introduced
from fedprompt.text_files import json_text
from test_cli import TINY, call, output, sentence
from test_cli_check import distinct
from test_data_users_files import images as image_files

pytestmark = pytest.mark.usefixtures("kept_backbone")

QUICK = (
    "-s",
    "compare=[]",
    "-s",
    "train.rounds=1",
    "-s",
    "evaluate.local=false",
    "-s",
    "evaluate.samples=0",
    "--quiet",
)
MULTI = """
name = "multi"
seed = 3
[data]
source = "scenes"
train = 40
test = 10
[partition]
rule = "label_clusters"
[method]
name = "fedmpt"
rank = 2
[train]
batch_size = 8
lr = 0.01
"""


def trained(folder: Path, recipe: str) -> Path:
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    call("run", folder / "recipe.toml", *QUICK, "--out", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("single"), TINY)


@pytest.fixture(scope="module")
def multi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("multi"), MULTI)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return emoji(train=1, test=1)


@pytest.fixture
def images(dataset: Dataset, tmp_path: Path) -> Path:
    """Six images of base classes with a table of their labels."""
    rows = [row for row in range(len(dataset.source)) if int(dataset.targets[row]) in dataset.base][:60:10]
    (tmp_path / "images").mkdir()
    lines = ["image;label"]
    for number, row in enumerate(rows):
        dataset.source.open(row).save(tmp_path / "images" / f"{number}.png")
        lines.append(f"{number}.png;{dataset.space.names[int(dataset.targets[row])]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "images"


def pictures(said: str) -> list[str]:
    return [Path(one["image"]).name for one in json.loads(said)]


def test_a_table_of_paths_is_taken_as_its_images_in_its_order(run: Path, images: Path, tmp_path: Path) -> None:
    assert pictures(output("predict", run, tmp_path / "labels.csv", "--json")) == [f"{n}.png" for n in range(6)]
    listed = tmp_path / "some.parquet"
    pq.write_table(pa.table({"path": [str(images / "4.png"), "images/1.png"]}), listed)
    assert pictures(output("predict", run, listed, "--json")) == ["4.png", "1.png"]
    (tmp_path / "lines.jsonl").write_text('{"file": "images\\\\2.png"}\n', encoding="utf-8")
    assert pictures(output("predict", run, tmp_path / "lines.jsonl", "--json")) == ["2.png"]
    assert json.loads(output("predict", run, tmp_path / "lines.jsonl", "--json"))[0]["image"] == "images/2.png"


def test_a_class_name_that_is_too_long_for_the_backbone_is_warned_of_once(run: Path, images: Path) -> None:
    said = call("predict", run, images, "--classes", f"dog,{'cat ' * 200}", code=0)
    assert said.count("tokens of the text of the class 'cat cat") == 1
    assert "The backbone reads the first" not in call("predict", run, images, "--classes", "dog,cat", code=0)


def test_an_image_of_a_table_that_is_not_there_costs_itself_and_mistakes_of_a_table_are_named(
    run: Path, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "some.csv").write_text("image\nimages/1.png\nimages/gone.png\n", encoding="utf-8")
    said = call("predict", run, tmp_path / "some.csv", code=1)
    assert "1.png: " in said and f"{images / 'gone.png'} does not exist" in said
    assert "1 of 2 cannot be read" in said
    (tmp_path / "bad.csv").write_text("image,x\n,1\nimages/1.png,2\n,3\n", encoding="utf-8")
    assert "bad.csv has 2 mistakes" in call("predict", run, tmp_path / "bad.csv", code=2)
    (tmp_path / "other.csv").write_text("photo\n1.png\n", encoding="utf-8")
    assert "has no column 'image'" in sentence("predict", run, tmp_path / "other.csv")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    assert "cannot be read as Parquet" in sentence("predict", run, tmp_path / "torn.parquet")
    pq.write_table(pa.table({"image": [{"bytes": b"x"}]}), tmp_path / "bytes.parquet")
    assert "it holds a dict, not a path" in sentence("predict", run, tmp_path / "bytes.parquet")


def test_an_image_that_cannot_be_read_has_a_row_with_its_error_in_every_file_and_a_line_on_the_page(
    run: Path, images: Path, tmp_path: Path
) -> None:
    (images / "2.png").write_bytes(b"no image")
    files = {form: tmp_path / f"out.{form}" for form in ("csv", "parquet", "jsonl", "html")}
    options = [word for form, path in files.items() for word in (f"--{form}".replace("html", "page"), path)]
    said = call("predict", run, images, tmp_path / "gone.png", *options, code=1)
    assert f"Written: {files['csv']} (5 images and 2 with an error)" in said
    with files["csv"].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in files["jsonl"].read_text(encoding="utf-8").splitlines()]
    result = CliRunner().invoke(app, ["predict", str(run), str(images), str(tmp_path / "gone.png"), "--json"])
    shown = json.loads(result.stdout)
    read = pq.read_table(files["parquet"]).to_pylist()
    names = [f"images/{number}.png" for number in (0, 1, 3, 4, 5)]
    for found in (rows, lines, read, shown):
        assert [one["image"] for one in found] == [*names, f"{tmp_path.name}/gone.png", "images/2.png"]
        assert not any(one.get("error") for one in found[:5])
        assert "gone.png does not exist" in found[5]["error"] and "images/2.png is none of" in found[6]["error"]
        assert not any(one.get("predicted") or one.get("top") for one in found[5:])
    assert not any(str(tmp_path) in path.read_text("utf-8") for form, path in files.items() if form != "parquet")
    html = files["html"].read_text("utf-8")
    assert "for 5 of 7 images" in html and "2 could not be read." in html
    assert f'<span class="mono">{tmp_path.name}/gone.png</span>: {tmp_path.name}/gone.png does not exist' in html


def test_the_three_files_hold_the_same_predictions(run: Path, images: Path, tmp_path: Path) -> None:
    files = {form: tmp_path / f"out.{form}" for form in ("csv", "parquet", "jsonl")}
    options = [word for form, path in files.items() for word in (f"--{form}", path)]
    first, scope, *said = call("predict", run, images, "--classes", "dog, cat,tree", *options).splitlines()
    assert re.fullmatch(r"FedMVP, HM [\d.]+%, round 1 of 1\.|FedMVP, Base [\d.]+%, round 1 of 1\.", first)
    assert scope == "Figures of the run are of its own 120 classes and do not hold for a choice among others."
    assert said == [f"Written: {path} (6 images)" for path in files.values()]
    with files["csv"].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    read = pq.read_table(files["parquet"]).to_pylist()
    lines = [json.loads(line) for line in files["jsonl"].read_text(encoding="utf-8").splitlines()]
    shown = json.loads(output("predict", run, images, "--classes", "dog, cat,tree", "--json"))
    for row, other, line, one in zip(rows, read, lines, shown, strict=True):
        assert row["image"] == other["image"] == line["image"] == one["image"]
        assert row["predicted"] == other["predicted"] == line["predicted"] == one["top"][0][0]
        assert row["method"] == other["method"] == line["method"] == one["method"] == "fedmvp"
        values = {name: float(row[f"probability of {name}"]) for name in ("dog", "cat", "tree")}
        assert values == line["probabilities"] == {name: other[f"probability of {name}"] for name in values}
        assert sum(values.values()) == pytest.approx(1, abs=1e-5)
        assert float(row["probability"]) == other["probability"] == line["probability"] == max(values.values())


def test_a_spreadsheet_computes_nothing_in_the_csv_file(run: Path, images: Path, tmp_path: Path) -> None:
    words = ["predict", run, images, "--csv", tmp_path / "a.csv", "--jsonl", tmp_path / "a.jsonl"]
    said = call(*words, "--classes", "=1+cmd,@sum")
    cells = [row["predicted"] for row in csv.DictReader((tmp_path / "a.csv").read_text().splitlines())]
    assert set(cells) <= {"'=1+cmd", "'@sum"} and "an apostrophe stands before texts that begin with =" in said
    assert "'" not in (tmp_path / "a.jsonl").read_text()


def test_predictions_are_compared_with_given_labels(run: Path, dataset: Dataset, images: Path, tmp_path: Path) -> None:
    page, out = tmp_path / "page.html", tmp_path / "out.csv"
    base = ("--classes", ",".join(dataset.space.names[label] for label in dataset.base))  # few enough for a matrix
    (images / "extra.png").write_bytes((images / "0.png").read_bytes())
    said = call("predict", run, images, "--labels", tmp_path / "labels.csv", "--page", page, "--csv", out, *base)
    with out.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["truth"]]
    right = sum(row["predicted"] == row["truth"] for row in rows)
    assert len(rows) == 6 and f"Of 6 images with a given label: accuracy {100 * right / 6:.1f}%" in said
    assert "Images without a label in the table: 1." in said
    assert f"Written: {page} (7 images)" in said
    wrong = [row for row in rows if row["predicted"] != row["truth"]]
    absent = {row["predicted"] for row in rows} - {row["truth"] for row in rows}
    assert (
        "predicted that no image has; macro F1 counts each as 0.\n" in said if absent else "macro F1 counts" not in said
    )
    for row in wrong:
        assert f"1 image of {row['truth']} predicted as {row['predicted']}." in said
    html = page.read_text(encoding="utf-8")
    assert "Images with given labels: 6 images" in html and "Confusion matrix" in html
    shown = re.findall(r'<figure class="mistake"><img src="data:image/png;base64', html)
    assert len(shown) == len(wrong) and html.count('<p class="decided">') == 7
    assert "Predictions of FedMVP for 7 images" in html


def test_images_that_the_adapter_was_trained_on_are_counted_wherever_they_lie(tmp_path: Path) -> None:
    distinct(image_files(tmp_path / "mine", "cat", "dog", each=8))
    recipe = f'seed = 3\nname = "own"\n[data]\nsource = "image_folder"\npath = "{tmp_path / "mine"}"\n'
    run = trained(tmp_path, recipe + '[partition]\nrule = "iid"\nclients = 1\n[method]\nname = "promptfl"\n')
    data = image_folder(path=tmp_path / "mine", seed=3)
    for split, expected in (("train", True), ("test", False)):
        (tmp_path / split).mkdir()
        lines = ["image,label"]
        for row in data.rows(split=split).tolist()[:2]:
            copy = tmp_path / split / f"{row}{Path(data.source.describe(row)).suffix}"
            copy.write_bytes((tmp_path / "mine" / data.source.describe(row)).read_bytes())
            lines.append(f"{copy.name},{data.space.names[int(data.targets[row])]}")
        (tmp_path / f"{split}.csv").write_text("\n".join(lines), encoding="utf-8")
        given = ("--labels", tmp_path / f"{split}.csv", "--page", tmp_path / "page.html")
        said = call("predict", run, tmp_path / split, *given)
        caution = "2 of 2 images with a given label are training images of the adapter's own run, so these figures may "
        assert (caution in said) == expected
        assert (caution in unescape((tmp_path / "page.html").read_text(encoding="utf-8"))) == expected


def test_labels_that_do_not_fit_are_named_together(run: Path, images: Path, tmp_path: Path) -> None:
    table = tmp_path / "wrong.csv"
    table.write_text("image,label\nimages/0.png,horse\nimages/1.png,7\nimages/2.png,8\n", encoding="utf-8")
    said = call("predict", run, images, "--labels", table, code=2)
    assert "wrong.csv has 2 mistakes; correct these cells:" in said
    assert "line 3: the label is the number 7, and other labels are names" in said
    table.write_text("image,label\nimages/0.png,horse\nimages/0.png,cow\n", encoding="utf-8")
    assert "has another label in an earlier row" in sentence("predict", run, images, "--labels", table)
    table.write_text("image,label\nelsewhere.png,horse\n", encoding="utf-8")
    assert "has no label of an image that is predicted" in sentence("predict", run, images, "--labels", table)
    table.write_text("image,label\nimages/0.png,\n", encoding="utf-8")
    assert "has no label; add some" in sentence("predict", run, images, "--labels", table)
    assert "does not exist; give the path of a table" in sentence("predict", run, images, "--labels", "gone.csv")
    table.write_text("image,text\nimages/0.png,x\n", encoding="utf-8")
    said = sentence("predict", run, images, "--labels", table)
    assert "it has no column 'label'; name it so (found 'image', 'text'" in said and "--set" not in said


def test_an_image_whose_label_is_no_class_is_named_and_left_out_of_the_figures(
    run: Path, images: Path, tmp_path: Path
) -> None:
    table, out, page = tmp_path / "some.csv", tmp_path / "out.csv", tmp_path / "page.html"
    table.write_text("image,label\nimages/0.png,hrose\nimages/1.png,cow\nimages/2.png,zzz\n", encoding="utf-8")
    said = call("predict", run, images, "--labels", table, "--csv", out, "--page", page, code=1)
    left_out = (
        "2 images are left out of the figures, since the model has no class of their label: "
        "images/0.png ('hrose'; did you mean 'horse'?), images/2.png ('zzz')."
    )
    assert left_out in said and left_out in unescape(page.read_text("utf-8"))
    figures = "Of 1 image with a given label that is a class of the model (2 others with one that is none): accuracy "
    assert figures in said and "Images without a label in the table: 3." in said
    assert [row["truth"] for row in csv.DictReader(out.read_text().splitlines())] == ["hrose", "cow", "zzz", "", "", ""]
    table.write_text("image,label\nimages/0.png,hrose\n", encoding="utf-8")
    assert "There are no figures, since no image" in call("predict", run, images, "--labels", table, code=1)
    table.write_text("image,label\nimages/0.png,hrose\nimages/0.png,cow\n", encoding="utf-8")
    assert "has another label in an earlier row" in sentence("predict", run, images, "--labels", table)


def test_one_label_that_is_no_class_leaves_an_image_of_several_labels_out_of_the_figures(
    multi: Path, tmp_path: Path
) -> None:
    data, out = scenes(train=1, test=1, seed=3), tmp_path / "out.jsonl"
    for name in ("a", "b"):
        data.source.open(0).save(tmp_path / f"{name}.png")
    known = data.space.names[0]
    (tmp_path / "truth.csv").write_text(f"image,labels\na.png,{known};zzz\nb.png,{known}\n", encoding="utf-8")
    words = ("--labels", tmp_path / "truth.csv", "--jsonl", out)
    said = call("predict", multi, tmp_path / "a.png", tmp_path / "b.png", *words, code=1)
    assert "a.png ('zzz')." in said and "Of 1 image with a given label" in said
    assert [one["truth"] for one in map(json.loads, out.read_text("utf-8").splitlines())] == [[known, "zzz"], [known]]


def test_images_none_of_which_can_be_read_have_rows_with_their_errors(run: Path, multi: Path, tmp_path: Path) -> None:
    image, files = tmp_path / "notes.jpg", {form: tmp_path / f"out.{form}" for form in ("csv", "parquet", "jsonl")}
    image.write_text("no image", encoding="utf-8")
    (tmp_path / "labels.csv").write_text("image,label,labels\nnotes.jpg,cow,cow\n", encoding="utf-8")
    options = [word for form, path in files.items() for word in (f"--{form}", path)]
    for folder, cell in ((run, pa.string()), (multi, pa.list_(pa.string()))):
        page = tmp_path / "page.html"
        words = ("--labels", tmp_path / "labels.csv", "--page", page)
        said = call("predict", folder, image, *options, *words, code=1)
        assert "1 of 1 cannot be read:" in said and "(0 images and 1 with an error)" in said
        assert "There are no figures, since no image that can be read" in said
        read = pq.read_table(files["parquet"])
        assert read.schema.field("predicted").type == read.schema.field("truth").type == cell
        (row,) = csv.DictReader(files["csv"].read_text("utf-8").splitlines())
        (line,) = map(json.loads, files["jsonl"].read_text("utf-8").splitlines())
        for one in (row, line, *read.to_pylist()):
            assert "notes.jpg is none of" in one["error"] and not one["predicted"] and not one["truth"]
        assert "for 0 of 1 image</h1>" in page.read_text("utf-8")
        said = call("predict", folder, image, code=1)
        assert "1 of 1 cannot be read:" in said and "\n\n" not in said


def test_a_dash_writes_csv_or_json_lines_to_the_output_and_nothing_else(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["predict", str(run), "images", "--labels", "labels.csv"]
    for form in ("csv", "jsonl"):
        page = "page.html"
        result = CliRunner().invoke(app, [*words, f"--{form}", "-", "--page", page])
        assert result.exit_code == 0, result.output
        call(*words, f"--{form}", tmp_path / "file")
        assert result.stdout_bytes == (tmp_path / "file").read_bytes()
        assert "Of 6 images with a given label" in result.stderr and "right (precision)" in result.stderr
        assert "Written: page.html" in result.stderr and "Written: -" not in result.stderr
    for option in ("--parquet", "--page"):
        assert f"{option} - cannot be written to the output; give the path of a file." in sentence(*words, option, "-")
    said = sentence(*words, "--csv", "-", "--json")
    assert "--csv - and --json write to the same output; give all but one the path of a file." in said
    assert not (tmp_path / "-").exists()


def test_the_page_says_the_name_of_every_image_its_label_the_figures_the_model_and_the_run(
    run: Path, images: Path, tmp_path: Path
) -> None:
    page, table = tmp_path / "page.html", tmp_path / "some.csv"
    table.write_text("image,label\n/x/0.png,horse\n/x/1.png,cow\n", encoding="utf-8")
    said = call("predict", run, images, "--labels", table, "--page", page)
    html = unescape(page.read_text("utf-8"))
    cards = re.findall(r'<b title="images/(.*?)">images/<wbr>(.*?)</b><span class="lead">(.*?)</span>', html)
    below = ["true: horse", "true: cow", "", "", "", ""]
    assert cards == 2 * [(f"{number}.png", f"{number}.png", text) for number, text in enumerate(below)]  # maps too
    notes = re.findall(r"<p>(.*?)</p>", re.search(r'<div class="verdict">(.*?)</div>', html)[1])
    model, run_name, held, limit, figures = notes[:5]
    assert held == "The clients hold 60 training images of 60 classes." and limit == LIMIT
    assert re.fullmatch(r"FedMVP, (HM|Base) [\d.]+%, round 1 of 1\.", model) and model in said
    assert run_name == f"From the run run: {read_run(run).header.title}."
    assert re.fullmatch(r"Of 2 images with a given label: accuracy [\d.]+%, macro F1 [\d.]+%\.", figures)
    assert figures in said
    assert "Labels found by file name only, since the paths differ: 2." in notes
    assert "Images without a label in the table: 4." in notes
    assert str(tmp_path) not in html


def test_an_image_without_any_of_several_labels_is_known_to_have_none(multi: Path, tmp_path: Path) -> None:
    data = scenes(train=1, test=1, seed=3)
    data.source.open(0).save(tmp_path / "0.png")
    names = data.space.names
    (tmp_path / "truth.csv").write_text(f"image,{','.join(names)}\n0.png{',0' * len(names)}\n", encoding="utf-8")
    page = tmp_path / "page.html"
    call("predict", multi, tmp_path / "0.png", "--labels", tmp_path / "truth.csv", "--page", page)
    assert "true: none of the labels" in page.read_text("utf-8")


def test_probabilities_beside_a_threshold_have_its_decimals() -> None:
    top = [("near", 0.2667), ("there", 0.2702), ("far", 0.0002)]
    given = SampleEvent(trial="ours", sample="0", picture=png(Image.new("RGB", (8, 8))), top=top, decided=["there"])
    html = unescape(predictions_page(TrialEvent(trial="ours"), [given], total=1))
    assert re.findall(r"<b>([^<]*<?[^<]*%)</b>", html) == ["26.7%", "27.0%", "<0.1%"]


def test_labels_are_found_by_file_name_where_paths_differ(run: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "else.csv").write_text("image,label\n/data/3.png,horse\n/data/x/1.png,cow\n", encoding="utf-8")
    said = call("predict", run, images, "--labels", tmp_path / "else.csv")
    assert "Of 2 images with a given label" in said
    assert "Labels found by file name only, since the paths differ: 2." in said and "have their file name" not in said


def test_the_label_of_an_image_that_cannot_be_read_is_not_another_images(
    run: Path, images: Path, tmp_path: Path
) -> None:
    (images / "2.png").write_bytes(b"no image")
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["image,label", *(f"images/{number}.png,horse" for number in range(6))]))
    said = call("predict", run, images, "--labels", table, code=1)
    assert "Of 5 images with a given label" in said and "Labels of other images" not in said
    table.write_text(f"{table.read_text()}\ngone.png,horse")
    assert "Labels of other images in the table: 1." in call("predict", run, images, "--labels", table, code=1)


def test_a_file_name_that_is_not_unique_gives_no_image_a_label_and_is_counted(
    run: Path, images: Path, tmp_path: Path
) -> None:
    table = tmp_path / "else.csv"
    table.write_text("image,label\n/a/3.png,horse\n/b/3.png,cow\nimages/1.png,cow\n/c/1.png,cow\n", encoding="utf-8")
    said = call("predict", run, images, "--labels", table)
    assert "Of 1 image with a given label" in said and "by file name only" not in said
    assert "Images without a label since several rows or images have their file name: 1;" in said
    table.write_text("image,label\n/a/3.png,horse\n/b/3.png,cow\n", encoding="utf-8")
    assert "The names of 1 image are in it, but several rows" in sentence("predict", run, images, "--labels", table)


@pytest.mark.parametrize("form", ["labels", "columns"])
def test_several_labels_per_image_are_decided_and_compared(multi: Path, tmp_path: Path, form: str) -> None:
    data = scenes(train=1, test=4, seed=3)
    rows = [row for row, split in enumerate(data.splits) if split != "train"][:4]
    for number, row in enumerate(rows):
        data.source.open(row).save(tmp_path / f"{number}.png")
    true = [[data.space.names[label] for label in (data.targets[row] == 1).nonzero().flatten()] for row in rows]
    if form == "labels":
        lines = ["image\tlabels", *(f"{number}.png\t{'; '.join(own)}" for number, own in enumerate(true))]
    else:
        names = data.space.names
        marks = ["\t".join(str(int(name in own)) for name in names) for own in true]
        lines = ["\t".join(["image", *names]), *(f"{number}.png\t{own}" for number, own in enumerate(marks))]
    (tmp_path / "truth.tsv").write_text("\n".join(lines), encoding="utf-8")
    out, page = tmp_path / "out.jsonl", tmp_path / "page.html"
    words = ("--labels", tmp_path / "truth.tsv", "--jsonl", out, "--page", page)
    said = call("predict", multi, *(tmp_path / f"{number}.png" for number in range(4)), *words)
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [one["truth"] for one in found] == true
    assert re.search(r"Of 4 images with a given label: mAP [\d.]+%, CF1 [\d.]+%, OF1 [\d.]+%\.", said)
    hits = sum(len({*one["truth"]} & {*one["predicted"]}) for one in found)
    total = sum(len(one["truth"]) + len(one["predicted"]) for one in found)
    assert f"OF1 {100 * 2 * hits / total:.1f}%" in said
    for one in found:
        assert one["predicted"] == [name for name, value in one["probabilities"].items() if value >= one["threshold"]]
    html = page.read_text(encoding="utf-8")
    assert html.count('<p class="decided">') == 4 and "Confusion matrix" not in html and "(recall)" in html


def test_figures_and_decisions_of_several_labels_have_the_adapters_own_thresholds(multi: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(multi / "adapters" / "fedmpt", folder)
    card = json.loads((folder / "adapter_config.json").read_text())
    card["thresholds"] = [0.0] * len(card["class_names"])  # everything is present
    (folder / "adapter_config.json").write_text(json.dumps(card))
    data = scenes(train=1, test=4, seed=3)
    row = next(row for row, split in enumerate(data.splits) if split != "train")
    data.source.open(row).save(tmp_path / "0.png")
    true = [data.space.names[label] for label in (data.targets[row] == 1).nonzero().flatten()]
    (tmp_path / "truth.csv").write_text(f"image,labels\n0.png,{';'.join(true)}\n")
    said = call("predict", folder, tmp_path / "0.png", "--labels", tmp_path / "truth.csv")
    count, classes = len(true), len(card["class_names"])
    assert f"OF1 {100 * 2 * count / (count + classes):.1f}%" in said
    assert f"FedMPT, from the adapter {folder}." in said


def test_the_threshold_from_which_labels_are_present_is_said_and_in_the_files(multi: Path, tmp_path: Path) -> None:
    folder, out, page = tmp_path / "adapter", tmp_path / "out.csv", tmp_path / "page.html"
    shutil.copytree(multi / "adapters" / "fedmpt", folder)
    card = json.loads((folder / "adapter_config.json").read_text())
    names = card["class_names"]
    card["thresholds"] = [0.193] * len(names)
    (folder / "adapter_config.json").write_text(json.dumps(card))
    scenes(train=1, test=1, seed=3).source.open(0).save(tmp_path / "0.png")
    sentence = "A label counts as present from 19.3%, fitted on training images"
    words = ("predict", folder, tmp_path / "0.png", "--page", page)
    assert f"{sentence}.\n" in call(*words, "--csv", out)
    assert [row["threshold"] for row in csv.DictReader(out.read_text().splitlines())] == ["0.193"]
    assert f"{sentence}." in page.read_text("utf-8")
    assert f"{sentence}." in call(*words, "--classes", ",".join(reversed(names))), "the same classes in another order"


def test_a_threshold_holds_among_other_classes_where_the_probabilities_of_its_labels_stay_the_same(
    multi: Path, tmp_path: Path
) -> None:
    scenes(train=1, test=1, seed=3).source.open(0).save(tmp_path / "0.png")
    out, page = tmp_path / "out.csv", tmp_path / "page.html"
    trained = open_adapter(multi)
    (first, *_), count = trained.card.class_names, len(trained.card.class_names)
    card = replace(trained.card, thresholds=(0.193,) * count)
    tensors = load_file(trained.folder / "adapter_model.safetensors")
    save_adapter(tmp_path / "fedmpt", card, tensors, space=trained.space, files={})
    untrained = replace(card, method="zeroshot", params={})
    save_adapter(tmp_path / "zeroshot", untrained, {}, space=trained.space, files={})
    words = (tmp_path / "0.png", "--classes", f"{first},robot")
    cards = {name: ("predict", tmp_path / name, *words) for name in ("fedmpt", "zeroshot")}
    said = call(*cards["zeroshot"], "--csv", out)  # a sigmoid per class
    assert "present from 19.3%, fitted on training images; 1 label without a fitted threshold from 50.0%." in said
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert (row[f"threshold of {first}"], row["threshold of robot"]) == ("0.193", "0.5") and "threshold" not in row
    (shown,) = json.loads(output(*cards["zeroshot"], "--json"))
    assert shown["threshold"] == {first: 0.193, "robot": 0.5}
    sentence = (  # shares among the candidates
        "A label counts as present from 50.0%; the threshold that was fitted on training images, 19.3%, is one among "
        f"the {count} classes of the adapter, and with other classes these probabilities change."
    )
    assert sentence in call(*cards["fedmpt"], "--csv", out, "--page", page)
    assert sentence in page.read_text("utf-8")
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert row["threshold"] == "0.5"
    present = [name for name in (first, "robot") if float(row[f"probability of {name}"]) >= 0.5]
    assert row["predicted"] == "; ".join(present)


def test_one_class_alone_is_said_to_be_certain_of_every_image(run: Path, images: Path, tmp_path: Path) -> None:
    sentence = "The only class is 'dog', so every image has it with 100%; give two classes at least."
    assert sentence in call("predict", run, images, "--classes", "dog", "--page", tmp_path / "page.html")
    assert sentence in unescape((tmp_path / "page.html").read_text("utf-8"))


def test_predict_names_another_method_that_scored_surely_higher(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").write_text(
        "".join(
            json_text(event) + "\n"
            for event in (
                {"event": "header", "main": "ours", "splits": {"base": "all classes"}},
                *({"event": "trial", "trial": name, "trainable": 5, "rounds": 1} for name in ("ours", "rival")),
                {"event": "round", "trial": "ours", "round": 1, "clients": [0]},
                {"event": "budget", "name": "ours", "rounds": 1, "wanted": 30, "needed": 9.0}
                | {"seconds": 1.0, "first_round": 1.0, "round": 1.0, "scoring": 1.0},
                *(
                    {"event": "score", "trial": name, "round": 1, "split": "base", "figures": {"accuracy": value}}
                    for name, value in (("ours", 0.069), ("rival", 0.333))
                ),
                {"event": "interval", "trial": "ours", "column": "base", "against": "rival"}
                | {"value": -0.264, "low": -0.35, "high": -0.18},
            )
        )
    )
    found = read_run(tmp_path)
    assert list(introduced(found, found.trials[-1])) == [
        "ours, Base 6.9%, round 1 of 30.",
        "rival scored higher, 33.3%: predict with --trial rival.",
    ]
    assert list(introduced(found, found.trials[0])) == ["rival, Base 33.3%."]


def test_many_images_with_the_same_labels_are_said() -> None:
    same = [("dark", "living thing")] * 25
    assert "25 of 30 images are predicted as dark and living thing." in alike([*same, *[("car",)] * 5])
    assert not alike(same[:10]) and not alike([*same[:15], *[("car",)] * 15])


def test_a_long_page_shows_the_first_images_and_says_so(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "PAGE_IMAGES", 4)
    page = tmp_path / "page.html"
    said = call("predict", run, images, "--page", page)
    assert f"Written: {page} (the first 4 of 6 images)" in said
    html = page.read_text(encoding="utf-8")
    assert "The first 4 are shown." in html and html.count('<p class="decided">') == 4


def test_outputs_that_cannot_be_written_are_refused_before_anything_is_opened(tmp_path: Path) -> None:
    gone = tmp_path / "no run"
    for option in ("--csv", "--parquet", "--jsonl", "--page"):
        said = sentence("predict", gone, "x.png", option, tmp_path)
        assert f"{option} {tmp_path} cannot be written: it is a folder" in said
        assert "Nothing can be written to /proc" in sentence("predict", gone, "x.png", option, "/proc/out")


def test_json_on_the_output_stays_json_beside_other_outputs(run: Path, images: Path, tmp_path: Path) -> None:
    words = ["predict", run, images, "--json", "--csv", tmp_path / "a.csv", "--labels", tmp_path / "labels.csv"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0 and len(json.loads(result.stdout)) == 6 and "Written: " in result.stderr
    assert all("truth" in one for one in json.loads(result.stdout))


def test_batches_do_not_show_in_the_result(run: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = json.loads(output("predict", run, images, "--json"))
    monkeypatch.setattr(prediction, "BATCH", 2)
    parts = json.loads(output("predict", run, images, "--json"))
    for one, other in zip(whole, parts, strict=True):
        assert one["image"] == other["image"] and one["top"][0][0] == other["top"][0][0]
        assert one["top"][0][1] == pytest.approx(other["top"][0][1], abs=1e-5)


def start(words: list[str], *, stdout: int | None, redirect: str = "") -> subprocess.CompletedProcess[str]:
    line = f'"{sys.executable}" -m fedprompt {" ".join(words)} {redirect}'
    return subprocess.run(["sh", "-c", line], stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=300)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="other systems have no full device")
@pytest.mark.parametrize("words", [["config", "list"], ["--help"], ["config", "show", "demo"]])
def test_a_full_device_gets_a_sentence_and_an_exit_code(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = start(words, stdout=full.fileno())
    assert done.returncode == 2
    assert done.stderr == "The output cannot be written (No space left on device); send it to another place.\n"
    silent = start(words, stdout=None, redirect=">/dev/full 2>/dev/full")
    assert silent.returncode == 2


@pytest.mark.skipif(os.name != "posix", reason="redirections of a shell")
@pytest.mark.parametrize("redirect", ["<&-", ">&-", "2>&-", "| head -n 1"])
def test_closed_streams_are_no_error(redirect: str) -> None:
    done = start(["config", "list"], stdout=subprocess.PIPE, redirect=redirect)
    assert done.returncode == 0 and done.stderr == ""


def test_wrong_labels_and_missed_ones_are_shown_apart() -> None:
    worst = [
        {"name": name, "truth": truth, "predicted": ["car"], "wrong": wrong, "probability": value}
        for name, truth, wrong, value in (("a", ["fish"], "car", 0.9), ("b", ["fish", "car"], "fish", 0.0))
    ]
    event = MistakesEvent(trial="ours", split="test", images=2, worst=worst)
    html = predictions_page(TrialEvent(trial="ours"), [], mistakes=[event], total=2)
    wrong, missed = html.index("Predicted labels that are wrong"), html.index("True labels that were missed")
    assert wrong < html.index("<span>car 90.0%</span>") < missed < html.index("<span>fish 0.0%</span>")
    alone = predictions_page(
        TrialEvent(trial="ours"), [], mistakes=[event.model_copy(update={"worst": event.worst[:1]})], total=2
    )
    assert "Predicted labels that are wrong" in alone and "were missed" not in alone


def test_a_run_records_the_mistakes_of_its_main_method_with_its_report(run: Path) -> None:
    events = [json.loads(line) for line in (run / "run.jsonl").read_text(encoding="utf-8").splitlines()]
    mistakes = [event for event in events if event["event"] == "mistakes"]
    scores = {event["split"]: event for event in events if event["event"] == "score"}
    assert {event["trial"] for event in mistakes} == {"fedmvp"}
    assert [event["split"] for event in mistakes] == list(dict.fromkeys(scores))
    for event in mistakes[:2]:
        right = sum(one["right"] for one in event["classes"])
        assert right == sum(event["counts"][label][label] for label in range(len(event["counts"])))
        assert right / event["images"] == pytest.approx(scores[event["split"]]["figures"]["accuracy"])
        assert sum(map(sum, event["counts"])) == event["images"]
        assert all(one["picture"] == "" for one in event["worst"])  # evaluate.samples = 0
        assert [one["probability"] for one in event["worst"]] == sorted(
            (one["probability"] for one in event["worst"]), reverse=True
        )
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "Mistakes of FedMVP" in html and "Decisions per class" in html


def test_the_model_card_counts_the_classes_that_each_client_has_images_of(run: Path, multi: Path) -> None:
    fewer = 0
    for folder in (run, multi):
        held = read_run(folder).header.partition
        assert held is not None
        for client, (name, counts) in enumerate(zip(held.clients, held.counts, strict=True)):
            own = sum(count > 0 for count in counts)
            fewer += own < len(held.classes)
            line = f"| {name} | {own} | {held.images(client)} |"
            assert all(line in card.read_text(encoding="utf-8") for card in (folder / "adapters").glob("*/README.md"))
    assert fewer
