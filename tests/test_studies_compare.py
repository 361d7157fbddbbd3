"""Comparisons: tables over seeds from small runs, in every format, and tuning on a grid."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from typer.testing import CliRunner

from fedprompt import methods
from fedprompt.cli.compare import DEMO
from fedprompt.cli.main import app
from fedprompt.config.recipe import find_recipe, load_recipe, parse_recipe
from fedprompt.errors import UserError
from fedprompt.experiments.plan import resolve
from fedprompt.records.event_fields import DataRecord, DiagnosticRecord, ExpectedFigure
from fedprompt.records.events import DiagnosticsEvent
from fedprompt.report import Run, read_run
from fedprompt.report.comparison import as_csv, by_seed, comparison, latex, markdown, uploaded
from fedprompt.report.costs import label_points
from fedprompt.report.new_local import comparison_drawing, measured_dots, published_dots
from fedprompt.report.published import differences
from fedprompt.studies.tuning import search, tuned
from test_sharing import RECIPE

pytestmark = pytest.mark.usefixtures("kept_backbone", "undrawn")

TINY = (
    RECIPE.replace('name = "ends"', 'name = "few"')
    .replace("rounds = 2", "rounds = 1")
    .replace("train = 1\n", "train = 1\nseed = 3\n")
)


GRID = "tuning = { seed = 7, grid = { lr = [0.03, 0.01] } }\n"


def call(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    (folder / "few.toml").write_text(TINY, encoding="utf-8")
    call("compare", folder / "few.toml", "--seeds", "1,2", "--out", folder / "out")
    return folder


def test_finished_runs_become_a_table(folder: Path) -> None:
    there = [folder / "out" / f"few-{seed}" for seed in (1, 2)]
    said = call("compare", *there, there[0], "--out", folder / "again")
    assert (folder / "again" / "runs.csv").read_text() == (folder / "out" / "few.csv").read_text()
    assert str(folder / "again" / "runs.tex") in said
    assert "not both" in call("compare", there[0], folder / "few.toml", code=2)
    first = read_run(there[0])
    other = replace(first, trials=tuple(replace(trial, scores=trial.scores[:-1]) for trial in first.trials))
    with pytest.raises(UserError, match="give one of them a label"):
        by_seed([first, other])
    elsewhere = replace(first, header=first.header.model_copy(update={"data": DataRecord(fingerprint="another")}))
    with pytest.raises(UserError, match="have different data"):
        by_seed([first, elsewhere])


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
    assert uploaded(found.trial(found.runs[0], "promptfl")) == 4 * 4 * 160  # one round of four vectors


def test_diagnostics_are_a_table_of_their_own(folder: Path) -> None:
    def with_diagnostics(seed: int, value: float) -> Run:
        run = read_run(folder / "out" / f"few-{seed}")
        figure = DiagnosticRecord(name="gate entropy", value=value, meaning="At 1 it does nothing.")
        said = DiagnosticsEvent(trial="alone", diagnostics=(figure,))
        return replace(
            run, trials=tuple(replace(one, diagnostics=said if one.name == "alone" else None) for one in run.trials)
        )

    compared = comparison([with_diagnostics(1, 0.5), with_diagnostics(2, 0.7)])
    assert "\n| method | gate entropy |\n" in markdown(compared) and "| alone | 0.600 ± 0.141 |" in markdown(compared)
    assert "1,alone,gate entropy,0.5\n" in as_csv(compared)


def test_our_figures_are_beside_the_published_ones(folder: Path) -> None:
    runs = [read_run(folder / "out" / f"few-{seed}") for seed in (1, 2)]
    one = ExpectedFigure(trial="alone", table="t", name="new", value=50.0, source="a page", columns=("new",))
    merged = [replace(run, header=run.header.model_copy(update={"expected": (one,)})) for run in (runs[1], runs[0])]
    (found,) = differences(merged)
    values = [100 * trial.figures["new"] for run in runs for trial in run.trials if trial.name == "alone"]
    assert sorted(found.ours) == sorted(values) and found.difference == pytest.approx(fmean(values) - 50)
    compared = comparison(by_seed(merged))
    line = f"| 50.00 | {fmean(values):.2f} ± {stdev(values):.2f} | {fmean(values) - 50:+.2f} | 2 |"
    assert "\nt: a page." in markdown(compared) and line in markdown(compared)
    assert latex(compared).count(r"\begin{tabular}") == 2 and "published" not in markdown(comparison(runs))
    # Runs of one seed are joined, and what each of them expects with them.
    other = ExpectedFigure(trial="alone", table="t", name="base", value=1.0, columns=("base",))
    (joined,) = by_seed(
        [merged[1], replace(runs[0], header=runs[0].header.model_copy(update={"expected": (one, other)}))]
    )
    assert joined.header.expected == (one, other)


def test_finished_runs_are_kept_and_other_settings_are_refused(folder: Path) -> None:
    before = (folder / "out" / "few-1" / "run.jsonl").read_bytes()
    said = call("compare", folder / "few.toml", "--seeds", "1,2", "--out", folder / "out")
    assert "2 runs, 2 done." in said
    assert (folder / "out" / "few-1" / "run.jsonl").read_bytes() == before
    said = call("compare", folder / "few.toml", "--seeds", "1", "--out", folder / "out", "-s", "train.lr=0.5", code=2)
    assert "other settings" in said


def test_folders_of_runs_are_compared_as_they_are_and_options_of_training_are_named(folder: Path) -> None:
    runs = [folder / "out" / name for name in ("few-1", "few-2")]
    said = call("compare", *runs, "--seeds", "1,2,3", "--tune", "--out", folder / "again")
    assert "not trained again, so --seeds and --tune had no effect." in said
    assert "no effect" not in call("compare", *runs, "--out", folder / "again")


def test_figures_need_no_other_file(folder: Path) -> None:
    for name in ("few-bytes.svg", "few-seconds.svg"):
        text = (folder / "out" / name).read_text(encoding="utf-8")
        assert text.count("<svg") == 1 and "alone" in text


def test_new_classes_are_drawn_against_local_accuracy_and_published_figures_beside_them(folder: Path) -> None:
    assert "alone" in (folder / "out" / "few-new-local.svg").read_text(encoding="utf-8")
    run = read_run(folder / "out" / "few-1")
    dots = {dot.label: dot for dot in measured_dots(comparison([run]))}
    alone = next(trial for trial in run.trials if trial.name == "alone")
    assert dots["alone"].means == pytest.approx((100 * alone.figures["local"], 100 * alone.figures["new"]))
    assert [label for label, dot in dots.items() if dot.main] == [run.main.label] if run.main else []
    expected = tuple(
        ExpectedFigure(trial=trial, table="t", name=name, value=value, columns=(name,), part=part)
        for trial, name, value, part in (
            ("alone", "local", 1.0, "dtd"),
            ("alone", "local", 81.0, ""),
            ("alone", "new", 71.0, ""),
            ("together", "new", 70.0, ""),
        )
    )
    published = replace(run, header=run.header.model_copy(update={"expected": expected}))
    (dot,) = published_dots(published)
    assert (dot.label, dot.means) == ("alone", (81.0, 71.0))
    drawing = comparison_drawing(comparison([published]))
    assert drawing is not None and ">Published<" in drawing.svg
    without = replace(
        run, trials=tuple(replace(one, scores=[s for s in one.scores if s.column != "new"]) for one in run.trials)
    )
    assert comparison_drawing(comparison([without])) is None


def test_runs_of_different_recipes_are_refused(folder: Path) -> None:
    run = read_run(folder / "out" / "few-1")
    with pytest.raises(UserError, match="different seeds"):
        comparison([run, run])


def test_a_search_tries_every_method_at_every_point(folder: Path) -> None:
    recipe = parse_recipe(GRID + TINY, ["compare=[{ name = 'zeroshot' }]"])
    assert [(trial.name, trial.settings.lr, trial.settings.seed) for trial in resolve(search(recipe)).trials] == [
        ("promptfl-lr-0.03", 0.03, 7),
        ("promptfl-lr-0.01", 0.01, 7),
        ("zeroshot-lr-0.03", 0.03, 7),
        ("zeroshot-lr-0.01", 0.01, 7),
    ]
    with pytest.raises(UserError, match="has no grid"):
        search(parse_recipe(TINY))


def test_a_method_that_keeps_its_settings_is_in_no_search(folder: Path) -> None:
    kept = "{ name = 'promptfl', label = 'paper', tune = false, train = { lr = 0.5 } }"
    recipe = parse_recipe(GRID + TINY, [f"compare=[{kept}]"])
    found = search(recipe)
    assert [trial.name for trial in resolve(found).trials] == ["promptfl-lr-0.03", "promptfl-lr-0.01"]
    run = read_run(folder / "out" / "few-1")
    trials = tuple(
        replace(one, about=one.about.model_copy(update={"trial": f"promptfl-lr-{lr}"}))
        for one, lr in zip(run.trials[-1:] * 2, (0.03, 0.01), strict=True)
    )
    best = tuned(recipe, replace(run, trials=trials))
    assert best.method.train == {"lr": 0.03} and best.compare[0].train == {"lr": 0.5}
    with pytest.raises(UserError, match="keeps its settings"):
        search(recipe.model_copy(update={"method": recipe.compare[0], "compare": ()}))


def test_the_best_settings_of_a_search_are_written_and_compared(folder: Path) -> None:
    (folder / "grid.toml").write_text(GRID + TINY.replace('"few"', '"grid"'), encoding="utf-8")
    said = call(
        "compare", folder / "grid.toml", "--tune", "--seeds", "1", "--out", folder / "tuned",
        "-s", "compare=[]", "-s", "evaluate.local=false",
    )  # fmt: skip
    written = load_recipe(folder / "tuned" / "grid.toml")
    columns = [read_run(folder / "tuned" / name).columns for name in ("grid-tuning", "grid-1")]
    assert ["unseen" in own for own in columns] == [False, True], "the search needs no test set under shift"
    found = {trial.name: trial.figures["base"] for trial in read_run(folder / "tuned" / "grid-tuning").trials}
    assert set(found) == {"promptfl-lr-0.03", "promptfl-lr-0.01"}
    assert found[f"promptfl-lr-{written.method.train['lr']}"] == max(found.values())
    (trial,) = read_run(folder / "tuned" / "grid-1").trials
    assert trial.about.settings["lr"] == written.method.train["lr"] and "Written:" in said
    assert written.tuning.seed == 7 != written.seed


@pytest.mark.parametrize("name", DEMO)
def test_the_demo_recipes_compare_every_possible_method(name: str) -> None:
    recipe = load_recipe(find_recipe(name))
    resolve(recipe)
    assert recipe.tuning.seed not in (1, 2, 3) and set(recipe.tuning.grid) == {"lr"}
    left_out = set(methods.names()) - {table.name for table in (recipe.method, *recipe.compare)}
    assert left_out == ({"dualcoop", "fedmpt", "fedmvp_regions"} if name == "compare_single" else set())


def test_labels_of_points_do_not_overlap() -> None:
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.add_subplot()
    dots = [(1.0, 60.5, "promptfl"), (1.0, 60.5, "fedawa"), (1.1, 60.4, "fedkgcoop"), (9.0, 66.0, "fedmpt")]
    axes.plot([x for x, _, _ in dots], [y for _, y, _ in dots], "o")
    label_points(axes, dots)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the lines to dots
    assert sorted(text.get_text() for text in axes.texts) == sorted(name for _, _, name in dots)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
