"""Long fields in Parquet files: bytes per label and client are bounded, and what is read equals what was written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fedprompt.config.recipe import parse_recipe
from fedprompt.demo.scenes import scenes
from fedprompt.errors import UserError
from fedprompt.experiments import events as event_builders
from fedprompt.experiments import run as runs
from fedprompt.experiments.context import RunCallbacks
from fedprompt.experiments.plan import resolve
from fedprompt.experiments.test_sets import make_test_sets
from fedprompt.records import client_scores, vectors
from fedprompt.records.client_scores import append_scores, packed, unpacked
from fedprompt.records.event_fields import PartitionCounts
from fedprompt.records.events import (
    BaseEvent,
    HeaderEvent,
    MistakesEvent,
    RoundEvent,
    ScoreEvent,
    SitesEvent,
    TrialEvent,
    ValidationEvent,
)
from fedprompt.records.reading import read_run
from fedprompt.records.run_folder import RunFolder, read_lines
from fedprompt.records.vectors import LONG
from fedprompt.report import render
from fedprompt.seeding import numpy_stream

LABELS, CLIENTS = 2000, 3000

pytestmark = pytest.mark.usefixtures("kept_backbone")

NAMES = tuple(f"label {number}" for number in range(LABELS))


def score(*, labels: int = LABELS, client: int | None = None, seed: int = 1, round_number: int = 1) -> ScoreEvent:
    values = numpy_stream(seed, "scores").random(labels).tolist()
    return ScoreEvent(
        trial="a",
        round=round_number,
        split="test" if client is None else "local",
        client=client,
        num_examples=9,
        figures={"accuracy": values[0]},
        classes=NAMES[:labels],
        per_class=[None if value < 0.1 else value for value in values],
    )


def a_round(*, clients: int = CLIENTS, number: int = 1) -> RoundEvent:
    losses = dict(enumerate(numpy_stream(number, "losses").random(clients).tolist()))
    sizes = dict.fromkeys(range(clients), 8192)
    failed = {client: f"late: client {client % 3} did not answer" for client in range(0, clients, 7)}
    return RoundEvent(
        trial="a",
        round=number,
        clients=range(clients),
        loss=0.5,
        losses=losses | {1: None},
        bytes_up=sizes,
        failed=failed,
    )


def header() -> HeaderEvent:
    partition = PartitionCounts(
        clients=[f"client {number}" for number in range(CLIENTS)],
        classes=NAMES,
        counts=[[row * label % 3 for label in range(LABELS)] for row in range(20)],
        sizes=range(CLIENTS),
    )
    return HeaderEvent(
        main="a", partition=partition, recipe={"data": {"classes": list(NAMES), "mixed": [1, "x", None] * LONG}}
    )


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sites() -> SitesEvent:
    return SitesEvent(
        trial="a", sites={"site-1": {"labels": [None, *range(LABELS)], "clock": 1.5}, "v.2": {"labels": []}}
    )


def mistakes() -> MistakesEvent:
    decisions = [{"name": name, "images": 3, "predicted": 2, "right": place % 2} for place, name in enumerate(NAMES)]
    return MistakesEvent(trial="a", split="test", images=3, classes=decisions)


def validation() -> ValidationEvent:
    scores = {client: {"accuracy": client / CLIENTS, "macro_f1": None} for client in range(CLIENTS)}
    return ValidationEvent(trial="a", round=1, metric="accuracy", scores=scores, images=dict.fromkeys(scores, 7))


@pytest.mark.parametrize(
    "event", [score(), a_round(), header(), sites(), mistakes(), validation()], ids=lambda event: event.event
)
def test_a_long_event_is_read_as_it_was_written(event: BaseEvent, tmp_path: Path) -> None:
    with RunFolder.create(tmp_path) as run:
        run.append(event)
        assert list(run.events()) == [event]
    assert (tmp_path / "run.jsonl").stat().st_size < 6000
    assert {path.suffix for path in (tmp_path / "vectors").iterdir()} == {".parquet"}


def test_a_short_event_is_one_line(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path) as run:
        run.append(score(labels=LONG))
        run.append(a_round(clients=LONG))
    assert not (tmp_path / "vectors").exists()
    assert json.loads((tmp_path / "run.jsonl").read_text().splitlines()[0])["classes"] == list(NAMES[:LONG])


def test_scores_per_class_are_a_table_with_a_row_per_class(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path) as run:
        run.append(score())
    (path,) = (tmp_path / "vectors").iterdir()
    table = pq.read_table(path)
    assert table["classes"].to_pylist() == list(NAMES)
    assert table["per_class"].to_pylist() == list(score().per_class)


def test_records_take_few_bytes_per_label_and_per_client(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "labels") as run:
        run.append(score())
    assert size(tmp_path / "labels") < 16 * LABELS
    with RunFolder.create(tmp_path / "clients") as run:
        run.append(a_round())
    assert size(tmp_path / "clients") < 24 * CLIENTS
    with RunFolder.create(tmp_path / "local") as run:
        append_scores(run, [score(labels=10, client=client, seed=client) for client in range(CLIENTS)])
    assert size(tmp_path / "local") < 120 * CLIENTS


def test_scores_of_many_clients_are_one_line_that_reads_as_their_own_events(tmp_path: Path) -> None:
    events = [score(labels=3 + client % 4, client=client, seed=client) for client in range(LONG + 1)]
    assert list(unpacked(packed(events))) == events
    with RunFolder.create(tmp_path) as run:
        run.append(HeaderEvent(main="a"))
        append_scores(run, [score(labels=5), *events])
    assert [fields["event"] for fields in read_lines(tmp_path)] == ["header", "score", "client_scores"]
    trial = read_run(tmp_path).trials[0]
    assert [one.per_class for one in trial.final("local")] == [event.per_class for event in events]
    assert [one.classes for one in trial.final("local")] == [event.classes for event in events]


def test_few_scores_stay_lines_in_their_order(tmp_path: Path) -> None:
    events = [score(labels=3, client=client) for client in (None, 1, 0, None)]
    with RunFolder.create(tmp_path) as run:
        append_scores(run, events)
        assert list(run.events()) == events


def test_a_resumed_run_has_the_files_of_one_that_never_stopped(tmp_path: Path) -> None:
    def record(run: RunFolder, numbers: range) -> None:
        for number in numbers:
            run.append(a_round(number=number))
            run.append(score(round_number=number, seed=number))

    with RunFolder.create(tmp_path / "whole") as run:
        record(run, range(1, 5))
    with RunFolder.create(tmp_path / "stopped") as run:
        record(run, range(1, 4))
        run.append(a_round(number=9))  # seconds of sites, say, which are not the same when a round is run again
    with RunFolder.open(tmp_path / "stopped") as run:
        run.rewind("a", 2)
        record(run, range(3, 5))
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("whole", "stopped")
    ]
    assert files[0] == files[1]


def test_a_line_whose_write_fails_is_never_without_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder.create(tmp_path) as run:
        run.append(TrialEvent(trial="a"))
        done = os.fsync
        calls: list[int] = []

        def failing(handle: int) -> None:
            calls.append(handle)
            if len(calls) > 2:  # the Parquet file and its folder; then the line
                raise OSError(28, "no space")
            done(handle)

        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises(UserError, match="disk is full"):
            run.append(score())
        monkeypatch.undo()
        assert list(run.events()) == [TrialEvent(trial="a")]
        run.append(score())
        assert list(run.events()) == [TrialEvent(trial="a"), score()]


def test_a_missing_changed_or_foreign_file_is_named(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run") as run:
        run.append(header())
        run.append(score())
    log = tmp_path / "run" / "run.jsonl"
    path = next((tmp_path / "run" / "vectors").glob("score-*"))
    whole, lines = path.read_bytes(), log.read_text()
    path.write_bytes(whole[:-9] + b"x" + whole[-8:])
    with pytest.raises(UserError, match=f"{path.name} has changed since it was written; restore it"):
        read_run(tmp_path / "run")
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name} does not exist; copy the whole folder"):
        read_run(tmp_path / "run")
    path.write_bytes(whole)
    shutil.copy(path, tmp_path / "elsewhere.parquet")
    for name in ("../elsewhere.parquet", "/etc/passwd", 7, "run.jsonl"):
        log.write_text(lines.replace(json.dumps(path.name), json.dumps(name)))
        with pytest.raises(UserError, match="which no run writes"):
            read_run(tmp_path / "run")


def test_the_page_of_many_labels_and_clients_is_small_and_links_the_rest(tmp_path: Path) -> None:
    local = [score(labels=5, client=client, seed=client) for client in range(CLIENTS)]
    with RunFolder.create(tmp_path) as run:
        run.append(header())
        run.append(TrialEvent(trial="a", status="running", trainable=1, rounds=1))
        run.append(a_round())
        append_scores(run, [score(), *local])
    html = render(tmp_path).read_text(encoding="utf-8")
    assert len(html) < 600_000
    (classes,) = (path.name for path in (tmp_path / "vectors").glob("score-*"))
    (clients,) = (path.name for path in (tmp_path / "vectors").glob("client_scores-*"))
    assert f'href="vectors/{classes}"' in html and f'href="vectors/{clients}"' in html
    ranked = sorted(local, key=lambda event: -(event.figures["accuracy"] or 0))
    assert f'<th scope="row">client {ranked[0].client}</th>' in html
    assert f'<th scope="row">client {ranked[-1].client}</th>' in html
    assert f'<th scope="row">client {ranked[CLIENTS // 2].client}</th>' not in html
    assert "and 1,800 more" in html  # classes in the recipe


def test_a_page_names_some_of_the_classes_of_a_client(tmp_path: Path) -> None:
    partition = PartitionCounts(clients=["a"], classes=NAMES, counts=[[1] * LABELS])
    with RunFolder.create(tmp_path) as run:
        run.append(HeaderEvent(partition=partition))
    html = render(tmp_path).read_text(encoding="utf-8")
    assert "label 39 and 1,960 more" in html and len(html) < 100_000


RECIPE = """
name = "short"
seed = 3
[data]
source = "scenes"
train = 2
test = 1
[partition]
rule = "iid"
clients = 3
[method]
name = "dualcoop"
[[compare]]
name = "zeroshot"
[train]
rounds = 3
batch_size = 8
[evaluate]
samples = 1
every = 1
"""


class Interruption(RunCallbacks):
    """Interrupts a run after its second round, once."""

    def on_round(self, number: int, loss: float | None) -> None:
        if number == 2:
            raise KeyboardInterrupt


def test_a_run_that_resumes_equals_one_that_does_not_in_records_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.start(resolve(parse_recipe(RECIPE)), tmp_path / "short")
    for module in (vectors, client_scores):
        monkeypatch.setattr(module, "LONG", 2)
    runs.start(resolve(parse_recipe(RECIPE)), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        runs.start(resolve(parse_recipe(RECIPE)), tmp_path / "stopped", callbacks=Interruption())
    runs.resume(tmp_path / "stopped")
    files = [{path.name for path in (tmp_path / name / "vectors").iterdir()} for name in ("whole", "stopped")]
    assert files[0] == files[1] and len(files[0]) > 10
    assert (tmp_path / "short" / "vectors").exists() is False
    short, whole, stopped = (read_run(tmp_path / name) for name in ("short", "whole", "stopped"))
    for run in (whole, stopped):
        for mine, theirs in zip(run.trials, short.trials, strict=True):
            assert (mine.scores, mine.samples, mine.figures) == (theirs.scores, theirs.samples, theirs.figures)
            assert [(event.losses, event.bytes_up) for event in mine.rounds] == [
                (event.losses, event.bytes_up) for event in theirs.rounds
            ]
        assert (run.cooccurrence, run.intervals, run.header.partition) == (
            short.cooccurrence,
            short.intervals,
            short.header.partition,
        )
    pages = {name: without_links((tmp_path / name / "report.html").read_text()) for name in ("short", "whole")}
    assert pages["short"] == pages["whole"]


def without_links(html: str) -> str:
    """The page without times and links to Parquet files, which differ between runs."""
    html = re.sub(r"(?s)<p class=\"note\">[^<]*<a href=\"vectors/.*?</p>", "", html)
    html = re.sub(r" and the Parquet files that it names|\d+\.\d s\b|\d{4}-\d\d-\d\d.\d\d:\d\d(:\d\dZ| UTC)", "", html)
    return " ".join(html.split())


def test_of_many_classes_the_cooccurrence_of_the_most_frequent_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_builders, "LONG", 2)
    (test_set, *_) = make_test_sets(scenes(seed=5, train=1, test=4))
    present = test_set.examples.targets == 1
    event = event_builders.cooccurrence_event(test_set, present)
    counts = present.sum(dim=0).tolist()
    assert event.positives == tuple(counts) and len(event.classes) == 2
    kept = [test_set.examples.space.names.index(name) for name in event.classes]
    assert kept == sorted(kept) and min(counts[label] for label in kept) >= sorted(counts)[-2]
    assert [event.counts[place][place] for place in range(2)] == [counts[label] for label in kept]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc, which only Linux has")
def test_reading_a_file_starts_no_thread() -> None:
    """Arrow's threads may let go of a Python buffer while the interpreter ends, and then the process aborts."""
    script = (
        "import os\n"
        "from fedprompt.records import vectors\n"
        "values = {str(place): place * 0.5 for place in range(3000)}\n"
        "fields, files = vectors.split_long({'event': 'score', 'values': values})\n"
        "assert len(files) == 1\n"
        "before = set(os.listdir('/proc/self/task'))\n"
        "read = vectors.join_long(fields, files.__getitem__)\n"
        "assert set(os.listdir('/proc/self/task')) == before\n"
        "assert len(read['values']) == 3000\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
