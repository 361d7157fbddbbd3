"""The round that a run keeps: by a metric of held-out images, exactly the same after a stop, and said in the report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from fedprompt.config.recipe import Recipe, parse_recipe
from fedprompt.data.partition.base import Partition, Shard
from fedprompt.data.partition.class_chunks import class_chunks
from fedprompt.errors import UserError
from fedprompt.experiments import best_round
from fedprompt.experiments import run as runs
from fedprompt.experiments.best_round import BestRound
from fedprompt.experiments.clients import Clients
from fedprompt.experiments.context import RunCallbacks
from fedprompt.experiments.experiment import assemble
from fedprompt.experiments.keep import FIGURES, Keep
from fedprompt.experiments.plan import resolve
from fedprompt.federated.evaluate import Score, score, validate
from fedprompt.federated.rounds import Start
from fedprompt.ops.metrics import harmonic_mean
from fedprompt.records.checkpoints import Checkpoint, load_tensors
from fedprompt.records.events import BaseEvent, KeptEvent, RoundEvent, TrialEvent, ValidationEvent
from fedprompt.records.outcome import missing_results
from fedprompt.records.run_folder import read_events
from fedprompt.report import read_run, render
from fedprompt.report.verdict import verdict
from fedprompt.testing import tiny_dataset
from test_experiments_resume import RECIPE
from toy_datasets import multi_label, single_label
from toys import SPACE, Toy, fake_clip, toy_client

pytestmark = pytest.mark.usefixtures("kept_backbone", "undrawn")  # one test draws its report itself

BEST = (
    RECIPE.replace('"promptfl"', '"fedclip"')
    .replace("lr = 0.002", 'lr = 0.05\nschedule = "constant"\nkeep = "best:hm"')
    .replace("rounds = 1", "rounds = 4")
    .replace("shots = 1", "shots = 2")
)


def scored(figures: Mapping[int, Mapping[str, float]], images: Mapping[int, int]) -> dict[int, Score]:
    return {client: Score("", images[client], own, ()) for client, own in figures.items()}


def test_base_is_weighted_by_images_and_local_is_not() -> None:
    found = scored({0: {"base": 0.5, "local": 1.0}, 1: {"base": 1.0, "local": 0.5}}, {0: 6, 1: 2})
    assert Keep("base").value(found) == (6 * 0.5 + 2 * 1.0) / 8 == 0.625
    assert Keep("local").value(found) == 0.75
    assert Keep("hm").value(found) == harmonic_mean(0.625, 0.75)
    assert Keep("hm").value({}) is None


def test_an_undefined_figure_of_a_client_counts_for_nothing() -> None:
    found = scored({0: {"base": float("nan")}, 1: {"base": 0.25}}, {0: 6, 1: 2})
    assert Keep("base").value(found) == 0.25
    assert Keep("base").value(scored({0: {"base": float("nan")}}, {0: 6})) is None
    assert Keep("base").value(found | scored({2: {"base": 7.0}}, {2: 6})) == 0.25, "no share, whatever a site says"


def test_rounds_are_compared_over_the_clients_that_answered_both_times() -> None:
    images = dict.fromkeys(range(3), 4)
    before = scored({0: {"base": 0.9}, 1: {"base": 0.5}}, images)
    now = scored({1: {"base": 0.75}, 2: {"base": 0.1}}, images)
    assert Keep("base").compare(now, before) == 0.25, "client 1 alone has both"
    assert Keep("base").compare(scored({2: {"base": 1.0}}, images), before) is None


@pytest.mark.parametrize(
    ("every", "rounds", "due"),
    [(0, 4, [0, 1, 2, 3, 4]), (0, 41, [*range(0, 41, 3), 41]), (3, 7, [0, 3, 6, 7]), (5, 2, [0, 2]), (1, 0, [])],
)
def test_held_out_images_are_scored_as_often_as_the_recipe_says_or_twenty_times(
    every: int, rounds: int, due: list[int]
) -> None:
    keep = Keep("base", every=every)
    assert [number for number in range(rounds + 1) if keep.is_due(number, rounds)] == due
    assert not any(Keep(every=every).is_due(number, rounds) for number in range(rounds + 1))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["train.keep=best:hmm"],
            r'\[train\] keep = "best:hmm" is unknown; did you mean \'best:hm\'\? \(choose "last"',
        ),
        (["train.keep=best"], r'keep = "best" is unknown'),
        (["train.keep=first"], r'keep = "first" is unknown'),
        (["train.patience=2"], r'patience needs a metric that can improve; add keep = "best:hm"'),
        (["method.train={keep='best:hm'}"], "keep and patience are the same for all methods of a run"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_in_a_sentence(settings: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve(parse_recipe(RECIPE, settings))


def test_a_metric_of_other_labels_is_refused_before_images_are_opened() -> None:
    with pytest.raises(
        UserError, match=r'"best:of1" is no metric of images with one label each; choose one of best:hm'
    ):
        assemble(resolve(parse_recipe(RECIPE, ["train.keep=best:of1"])))


def test_no_held_out_image_at_all_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"no validation part, and \[evaluate\] held_out = 0 of at most \d+ images"):
        assemble(resolve(parse_recipe(RECIPE, ["train.keep=best:hm", "evaluate.held_out=0"])))


def test_every_figure_that_can_be_named_is_computed() -> None:
    for kind, data in (("single", single_label(4)), ("multi", multi_label(classes=4))):
        examples = data.examples(data.rows(split="test"))
        figures = score(torch.zeros(len(examples), 4), examples.targets, examples.space, name="x").figures
        assert set(FIGURES[kind]) <= set(figures)


def test_a_run_that_chooses_a_round_holds_out_a_fifth_unless_its_recipe_says_otherwise() -> None:
    def share(*settings: str) -> float:
        return resolve(parse_recipe(RECIPE, settings)).recipe.evaluate.held_out

    assert share() == 0.0
    assert share("train.keep=best:hm") == 0.2
    assert share("train.keep=best:hm", "evaluate.held_out=0.5") == 0.5
    written = resolve(parse_recipe(RECIPE, ["train.keep=best:hm"])).recipe
    assert resolve(parse_recipe(written.to_toml())).recipe == written


def test_without_a_validation_part_a_client_holds_out_a_share_of_its_images() -> None:
    data = single_label(4, each=10)
    dealt = class_chunks(data, classes_per_client=2, shots="all")
    trained = Clients(data, dealt, test=False, held_out=0.2)
    found = Clients(data, dealt, test=False, held_out=0.2, candidates=("base", "local"))
    for client, plain, shard in zip(found, trained, dealt.shards, strict=True):
        held = client.held_out["base"].images.rows
        assert len(held) == 4 and sorted({*held, *client.train.images.rows}) == sorted(shard.rows)
        assert client.train.images.rows == plain.train.images.rows, "as a threshold's images are held out"
        assert not plain.held_out
        assert client.held_out["local"].images.rows == held
        assert client.held_out["base"].space.names == tuple(f"class {label}" for label in data.base)
        assert client.held_out["local"].space.names == tuple(f"class {label}" for label in shard.classes)
    assert found.num_held_out == 8 == trained.num_held_out


def test_the_validation_part_is_dealt_to_the_clients_that_have_its_classes_and_domains() -> None:
    data = tiny_dataset()  # one validation image per class and domain

    def rows(split: str, domain: str, *labels: int) -> tuple[int, ...]:
        return tuple(data.rows(split=split, domains=(domain,), classes=labels).tolist())

    shards = (
        Shard("first", rows("train", "photo", 0, 1, 2)[::2], (0, 1, 2), "photo"),
        Shard("second", rows("train", "photo", 2, 3), (2, 3), "photo"),
        Shard("third", rows("train", "sketch", 0, 1), (0, 1)),
    )
    found = Clients(data, Partition("x", 3, shards), test=False, held_out=0.5, candidates=("base",))
    assert [client.held_out["base"].images.rows for client in found] == [
        rows("val", "photo", 0, 1, 2),
        rows("val", "photo", 3),  # that of class 2 went to the first client that has the class
        rows("val", "sketch", 0, 1),
    ]
    assert all(client.train.images.rows == shard.rows for client, shard in zip(found, shards, strict=True))
    assert found.num_held_out == 0


def test_clients_with_the_same_classes_take_turns_at_validation_images() -> None:
    plain = single_label(2, each=6)  # per class six training images and a test image
    splits = tuple("val" if 2 <= row % 7 < 6 else split for row, split in enumerate(plain.splits))
    data = replace(plain, splits=splits)
    train = data.rows(split="train").tolist()
    shards = (Shard("a", tuple(train[::2]), (0, 1)), Shard("b", tuple(train[1::2]), (0, 1)))
    first, second = Clients(data, Partition("x", 3, shards), test=False, candidates=("base",))
    assert first.held_out["base"].images.rows == (2, 4, 9, 11)
    assert second.held_out["base"].images.rows == (3, 5, 10, 12)


def test_a_client_without_validation_images_of_its_own_holds_out_a_share() -> None:
    data = tiny_dataset()
    lacking = replace(
        data,
        splits=tuple(
            "train" if split == "val" and domain == "sketch" else split
            for split, domain in zip(data.splits, data.domains, strict=True)
        ),
    )
    rows = {domain: lacking.rows(split="train", domains=(domain,), classes=(0, 1)).tolist() for domain in data.domains}
    shards = tuple(Shard(domain, tuple(rows[domain]), (0, 1), domain) for domain in ("photo", "sketch"))
    photo, sketch = Clients(lacking, Partition("x", 3, shards), test=False, held_out=0.2, candidates=("base",))
    assert {lacking.splits[row] for row in photo.held_out["base"].images.rows} == {"val"}
    assert len(photo.train) == 8 and len(sketch.train) == 8 and len(sketch.held_out["base"]) == 2
    assert set(sketch.held_out["base"].images.rows) | set(sketch.train.images.rows) == set(rows["sketch"])


def test_held_out_images_are_scored_over_the_base_classes_and_over_the_clients_own() -> None:
    client = toy_client(0, test=8)
    own = toy_client(0, test=8, classes=(0, 2))
    held = {"base": client.test, "local": own.test}
    method = Toy()
    found = validate(method, fake_clip(), replace(client, held_out=held))
    logits = method.classifier(fake_clip(), SPACE)(client.test.images)
    assert (
        found.figures["base"]
        == found.figures["accuracy"]
        == float((logits.argmax(dim=1) == client.test.targets).float().mean())
    )
    local = method.classifier(fake_clip(), own.test.space)(own.test.images)
    assert found.figures["local"] == float((local.argmax(dim=1) == own.test.targets).float().mean())
    assert found.num_examples == 8


def recipe(*settings: str) -> Recipe:
    return parse_recipe(BEST, settings)


def scripted(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Held-out images score these values, by round."""

    def score_held_out(*_: object, round_number: int) -> dict[int, Score]:
        return {0: Score("", 10, {"base": values[round_number], "local": values[round_number]}, ())}

    monkeypatch.setattr(best_round, "score_held_out", score_held_out)


def kept_of(folder: Path) -> KeptEvent:
    (found,) = [event for event in read_events(folder) if isinstance(event, KeptEvent)]
    return found


def tensors(folder: Path) -> Mapping[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("values", "patience", "kept", "last"),
    [
        ([0.1, 0.2, 0.9, 0.3, 0.4], 0, 2, 4),
        ([0.1, 0.2, 0.2, 0.2, 0.2], 0, 1, 4),  # the first of equal ones
        ([0.5, 0.5, 0.4, 0.5, 0.3], 0, 1, 4),  # a trained round comes before the state before training
        ([0.9, 0.2, 0.3, 0.4, 0.5], 0, 0, 4),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 2, 4, 4),
        ([0.1, 0.3, 0.2, 0.2, 0.9], 2, 1, 3),  # two scorings in vain: the fourth round is not trained
        ([0.9, 0.2, 0.3, 0.9, 0.9], 2, 0, 2),
        ([0.1, 0.3, None, None, None], 2, 1, 4),  # what no client answers does not count
        ([None, None, 0.2, 0.1, None], 0, 2, 4),
    ],
)
def test_the_first_of_the_best_rounds_is_chosen_and_patience_counts_scorings_in_vain(
    values: list[float | None], patience: int, kept: int, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score_held_out(*_: object, round_number: int) -> dict[int, Score]:
        value = values[round_number]
        return {} if value is None else {0: Score("", 10, {"base": value}, ())}

    monkeypatch.setattr(best_round, "score_held_out", score_held_out)
    recorded: list[BaseEvent] = []
    saved: list[int] = []
    run = SimpleNamespace(
        events=lambda: recorded,
        append=recorded.append,
        save_checkpoint=lambda name, checkpoint, before: saved.append(checkpoint.round_number),
        load_checkpoint=lambda name, round_number: Checkpoint(round_number, {}, {}),
    )
    plan = SimpleNamespace(keep=Keep("base", patience=patience))
    context = SimpleNamespace(run=run, experiment=SimpleNamespace(plan=plan), callbacks=RunCallbacks())
    trial, transport = SimpleNamespace(name="toy", label="Toy"), SimpleNamespace(personal={})
    number = 0
    for number in range(5):
        best = BestRound(context, trial, 4)  # a resumed run knows what one that never stopped knows
        best.score(number, transport, {})
        assert BestRound(context, trial, 4).is_exhausted == best.is_exhausted
        if best.is_exhausted:
            break
    found = best.kept(Start(number, {}))
    event = recorded[-1]
    assert isinstance(event, KeptEvent) and (event.round, event.last) == (kept, last)
    assert (event.value, event.last_value, event.images) == (values[kept], values[last], 10)
    assert event.patience == (patience if last < 4 else 0)
    assert saved[-1] == kept and (found is None) == (kept == last)
    assert found is None or found.round_number == kept


def test_the_best_round_is_tested_and_saved_and_the_last_one_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.125, 0.25, 0.75, 0.25, 0.5])
    runs.start(resolve(recipe()), tmp_path / "run")
    found = kept_of(tmp_path / "run")
    assert (found.round, found.last, found.value, found.last_value) == (2, 4, 0.75, 0.5)
    (trial,) = read_run(tmp_path / "run").trials
    assert [event.round for event in trial.rounds] == [1, 2, 3, 4]
    assert {score.round for score in trial.scores} == {2}
    folder = tmp_path / "run" / "adapters"
    assert json.loads((folder / "fedclip" / "provenance.json").read_text())["kept_round"] == 2
    for rounds, name in ((2, "fedclip"), (4, "fedclip@last")):
        runs.start(resolve(recipe(f"train.rounds={rounds}", *AS_LAST)), tmp_path / name)
        assert same(tensors(folder / name), tensors(tmp_path / name / "adapters" / "fedclip"))
        assert not (tmp_path / name / "adapters" / "fedclip@last").exists()


AS_LAST = ("train.keep=last", "evaluate.held_out=0.2")  # the same images are trained on


class Stop(RunCallbacks):
    """Stops a run after a round of a trial, or when it begins to score it (round 0)."""

    def __init__(self, number: int, *, trial: str = "FedCLIP") -> None:
        self.number, self.trial, self.current = number, trial, ""

    def on_trial(self, name: str, rounds: int, done: int) -> None:
        self.current = name

    def on_round(self, number: int, loss: float | None) -> None:
        if (number, self.current) == (self.number, self.trial):
            raise KeyboardInterrupt

    def on_step(self, text: str) -> None:
        if not self.number and text == f"Scoring {self.trial}":
            raise KeyboardInterrupt


# A trial with a shared state, and one whose states stay at the clients.
BOTH = (
    "compare=[{name='fedclip',label='alone',train={sharing='local'}}]",
    *("train.lr=0.003", "train.patience=3", "evaluate.every=2"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("best") / "run"
    runs.start(resolve(recipe(*BOTH)), folder)
    kept = {trial.name: trial.kept for trial in read_run(folder).trials}
    assert all(one is not None and 0 < one.round < one.last for one in kept.values()), "else little is shown"
    return folder


def lines(folder: Path) -> list[dict[str, object]]:
    """The events about training and scores, without times; of two about the same thing, the later one."""
    found = {}
    for line in (folder / "run.jsonl").read_text().splitlines():
        fields = json.loads(line)
        if fields["event"] in ("round", "score", "validation", "kept"):
            key = [fields.get(name) for name in ("event", "trial", "round", "split", "name", "client")]
            found[str(key)] = {name: value for name, value in fields.items() if name != "seconds"}
    return sorted(found.values(), key=str)


@pytest.mark.parametrize(
    "stop",
    [Stop(1), Stop(2), Stop(4), Stop(0), Stop(1, trial="alone"), Stop(0, trial="alone")],
    ids=["1", "2", "4", "scoring", "alone-1", "alone-scoring"],
)
def test_a_resumed_run_keeps_the_round_of_one_that_never_stopped_bitwise(
    stop: Stop, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        runs.start(resolve(recipe(*BOTH)), tmp_path / "run", callbacks=stop)
    runs.resume(tmp_path / "run")
    assert lines(tmp_path / "run") == lines(whole)
    for name in [path.name for path in (whole / "adapters").iterdir()]:
        assert same(tensors(tmp_path / "run" / "adapters" / name), tensors(whole / "adapters" / name))


@pytest.mark.parametrize(("state", "saved"), [("fedclip", False), ("fedclip", True), ("fedclip@best", True)])
def test_a_stop_right_before_or_after_a_state_is_saved_changes_nothing(
    state: str, saved: bool, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = runs.RunFolder.save_checkpoint

    def cut(self: runs.RunFolder, name: str, checkpoint: object, **options: int) -> None:
        stops = name == state and getattr(checkpoint, "round_number", 0) == 2
        if saved or not stops:
            save(self, name, checkpoint, **options)
        if stops:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs.RunFolder, "save_checkpoint", cut)
        runs.start(resolve(recipe(*BOTH)), tmp_path / "run")
    runs.resume(tmp_path / "run")
    assert lines(tmp_path / "run") == lines(whole)


def test_a_best_state_that_is_lost_stops_the_run_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.1, 0.9, 0.2, 0.2, 0.2])
    with pytest.raises(KeyboardInterrupt):
        runs.start(resolve(recipe()), tmp_path / "run", callbacks=Stop(2))
    for path in (tmp_path / "run" / "checkpoints").glob("*best@*1.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="The best state of FedCLIP, that of round 1, is lost or damaged"):
        runs.resume(tmp_path / "run")


def test_with_a_learning_curve_the_table_shows_the_kept_round_and_the_report_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.1, 0.2, 0.75, 0.3, 0.25])
    runs.start(resolve(recipe("evaluate.every=1")), tmp_path / "run")
    run = read_run(tmp_path / "run")
    (trial,) = run.trials
    assert {score.round for score in trial.scores if score.split == "base"} == {0, 1, 2, 3, 4}
    assert {score.round for score in trial.final("base")} == {2} == {score.round for score in trial.final("local")}
    assert trial.figures["base"] == trial.final("base")[0].value
    said = (
        "The round with the best HM on held-out images is kept (10 images): FedCLIP round 2 of 4 (75.0%; 25.0% after "
        "round 4)."
    )
    assert said in verdict(run).sentences
    page = render(tmp_path / "run").read_text()
    assert (
        "Metric of held-out images by round" in page and "after the round with the best HM on held-out images" in page
    )
    assert "Not tested." in (tmp_path / "run" / "adapters" / "fedclip@last" / "README.md").read_text()


def test_methods_that_train_alone_or_on_everything_choose_their_round_too(tmp_path: Path) -> None:
    others = "compare=[{name='fedclip',label='alone',train={sharing='local'}}," + (
        "{name='fedclip',label='together',train={sharing='pooled'}},{name='zeroshot'}]"
    )
    runs.start(resolve(recipe("train.rounds=2", others)), tmp_path / "run")
    run = read_run(tmp_path / "run")
    kept = {trial.name: trial.kept for trial in run.trials}
    assert kept["zeroshot"] is None and all(kept[name] is not None for name in ("alone", "together", "fedclip"))
    events = [event for event in read_events(tmp_path / "run") if isinstance(event, ValidationEvent)]
    start = {event.trial: event.scores for event in events if event.round == 0}
    assert start["alone"] == start["together"] == start["fedclip"], "all begin with the same prompt"
    assert [len(event.scores) for event in events] == [3] * 9


def test_images_held_out_for_a_round_are_never_trained_on_nor_test_images_scored_in_a_search(tmp_path: Path) -> None:
    experiment = assemble(resolve(recipe("evaluate.test=false", "train.rounds=1")))
    for client in experiment.clients:
        assert client.test is None and not {*client.train.images.rows} & {*client.held_out["base"].images.rows}
    runs.start(experiment.plan, tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert not run.trials[0].scores and run.trials[0].validations and run.end is not None and run.end.status == "done"
    assert not missing_results(run)


def test_a_torn_checkpoint_falls_back_to_the_best_round_of_that_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.1, 0.2, 0.3, 0.25, 0.2])
    with pytest.raises(KeyboardInterrupt):
        runs.start(resolve(recipe()), tmp_path / "run", callbacks=Stop(2))
    newest = max(path for path in (tmp_path / "run" / "checkpoints").glob("fedclip@*"))
    newest.write_bytes(newest.read_bytes()[:-1])
    runs.resume(tmp_path / "run")
    shutil.rmtree(tmp_path / "other", ignore_errors=True)
    runs.start(resolve(recipe()), tmp_path / "other")
    assert lines(tmp_path / "run") == lines(tmp_path / "other") and kept_of(tmp_path / "other").round == 2
    assert load_tensors(max((tmp_path / "run" / "checkpoints").glob("*best@*")))[0].keys()


def test_scorings_of_rounds_that_were_rolled_back_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.1, 0.3, 0.9, 0.2, 0.25]

    def score_held_out(*_: object, round_number: int) -> dict[int, Score]:
        return {0: Score("", 10, {"base": values[round_number]}, ())}

    monkeypatch.setattr(best_round, "score_held_out", score_held_out)
    recorded: list[BaseEvent] = []
    run = SimpleNamespace(events=lambda: recorded, append=recorded.append, save_checkpoint=lambda *_, **__: None)
    plan = SimpleNamespace(keep=Keep("base", patience=2))
    context = SimpleNamespace(run=run, experiment=SimpleNamespace(plan=plan))
    trial, transport = SimpleNamespace(name="toy", label="Toy"), SimpleNamespace(personal={})
    best = BestRound(context, trial, 4)
    for number in range(3):
        best.score(number, transport, {})
    assert best.best is not None and best.best.number == 2
    recorded.append(RoundEvent(trial="toy", round=3, rolled_back=2))
    best.forget(2)
    best.score(3, transport, {})
    for one in (best, BestRound(context, trial, 4)):  # a resumed run knows it too
        assert one.best is not None and one.best.number == 1 and not one.is_exhausted
    best.score(4, transport, {})
    assert best.is_exhausted, "two scorings in vain after round 1"


def test_the_best_state_outlives_better_ones_that_were_rolled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score_held_out(*_: object, round_number: int) -> dict[int, Score]:
        return {0: Score("", 10, {"base": round_number / 10}, ())}

    monkeypatch.setattr(best_round, "score_held_out", score_held_out)
    plan = SimpleNamespace(keep=Keep("base"))
    trial, transport = SimpleNamespace(name="toy", label="Toy"), SimpleNamespace(personal={})
    with runs.RunFolder(tmp_path) as run:
        run.append(TrialEvent(trial="toy", status="running"))
        context = SimpleNamespace(run=run, experiment=SimpleNamespace(plan=plan), callbacks=RunCallbacks())
        best = BestRound(context, trial, 9)
        best.score(1, transport, {"w": torch.ones(1)})
        for number in range(2, 7):
            best.score(number, transport, {"w": torch.zeros(1)})
            best.forget(number)
        found = best.kept(Start(7, {}))
    assert found is not None and found.round_number == 1 and found.shared["w"].item() == 1
