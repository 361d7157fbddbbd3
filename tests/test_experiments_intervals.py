"""Intervals of real runs: from the predictions of all test images, and in line with the recorded figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import fedprompt as fp
from fedprompt.config.recipe import find_recipe, load_recipe
from fedprompt.errors import UserError
from fedprompt.experiments.context import RunContext
from fedprompt.experiments.evaluate import may_name
from fedprompt.experiments.experiment import assemble
from fedprompt.experiments.intervals import interval_events, row_groups
from fedprompt.experiments.plan import resolve
from fedprompt.experiments.run import start
from fedprompt.records.predictions import prediction_table, predictions_path, read_predictions
from fedprompt.records.reading import read_run
from fedprompt.records.run_record import Run
from fedprompt.report.legend import legend
from fedprompt.testing import tiny_clip, tiny_dataset

pytestmark = pytest.mark.usefixtures("kept_backbone", "undrawn")

SMALL = {
    "demo": ["seed=3", "data.train=1", "data.test=1", "partition.classes_per_client=13", "partition.shots=1"],
    "multilabel": ["data.train=20", "data.test=25"],
}


@pytest.fixture(scope="module", params=sorted(SMALL))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe: str = request.param
    settings = [*SMALL[recipe], "train.rounds=1", "evaluate.samples=0", "evaluate.every=0"]
    where = tmp_path_factory.mktemp("runs") / recipe
    start(resolve(load_recipe(find_recipe(recipe), settings), origin=recipe), where)
    return where


@pytest.fixture(scope="module")
def finished(folder: Path) -> Run:
    return read_run(folder)


def test_every_figure_lies_in_its_interval(finished: Run) -> None:
    assert finished.intervals
    for one in finished.intervals:
        assert one.low is not None and one.high is not None and one.value is not None
        assert one.low <= one.value <= one.high and one.low < one.high + 1e-12
        assert one.images > 0


def test_the_main_trial_is_compared_with_all_others_and_the_others_with_the_reference(finished: Run) -> None:
    main, reference = finished.main, finished.reference
    assert main is not None and reference is not None
    pairs = {(one.trial, one.against) for one in finished.intervals if one.against}
    others = {trial.name for trial in finished.trials} - {main.name}
    assert pairs == {(main.name, other) for other in others} | {
        (other, reference.name) for other in others - {reference.name}
    }


def test_trials_of_equal_figures_are_compared_with_each_other_too(folder: Path, finished: Run) -> None:
    one, two = (trial for trial in finished.trials if trial not in (finished.main, finished.reference))
    equal = replace(two, scores=one.scores)
    trials = tuple(equal if trial == two else trial for trial in finished.trials)
    pairs = {(found.trial, found.against) for found in interval_events(folder, replace(finished, trials=trials), {})}
    assert (two.name, one.name) in pairs and (one.name, two.name) not in pairs


def test_images_that_two_trials_predict_differently_are_counted_from_their_files(folder: Path, finished: Run) -> None:
    counted = [one for one in finished.intervals if one.changed is not None]
    assert {one.column for one in counted} >= {"base", "new"} or {one.column for one in counted} == {
        "natural",
        "broken",
    }
    for one in counted:
        tables = [pq.read_table(predictions_path(folder, name)).to_pylist() for name in (one.trial, one.against)]
        left, right = ([row for row in table if row["split"] == one.column] for table in tables)
        key = "predicted" if "predicted" in left[0] else "scores"
        assert one.changed == sum(ours[key] != theirs[key] for ours, theirs in zip(left, right, strict=True))


def test_recorded_intervals_are_those_of_the_files(folder: Path, finished: Run) -> None:
    assert tuple(interval_events(folder, finished, {})) == finished.intervals


def test_an_interval_does_not_depend_on_which_other_trials_a_run_has(folder: Path, finished: Run) -> None:
    for trial in finished.trials:
        alone = [one for one in finished.intervals if one.trial == trial.name and not one.against]
        assert alone and list(interval_events(folder, replace(finished, trials=(trial,)), {})) == alone


def test_the_file_of_predictions_gives_the_recorded_figures(folder: Path, finished: Run) -> None:
    for trial in finished.trials:
        found = list(read_predictions(folder, trial.name))
        scored = {(score.split, score.name, score.part, score.client): score for score in trial.scores}
        assert found
        for one in found:
            assert len(one.rows) == scored[one.key].num_examples
            if one.correct is not None:
                assert np.mean(one.correct) == pytest.approx(scored[one.key].value)


def test_the_file_can_be_read_by_any_reader_of_parquet(folder: Path, finished: Run) -> None:
    table = pq.read_table(predictions_path(folder, finished.trials[0].name))
    kind = {"truth", "predicted", "probability"} if "demo" in folder.name else {"scores", "targets"}
    assert set(table.column_names) == {"split", "name", "part", "client", "row", "image"} | kind
    named = dict(zip(*(table[name].to_pylist() for name in ("row", "image")), strict=True))
    source = assemble(resolve(load_recipe(folder / "recipe.toml"))).dataset.source
    assert named == {row: source.describe(row) for row in named}


def test_predictions_over_sites_name_no_image() -> None:
    data = tiny_dataset()
    examples = data.examples(data.rows(split="test", classes=data.base), data.base)
    logits = torch.zeros(len(examples), len(examples.space))
    for names in (True, False):
        table = prediction_table(("test", "all", "", None), examples, logits, names=names)
        assert ("image" in table.column_names) == names
    plan = SimpleNamespace(data_at_sites=False, clients_are_sites=True)
    assert not may_name(cast("RunContext", SimpleNamespace(experiment=SimpleNamespace(plan=plan))))


def test_an_image_of_several_clients_is_drawn_for_all_of_them_together() -> None:
    data = tiny_dataset()
    clients = fp.partition(data, "iid", clients=3, seed=1)  # each is tested on all test images of the base classes
    run = fp.train("zeroshot", tiny_clip(), data, clients, progress=False)
    found = {one.column: one for one in run.records.intervals}
    local, base = found["local"], found["base"]
    assert (local.low, local.high) == pytest.approx((base.low, base.high))
    assert local.images == base.images == len(data.rows(split="test", classes=data.base, domains=data.seen_domains))
    assert (
        "among all base classes, since every client may predict any of them; mean over clients, "
        in dict(legend(run.records))["Local"]
    )


def test_clients_with_test_images_of_their_own_are_intervals_over_all_of_them() -> None:
    data = tiny_dataset()
    clients = fp.partition(data, "class_chunks", classes_per_client=1, shots="all")
    run = fp.train("zeroshot", tiny_clip(), data, clients, progress=False)
    scores = run.scores.query("test_set == 'local' and metric == 'accuracy'")
    images = {one.column: one.images for one in run.records.intervals}
    assert images["local"] == scores["images"].sum() == images["base"]
    assert "choosing among that client's classes only" in dict(legend(run.records))["Local"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = predictions_path(tmp_path, "ours")
    path.parent.mkdir()
    path.write_bytes(b"no Parquet")
    with pytest.raises(UserError, match=r"ours\.parquet cannot be read as Parquet"):
        next(read_predictions(tmp_path, "ours"))
    assert list(read_predictions(tmp_path, "another")) == []


def test_intervals_of_images_in_groups_are_wider_and_figures_stay(folder: Path, finished: Run) -> None:
    images = max(row for trial in finished.trials for one in read_predictions(folder, trial.name) for row in one.rows)
    pairs = {"": np.arange(images + 1) // 8}
    alone, together = (list(interval_events(folder, finished, groups)) for groups in ({}, pairs))
    assert [(one.trial, one.column, one.value) for one in alone] == [
        (one.trial, one.column, one.value) for one in together
    ]
    width = [sum(one.high - one.low for one in found) for found in (alone, together)]
    assert alone != together and width[1] > 0
    grouped = tiny_dataset()
    assert row_groups(grouped) == {}
    assert row_groups(replace(grouped, groups=range(len(grouped.splits)))).keys() == {""}
