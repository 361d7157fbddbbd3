"""Comparisons: a table over seeds from small runs, in every form, and the choice that a grid makes."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from statistics import fmean, stdev

import pytest
from typer.testing import CliRunner

from fedprompt.build.experiment import make_trials
from fedprompt.cli import app
from fedprompt.config import find_recipe, load_recipe, parse_recipe
from fedprompt.errors import UserError
from fedprompt.report import read_run
from fedprompt.report.comparison import chosen, comparison, latex, markdown, uploaded
from test_sharing import RECIPE

TINY = (
    RECIPE.replace('name = "ends"', 'name = "few"')
    .replace("rounds = 2", "rounds = 1")
    .replace("train = 1\n", "train = 1\nseed = 0\n")
)


def call(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    (folder / "few.toml").write_text(TINY, encoding="utf-8")
    call("compare", folder / "few.toml", "--seeds", "1,2", "--out", folder / "out", *memory(folder))
    return folder


def memory(folder: Path) -> tuple[str, str]:
    """Both seeds see the same pictures, which are read once."""
    return "--set", f"backbone.disk={folder / 'features'}"


def test_every_number_is_in_the_csv_and_their_means_in_the_table(folder: Path) -> None:
    lines = list(csv.DictReader(io.StringIO((folder / "out" / "few.csv").read_text())))
    table = (folder / "out" / "few.md").read_text(encoding="utf-8")
    for name in ("alone", "together"):
        values = [100 * float(line["value"]) for line in lines if line["method"] == name and line["column"] == "new"]
        assert len(values) == 2
        assert f"{fmean(values):.1f} ± {stdev(values):.1f}" in table
    main, other = (
        [float(line["value"]) for line in lines if line["method"] == name and line["column"] == "hm"]
        for name in ("promptfl", "alone")
    )
    ahead = [100 * (ours - theirs) for ours, theirs in zip(other, main, strict=True)]
    row = next(line for line in table.splitlines() if line.startswith("| alone"))
    assert f"{fmean(ahead):+.1f} ± {stdev(ahead):.1f}" in row


def test_the_best_of_a_column_is_bold(folder: Path) -> None:
    found = comparison([read_run(folder / "out" / f"few-{seed}") for seed in (2, 1)])
    assert [run.header.seed for run in found.runs] == [1, 2]
    means = {trial.name: fmean(found.values(trial.name, "base")) for trial in found.trials}
    best = max(means, key=means.__getitem__)
    head, _, *rows = (line.split(" | ") for line in markdown(found).splitlines())
    bold = [row[0].strip("| ") for row in rows if row[head.index("Base")].startswith("**")]
    labels = {trial.name: trial.label for trial in found.trials}
    assert labels[best] in [name.strip("*") for name in bold]
    assert latex(found).count(r"\\") == len(rows) + 1 and "&" in latex(found)
    assert uploaded(found.trial(found.runs[0], "promptfl")) == 4 * 4 * 128  # one round of four vectors


def test_what_is_done_is_left_alone_and_other_settings_are_refused(folder: Path) -> None:
    before = (folder / "out" / "few-1" / "run.jsonl").read_bytes()
    said = call("compare", folder / "few.toml", "--seeds", "1,2", "--out", folder / "out", *memory(folder))
    assert "2 runs, 2 of them done." in said
    assert (folder / "out" / "few-1" / "run.jsonl").read_bytes() == before
    said = call("compare", folder / "few.toml", "--seeds", "1", "--out", folder / "out", "-s", "train.lr=0.5", code=2)
    assert "other settings" in said


def test_figures_stand_alone(folder: Path) -> None:
    for name in ("few-bytes.svg", "few-seconds.svg"):
        text = (folder / "out" / name).read_text(encoding="utf-8")
        assert text.count("<svg") == 1 and "alone" in text


def test_runs_of_different_recipes_are_refused(folder: Path) -> None:
    run = read_run(folder / "out" / "few-1")
    with pytest.raises(UserError, match="different seeds"):
        comparison([run, run])


def test_a_grid_is_a_trial_a_point_and_the_best_is_chosen(folder: Path) -> None:
    recipe = parse_recipe(TINY.replace("[evaluate]", "[grid]\nlr = [0.1, 0.01]\n[evaluate]"), ["compare=[]"])
    assert [(trial.name, trial.settings.lr) for trial in make_trials(recipe)] == [
        ("promptfl-lr-0.1", 0.1),
        ("promptfl-lr-0.01", 0.01),
    ]
    run = read_run(folder / "out" / "few-1")  # three trials are of one method with the same options
    best = chosen(run)
    of_promptfl = {trial.name: trial.figures["hm"] for trial in run.trials if trial.about.method == "promptfl"}
    assert set(best) == {max(of_promptfl, key=of_promptfl.__getitem__), "fedpgp"}
    assert "no [grid]" in call("tuned", folder / "out" / "few-1", code=2)


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_the_grid_is_the_comparisons_own(kind: str) -> None:
    """The same methods with the same options on the same data, but for the seed."""
    compared, tuned = (load_recipe(find_recipe(f"{name}_{kind}")) for name in ("compare", "tuning"))
    assert tuned.data == compared.data and tuned.partition == compared.partition and tuned.seed != compared.seed
    federated = [table for table in compared.compare if "sharing" not in table.train]
    assert [(table.name, table.options) for table in federated] == [(t.name, t.options) for t in tuned.compare]
    assert set(tuned.grid) == {"lr"} and re.match(r"tuning_", tuned.name)
