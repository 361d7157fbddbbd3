"""What a new user types first: data in place of a recipe, wrong arguments, folders that are not there; and doctor."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedprompt import methods
from fedprompt.cli import doctor
from fedprompt.config.block_files import written_block_options
from fedprompt.config.blocks import option_parameters
from fedprompt.config.method_files import method_files, written_options
from fedprompt.config.registry import PARTITION_RULES, SOURCES
from fedprompt.data.dataset import Examples
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.experiments.sample_images import draw_samples
from fedprompt.experiments.test_sets import TestSet
from fedprompt.text_files import data_setting
from test_cli import call, sentence
from test_cli_check import distinct
from test_data_users_files import images
from toy_datasets import Blank

REFUSED = {
    ("predict", "gone", "x.jpg"): "The folder gone does not exist; give the folder of a run or of an adapter.",
    ("predict", ".", "gone.jpg", "gone2.jpg"): "gone2.jpg does not exist; give an image, a folder of images",
    ("predict", ".", "a.csv", "--labels", "gone.csv"): "gone.csv does not exist; give the path of a table.",
    (
        "predict",
        ".",
        "a.csv",
        "--csv",
        "nope/out.csv",
    ): "--csv nope/out.csv cannot be written: the folder nope does not",
    ("check", "gone"): "There is no recipe, folder or table 'gone'; correct the path.",
    ("resume", "gone"): "The folder gone does not exist; give the folder of a run.",
    ("report", "gone"): "The folder gone does not exist; give the folder of a run.",
    ("run", "photos"): "photos is a folder, not a recipe. To train on its images: fedprompt run own_folder --set "
    "data.path=photos (fedprompt check photos says",
    (
        "run",
        "a.csv",
    ): "a.csv is a table, not a recipe. To train on its images: fedprompt run own_table --set data.path=a",
    ("run", "b.csv"): "fedprompt run own_folder --set data.source=class_table --set data.path=b.csv (fedprompt check",
    ("tune", "photos"): "fedprompt run own_folder --set data.path=photos",
    ("run", "demo", "--set", "method.name=fedvtp"): "There is no method 'fedvtp'; did you mean 'fedvpt'? (known:",
    (
        "run",
        "demo",
        "--set",
        "method.promtps=4",
    ): "demo.toml: [method] fedmvp has no option 'promtps' (its options: n_tok",
    (
        "run",
        "own_folder",
        "--set",
        "data.path=/gone/photos",
    ): "/gone/photos does not exist; give the path of your images with --set data.path=PATH.",
    **{
        (
            command,
            "own_folder",
            "--set",
            "data.path=/gone/photos",
        ): "/gone/photos does not exist; give the path of your images with --set data.path=PATH."
        for command in ("check", "partition", "tune")
    },
    ("run", "own_folder", "--set", "method.name=promptfl", "--set", "method.n_ctz=4"): "has no option 'n_ctz'; did you",
    ("check", "own_folder", "--set", "data.pathh=x"): "image_folder has no option 'pathh'; did you mean 'path'?",
    ("tune", "own_folder", "--set", "partition.alfa=1"): "has no option 'alfa'; did you mean 'alpha'?",
}
PROGRAM = """
import json, sys
from fedprompt.cli.main import app
for words in json.loads(sys.argv[1]):
    print("#", file=sys.stderr)
    try:
        app(words)
    except SystemExit as end:
        print(end.code, sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))
"""


def test_wrong_arguments_are_refused_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "a.csv").write_text("image\nx.jpg\n")
    (tmp_path / "b.csv").write_text("Image,Label\nx.jpg,cat\n")
    words = [sys.executable, "-c", PROGRAM, json.dumps(list(REFUSED))]
    done = subprocess.run(words, cwd=tmp_path, text=True, capture_output=True)
    assert done.stdout.splitlines() == ["2 []"] * len(REFUSED), done.stderr
    for (command, expected), said in zip(REFUSED.items(), done.stderr.split("#\n")[1:], strict=True):
        assert expected in said, (command, said)
    assert not (tmp_path / "nope").exists()


def test_a_table_for_a_folder_or_a_folder_for_a_table_is_named_with_the_command_that_reads_it(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    images(pictures / "beside", "cat", each=1)
    several, one = tmp_path / "several.csv", tmp_path / "one.tsv"
    several.write_text("image,labels\nx.jpg,cat\n")
    one.write_text("image\tlabel\nx.jpg\tcat\n")
    (tmp_path / "hub.parquet").write_bytes(b"PAR1")

    def refusal(recipe: str, path: Path) -> str:
        return sentence("partition", recipe, "-s", f'data.path="{path}"')

    assert f"fedprompt run own_table {data_setting('path', str(several))}, with your other options." in refusal(
        "own_folder", several
    )
    found = refusal("own_folder", one)
    assert f"own_folder --set data.source=class_table {data_setting('path', str(one))}, with" in found
    assert ".parquet files are not read by their path" in refusal("own_folder", tmp_path / "hub.parquet")
    assert f"fedprompt run own_folder {data_setting('path', str(pictures))}, with" in refusal("own_table", pictures)
    one.unlink()
    assert f"fedprompt run own_table {data_setting('path', str(several))}, with your other options." in refusal(
        "own_table", tmp_path
    )


def test_options_that_files_tell_are_those_of_the_constructors() -> None:
    assert tuple(method_files()) == methods.names()
    told = {name: known for name in methods.names() if (known := written_options(name)) is not None}
    assert len(told) > len(methods.names()) / 2
    for name, known in told.items():
        assert known == tuple(methods.options(methods.load(name))), name
    for registry in (SOURCES, PARTITION_RULES):
        known_options = {name: tuple(option_parameters(builder)) for name, builder in registry.builders.items()}
        assert written_block_options(registry) == known_options


@pytest.mark.parametrize(("table", "wanted"), [(False, "own_folder"), (True, "own_table")])
def test_check_ends_with_the_command_that_trains_on_what_it_has_read(tmp_path: Path, table: bool, wanted: str) -> None:
    distinct(images(tmp_path / "my photos", "cat", "dog", each=4))
    place = tmp_path / "my photos"
    if table:
        place = place / "labels.csv"
        rows = [f"{name}/{number}.jpg,{name}" for name in ("cat", "dog") for number in range(4)]
        place.write_text("\n".join(["image,labels", *rows]))
    said = call("check", place).splitlines()[-1]
    words = shlex.split(said.removeprefix("Train on them: "))
    assert words[:4] == ["fedprompt", "run", wanted, "--set"] and len(words) == 5
    assert f"{wanted}.toml is valid" in call("config", "validate", *words[2:])
    assert str(place) in call("config", "show", *words[2:])


def test_a_folder_of_images_that_is_not_there_is_named_with_its_key(tmp_path: Path) -> None:
    said = call("check", "own_folder", "--set", f"data.path={tmp_path / 'gone'}", code=2)
    assert f"{tmp_path / 'gone'} does not exist; give the path of your images with --set data.path=PATH." in said
    said = call("check", "own_table", "--set", f"data.path={tmp_path / 'gone.csv'}", code=2)
    assert "gone.csv does not exist; give the path of your images with --set data.path=PATH." in said


def test_doctor_lists_the_trials_that_will_run(tmp_path: Path) -> None:
    distinct(images(tmp_path, "cat", "dog", each=4))
    own = ("-s", f"data.path={tmp_path}", "-s", "backbone.path=demo", "--out", tmp_path / "runs")
    said = call("doctor", "own_folder", *own)
    assert "zeroshot-plain" not in said and "No image was opened" in said
    assert "zeroshot-plain" in call("doctor", "own_folder", *own, "-s", "data.template=a drawing of a {}.")


@pytest.mark.parametrize(("load", "status"), [(0.1, "ok"), (1e4, "WARNING")])
def test_doctor_warns_of_more_work_than_cores(load: float, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (load, load, load))
    line = next(line for line in call("doctor").splitlines() if "load" in line and "cores" in line)
    assert status in line


def toy_set(split: str, name: str, source: Blank, rows: range) -> TestSet:
    targets = torch.zeros(len(rows), dtype=torch.int64)
    return TestSet(split, name, "", Examples(Images(source, tuple(rows)), targets, LabelSpace(("cat",))))


@pytest.mark.parametrize("seed", range(20))
def test_no_image_is_a_sample_twice(seed: int) -> None:
    source = Blank(12)
    sets = (
        toy_set("base", "a", source, range(2)),
        toy_set("base", "b", source, range(2, 5)),
        toy_set("new", "c", source, range(4, 9)),
    )
    for count in (4, 8, 50):
        drawn = draw_samples(sets, count=count, seed=seed)
        rows = [one.examples.images.rows[position] for one, position in drawn]
        assert len(rows) == len(set(rows)) and len(rows) >= min(count, 8)
    assert len(draw_samples(sets, count=50, seed=seed)) == 9
    other = replace(sets[0], examples=replace(sets[0].examples, images=Images(Blank(12), (0, 1))))
    assert len(draw_samples((sets[0], other), count=9, seed=seed)) == 4  # row 0 of another data set is another image
