from __future__ import annotations

import json
from itertools import chain
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

import fedprompt as fp
from fedprompt import methods
from fedprompt.cli.main import app
from fedprompt.data.published.catalog import entry
from fedprompt.errors import UserError
from fedprompt.experiments.plan import resolve
from fedprompt.records.event_fields import ExpectedFigure
from fedprompt.records.events import HeaderEvent, TrialEvent
from fedprompt.records.run_record import Run, Score, TrialRecord
from fedprompt.report import comparable_figure, read_run
from fedprompt.studies.published import experiment, experiments, image_passes, matched_cells, recipe
from fedprompt.studies.published_tables import cells, remarks, table
from fedprompt.studies.reproduce import _mean, differences, jobs
from fedprompt.studies.sweep import run_all
from trees import TREES, as_json, text

pytestmark = pytest.mark.usefixtures("kept_backbone")

MINIATURE = (
    "backbone.path=demo",
    "backbone.batch=1",
    "train.rounds=1",
    "train.batch_size=8",
    "evaluate.samples=0",
    "evaluate.local=true",
    "compare=[]",
)
CHEAP = (*MINIATURE, "method={name='promptfl'}")


def score(split, value, measure=""):
    return Score(1, split, "all", None, "", measure, 9, value, (), ())


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def only(name, root, out, *settings, count=1):
    """The first runs of an experiment in miniature."""
    about = experiment(name)
    todo = jobs(about, root=root, out=out, seeds=[1], settings=settings)[:count]
    with patch("fedprompt.experiments.run.render"):  # drawing takes longer than everything else here
        assert [number for number, _ in run_all(todo)] == list(range(1, len(todo) + 1))
    return about, todo, [read_run(job.folder) for job in todo]


@pytest.mark.parametrize("name", experiments())
def test_every_experiment_is_a_valid_recipe_of_known_methods(name, tmp_path):
    about = experiment(name)
    for label in about.variants:
        plan = resolve(recipe(about, label, root=tmp_path, seed=1))
        assert {trial.method for trial in plan.trials} <= set(methods.names())
        assert plan.recipe.seed == 1 and plan.recipe.data.options["root"] == str(tmp_path)
    trials = {trial.name for trial in plan.trials}
    for match in about.matches:
        assert set(match.rows) <= trials
        assert set(match.rows.values()) <= {cell.row for cell in table(match.table)}
        columns = {cell.column for cell in table(match.table)} - {"mean"}
        options = plan.recipe.data.options
        known = {
            "figure": {"local", "base", "new", "hm"},
            "run": set(about.variants),
            "part": {*options.get("sets", ()), *options.get("targets", ())},
            "column": columns,
        }[match.axis]
        assert columns <= known and match.column in {"", "mean", *columns}
    assert image_passes(about) > 0


UNREACHED = {  # no run of ours is what these rows are of, as a remark of their experiment says
    ("fedmvp/ablation", "without LoRA switch"),
}


def test_every_published_row_and_column_has_an_experiment():
    reached = {
        (cell.table, cell.row, column)
        for about in experiments().values()
        for match, _, own in matched_cells(about)
        for cell in own
        for column in ([match.column] if match.axis == "column" else {one.column for one in own})
    }
    printed = {(cell.table, cell.row, cell.column) for cell in chain(*cells().values())}
    left = {key for key in printed - reached if key[:2] not in UNREACHED}
    assert {(table, column) for table, _, column in left} == {
        ("fedmvp/msst", "mean"),
        ("fedmpt/cost", "ms an iteration"),
    }
    assert {row for table, row, _ in left if table == "fedmvp/msst"} == {"FedTPG", "FedCLIP"}


def test_tables_have_a_source_for_every_cell_and_their_means_are_right():
    for cell in chain(*cells().values()):
        assert cell.source and cell.certainty in {"log", "page", "image", "note", "recalled"}
    assert cells().keys() == remarks().keys()
    for name in ("fedmpt/partial-voc2007", "fedmpt/partial-coco2014", "fedmpt/partial-nuswide"):
        assert len(table(name)) == 11 * 6 * 3
        for measure in ("mAP", "CF1", "OF1"):
            for method in {cell.row for cell in table(name)}:
                own = {c.column: c.value for c in table(name) if (c.row, c.measure) == (method, measure)}
                mean = own.pop("mean")
                assert abs(sum(own.values()) / len(own) - mean) < 0.011, (name, method, measure)


def test_published_harmonic_means_are_three_way():
    rows = {cell.row for cell in table("base-to-new")}
    for method in rows:
        own = {cell.column: cell.value for cell in table("base-to-new") if cell.row == method}
        if len(own) == 4:
            assert abs(3 / sum(1 / own[key] for key in ("local", "base", "new")) - own["hm"]) < 0.02, method


def test_the_released_log_of_sets_with_one_client_has_local_equal_to_base():
    own = {(c.column, c.measure): c.value for c in table("fedtpg/base-to-new-sets")}
    assert own["oxford_pets", "local"] == own["oxford_pets", "base"] and own["dtd", "local"] == own["dtd", "base"]


def test_base_to_new_over_nine_sets(tmp_path):
    names = recipe(experiment("fedmvp/base-to-new"), "all", root=tmp_path, seed=1).data.options["sets"]
    for name in names:
        TREES[name](tmp_path)
    about, todo, (found,) = only("fedmvp/base-to-new", tmp_path, tmp_path / "out", *CHEAP, "method.label='fedmvp'")
    assert len(found.header.partition.clients) == 9 and found.trials[0].by_part("base").keys() == set(names)
    assert {"local", "base", "new", "hm"} <= found.trials[0].figures.keys()
    assert "dtd: DTD has 47 classes, but 3 were found." in found.header.data.notes
    (difference, *_) = differences(about, todo)
    assert (difference.method, difference.expected.name) == ("fedmvp", "local") and difference.spread is None
    assert difference.difference == pytest.approx(100 * found.trials[0].figures["local"] - difference.expected.value)
    list(run_all(todo))  # nothing is left to do
    with pytest.raises(UserError, match="other settings"):
        list(run_all(jobs(about, root=tmp_path, out=tmp_path / "out", seeds=[1], settings=[*CHEAP, "train.lr=1.0"])))


@pytest.mark.parametrize("name", ["fedtpg/cross-dataset", "fedtpg/imagenet-ssmt"])
def test_imagenet_is_trained_on_and_others_are_tested(name, tmp_path):
    options = recipe(experiment(name), "all", root=tmp_path, seed=1).data.options
    for one in (*options["sets"], *options["targets"]):
        TREES[one](tmp_path)
    about, todo, (found,) = only(name, tmp_path, tmp_path / "out", *CHEAP, "method.label='fedtpg'")
    assert set(found.trials[0].by_part("unseen")) == set(options["targets"])
    columns = {one.expected.name for one in differences(about, todo)}
    assert {*options["targets"], "mean"} <= columns and ("imagenet" in columns) == (name == "fedtpg/imagenet-ssmt")


HELD = {
    "fedmvp/msst-pacs": ("pacs",),
    "fedmvp/ssmt": ("pacs", "officehome"),
    "fedclip/pacs": ("pacs",),
    "fedmvp/ablation-msst": ("pacs",),
}


@pytest.mark.parametrize(("name", "sets"), HELD.items())
def test_domains_are_held_out_in_turn(name, sets, tmp_path):
    for one in sets:
        TREES[one](tmp_path)
    about = experiment(name)
    count = min(2, len(about.variants))
    about, todo, found = only(
        name, tmp_path, tmp_path / "out", *CHEAP, f"method.label='{name.split('/')[0]}'", count=count
    )
    held = [one.header.recipe["data"]["unseen_domains"] for one in found]
    assert len({tuple(domains) for domains in held}) == count
    for one, domains in zip(found, held, strict=True):
        assert {score.name for score in one.trials[0].final("unseen")} == set(domains)
        assert not set(one.header.partition.domains) & set(domains)
    alone = {one.expected.name for one in differences(about, todo)}  # a mean over all is not there before the last
    assert alone == (set(chain(*held)) if name == "fedclip/pacs" else set())


def test_a_mean_over_data_sets_weighs_each_equally_whatever_its_number_of_rotations():
    about = experiment("fedmvp/ablation-msst")
    share = {label: 1.0 if label.startswith("domainnet") else 0.5 for label in about.variants}
    expected = ExpectedFigure(trial="fedmvp", table="t", name="n", value=0.0, columns=("unseen",))

    def fake(value):
        return Run(HeaderEvent(), (TrialRecord(TrialEvent(trial="fedmvp"), (), (score("unseen", value),), ()),), None)

    found = {label: fake(value) for label, value in share.items()}
    assert _mean(about, found, expected) == pytest.approx((4 * 50 + 100) / 5)
    assert _mean(about, {**found, "pacs-photo": None}, expected) is None
    own = [label for label, settings in about.variants.items() for domain in settings["data.unseen_domains"]]
    assert len(own) == len(set(own)) == 22


def test_figures_are_joined_or_counted():
    scores = (score("test", 0.5), score("test", 0.7, measure="of1"))
    run = Run(HeaderEvent(), (TrialRecord(TrialEvent(trial="a", trainable=250_000), (), scores, ()),), None)
    wanted = {"test": 50.0, "test+test:of1": 60.0, "test+test:cf1": None, "parameters (M)": 0.25}
    for column, value in wanted.items():
        expected = ExpectedFigure(trial="a", table="t", name="n", value=0.0, columns=(column,))
        assert comparable_figure(run, expected) == (value if value is None else pytest.approx(value))


def test_every_domain_is_a_target_once():
    for name in ("pacs", "officehome", "vlcs", "terraincognita", "domainnet"):
        ((_, held),) = experiment(f"fedmvp/msst-{name}").grid.items()
        assert sorted(chain(*held)) == sorted(entry(name).domains)


MANY = {
    "fedmpt/heterogeneity-voc2007": ("voc2007",),
    "fedmpt/partial-voc2007": ("voc2007",),
    "fedmpt/participation-voc2007": ("voc2007",),
    "fedmpt/ablation": ("voc2007",),
    "fedmpt/cost": ("voc2007",),
    "fedmpt/remote-sensing": ("multiscene_clean", "mlrsnet"),
    "fedmpt/zero-shot": ("coco_zero_shot", "nuswide_zero_shot"),
}


@pytest.mark.parametrize("name", MANY)
def test_multi_label_protocols(name, tmp_path):
    for one in MANY[name]:
        TREES[one](tmp_path)
    small = (*CHEAP, "partition.heterogeneity=0.1", "method.label='fedmpt'", "evaluate.held_out=0.5")
    count = len(MANY[name])
    about, todo, found = only(name, tmp_path, tmp_path / "out", *small, count=count)
    columns = set(found[0].columns)
    assert ({"zsl", "gzsl"} if name.endswith("zero-shot") else {"test"}) <= columns
    measures = [one.expected.name for one in differences(about, todo)]
    if name == "fedmpt/ablation":
        assert measures == ["mAP", "mean of three"]
    if name == "fedmpt/cost":
        assert measures == ["tunable (M)", "mAP"]
    if name == "fedmpt/partial-voc2007":
        assert measures == ["0.1 mAP", "0.1 CF1", "0.1 OF1"]
        assert (todo[0].folder / "annotation.safetensors").exists()


def test_a_real_method_runs_too(tmp_path):
    TREES["dtd"](tmp_path)
    settings = (*MINIATURE, "data.sets=['dtd']", f"data.attributes='{tmp_path}'")
    names = ("banded", "polka-dotted", "woven")
    as_json(tmp_path / "dtd.json", {name: ["thin lines"] for name in reversed(names)})
    _, _, (found,) = only("fedmvp/base-to-new", tmp_path, tmp_path / "out", *settings)
    assert found.trials[0].name == "fedmvp" and found.trials[0].figures["local"] == found.trials[0].figures["base"]
    as_json(tmp_path / "dtd.json", {name: ["thin lines"] for name in names[:2]})
    with pytest.raises(UserError, match="no phrases for 'woven'"):
        only("fedmvp/base-to-new", tmp_path, tmp_path / "other", *settings)


def test_the_command_prints_our_figures_beside_the_published(tmp_path):
    TREES["dtd"](tmp_path)
    words = chain(*(("-s", setting) for setting in (*MINIATURE, "data.sets=['dtd']")))
    name = "zero-shot/base-to-new"
    done = run("reproduce", name, "--root", tmp_path, "--out", tmp_path / "out", "--seeds", "1,2", *words)
    assert done.exit_code == 0, done.output
    assert "2 of 2 runs done." in done.output and "left." in done.output
    page = (tmp_path / "out/published.md").read_text()
    assert "| zeroshot | new | 75.78 |" in page and " ± 0.00 |" in page and "Not with the published settings" in page
    assert "## zero-shot/base-to-new-sets: CoCoOp's paper, with its templates (recalled)" in page
    report = (tmp_path / "out/seed-2/all/report.html").read_text()
    assert "base-to-new: FedTPG" in report and "<td>75.78</td>" in report


def test_the_list_has_command_cost_and_published_figures():
    shown = run("reproduce", "--list").output
    for name, about in experiments().items():
        assert f"{name}: " in shown and about.command in shown
    assert "published: FedMVP local 81.89, base 75.37, new 77.82, hm 78.27 (base-to-new)" in shown


def test_mistakes_at_the_command_line_are_sentences(tmp_path):
    assert "did you mean 'fedmvp/base-to-new'" in run("reproduce", "fedmvp/base-to-nw").output
    assert "--root DIR" in run("reproduce", "fedmvp/base-to-new").output
    assert (
        "is not a list of whole numbers" in run("reproduce", "fedmvp/ssmt", "--root", tmp_path, "--seeds", "a").output
    )
    missing = run("reproduce", "fedmvp/msst-pacs", "--root", tmp_path, "-q", "--set", "backbone.path=demo")
    assert missing.exit_code == 2 and entry("pacs").licence in missing.output


def test_an_interruption_says_how_to_continue(tmp_path, monkeypatch):
    def stop(todo, *, callbacks):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedprompt.studies.sweep.run_all", stop)
    stopped = run("reproduce", "fedmvp/base-to-new", "--root", tmp_path)
    assert stopped.exit_code == 130 and "the same command continues" in stopped.output
    assert stopped.output.startswith("Note: FedMVP reads attributes")  # before hours of work, not after


def test_data_check_lists_problems(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPROMPT_CACHE", str(tmp_path / "cache"))
    TREES["food101"](tmp_path)
    found = run("data", "check", "food101", "--root", tmp_path)
    assert found.exit_code == 2 and "101 classes, but 3 were found" in found.output
    split = tmp_path / "food-101/split_zhou_Food101.json"
    table = json.loads(split.read_text())
    swapped = {"cheese_plate": 2, "cheesecake": 1, "apple_pie": 0}
    as_json(split, {word: [[file, swapped[name], name] for file, _, name in rows] for word, rows in table.items()})
    assert "another order of classes" in run("data", "check", "food101", "--root", tmp_path).output
    (tmp_path / "food-101/images/apple_pie/1.jpg").unlink()
    assert "do not exist: 1 listed image" in run("data", "check", "food101", "--root", tmp_path).output
    assert entry("dtd").origin in run("data", "check", "dtd", "--root", tmp_path).output
    every = run("data", "check", "fedmvp/msst-pacs", "fedmvp/base-to-new", "--root", tmp_path)
    assert every.exit_code == 2 and all(entry(name).origin in every.output for name in ("pacs", "caltech101", "sun397"))


def test_data_check_accepts_a_correct_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPROMPT_CACHE", str(tmp_path / "cache"))
    TREES["voc2007"](tmp_path)
    about = entry("voc2007").model_copy(update={"counts": {"train": 6, "test": 3}})
    monkeypatch.setattr("fedprompt.data.published.catalog.catalog", lambda: {"voc2007": about})
    found = run("data", "check", "voc2007", "--root", tmp_path)
    assert found.exit_code == 0, found.output
    assert "train 6, test 3" in found.output and "Complete and as published." in found.output


def test_a_known_other_version_is_a_remark_not_a_problem(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPROMPT_CACHE", str(tmp_path / "cache"))
    TREES["pacs"](tmp_path)
    about = entry("pacs").model_copy(update={"classes": 0, "other_versions": {"the first one": 32}})
    monkeypatch.setattr("fedprompt.data.published.catalog.catalog", lambda: {"pacs": about})
    monkeypatch.setattr("fedprompt.data.published.verify._classes_without_images", lambda listing: [])
    found = run("data", "check", "pacs", "--root", tmp_path)
    assert found.exit_code == 0 and "Remark: PACS is the first one with 32 images" in found.output


def test_data_list_and_info(tmp_path, monkeypatch):
    assert "terraincognita" in run("data", "list").output
    TREES["dtd"](tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    there = run("data", "list", "--root", tmp_path).output
    assert str(tmp_path / "dtd") in there and there.count("not there") == len(TREES) - 1
    shown = run("data", "info", "voc2007").output
    assert "difficult" in shown and "Options" in shown and entry("voc2007").traps[0] in shown


def test_a_stray_file_in_the_catalogue_is_ignored(tmp_path):
    text(tmp_path / "classes.txt", ["x"])
    with pytest.raises(UserError, match="did you mean 'pacs'"):
        entry("pac")


def test_python_gets_a_row_per_published_figure(tmp_path):
    TREES["dtd"](tmp_path)
    changes = {"backbone.path": "demo", "backbone.batch": 1, "evaluate.samples": 0, "data.sets": ["dtd"]}
    out, name = tmp_path / "out", "zero-shot/base-to-new"
    table = fp.reproduce(name, root=tmp_path, out=out, seeds=[1], settings=changes, progress=False)
    row = table.query("method == 'zeroshot' and figure == 'new'").iloc[0]
    assert (row["published"], row["seeds"]) == (75.78, 1)
    assert row["difference"] == pytest.approx(row["ours"] - 75.78) and (out / "published.md").is_file()
    with pytest.raises(UserError, match="no experiment 'zero-shot/base-to-nwe'; did you mean"):
        fp.reproduce("zero-shot/base-to-nwe", root=tmp_path)
