from __future__ import annotations

import dataclasses
import re
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from benchmarks import check_defaults, gpu
from benchmarks.__main__ import WAYS, every_method, many_labels, measured, memory, micro_batches, put, rows, together
from benchmarks.backbone import MODES, make_clip, make_examples
from benchmarks.compiling import compiling
from benchmarks.coverage import coverage
from benchmarks.data import decoding, index
from benchmarks.measure import Job, Result, measure
from benchmarks.own_images import textures
from benchmarks.precision import precision
from benchmarks.predicting import predicting

from fedprompt import methods
from fedprompt.clip.precision import DTYPES

TINY = Job("zeroshot", "ours", "train", size="tiny", batch=2, batches=2, classes=3, attributes=2, repeats=1)


@pytest.mark.parametrize("task", ["train", "evaluate"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_measures_something(mode, task):
    result = measure(dataclasses.replace(TINY, method="fedmvp", mode=mode, task=task))
    assert result.seconds > 0 and result.peak_gb > 0
    assert (result.macs > 0) == (task == "train")


def test_jobs_cover_every_method_in_every_mode():
    found = list(every_method(TINY))
    assert len(found) == len(set(found)) == len(methods.names()) * 2 * len(WAYS)


def test_as_released_reads_every_text_at_full_length():
    clip = make_clip("tiny", "as released", batch=2)
    space = make_examples(2, 3, 2, 32).space
    context = clip.token_embeddings("a photo")
    prompts = clip.fill([f"<ctx> {name}." for name in space.names], ctx=context)
    assert prompts.embeddings.shape[1] == clip.context_length
    assert (
        prompts.embeddings.shape[1]
        > make_clip("tiny", "ours", batch=2).fill(["<ctx> it."], ctx=context).embeddings.shape[1]
    )


def test_the_table_has_a_row_per_measurement_with_its_ratio():
    found = {job: measure(job) for job in (TINY, dataclasses.replace(TINY, mode="cache off"))}
    lines = list(rows(found))
    assert len(lines) == 4 and "| 1.00 |" in lines[2]


def test_jobs_of_a_method_are_measured_in_turn_and_the_median_counts(monkeypatch):
    done: list[Job] = []

    def run(job: Job) -> Result:
        done.append(job)
        return Result(float(len(done)), (float(len(done)),), peak_gb=len(done) % 5, macs_per_second=1e9, macs=0)

    monkeypatch.setattr("benchmarks.__main__.run", run)
    text = measured("text-alone", dataclasses.replace(TINY, repeats=3))
    assert [(job.method, job.mode) for job in done] == [
        (name, mode) for name in ("promptfl", "fedtpg") for _ in range(3) for mode in WAYS
    ]
    assert all(job.repeats == 1 for job in done)
    assert "| promptfl | train, 2 | 3 x 2 | ours | 4.000 | 1.00 |  |  | 4.0 GB |" in text  # of turns 1, 4 and 7
    assert "| promptfl | train, 2 | 3 x 2 | cache off | 5.000 | 1.25 |" in text


def test_of_two_turns_the_faster_one_counts():
    slow, fast = (Result(seconds, (seconds,), peak_gb=seconds, macs_per_second=1, macs=0) for seconds in (3.0, 2.0))
    assert together([slow, fast]) == dataclasses.replace(fast, peak_gb=3.0)


def test_many_labels_are_measured_with_their_transport():
    found = {job: measure(job) for job in many_labels(TINY) if job.classes == 20}
    assert {job.mode for job in found} == set(MODES)
    assert all(0 < result.transport < result.seconds for result in found.values())
    assert all("train, many labels, 2 | 20 x 2" in line and "% |" in line for line in list(rows(found))[2:])


def test_micro_batches_are_measured_at_the_papers_batch():
    assert [(job.method, job.batch, job.classes) for job in micro_batches(Job("fedmvp", "ours", "train"))] == [
        ("fedcocoop", 32, 20),
        ("fedcocoop", 128, 20),
    ]


def test_an_index_is_built_and_opened_and_images_are_decoded(monkeypatch):
    monkeypatch.setattr("fedprompt.data.published.index.MIN_FILES", 0)  # small ones are not worth it otherwise
    found = index(12, classes=4) | decoding(2, ())
    assert len(found) == 5 and all(value >= 0 for value in found.values())


def test_compiling_is_measured_in_turn_with_the_pass_as_it_is(monkeypatch: pytest.MonkeyPatch):
    called = []
    monkeypatch.setattr(torch, "compile", lambda run: lambda tokens: called.append(1) or run(tokens))
    found = compiling(size="tiny", batch=2, repeats=3)
    assert len(called) == 2 * (1 + 3) and len(found) == 8
    for what in ("without gradient", "with gradient"):
        ratio = found[f"{what} (ms)"] / found[f"{what}, compiled (ms)"]
        assert found[f"{what}: times as fast"] == pytest.approx(ratio)


def test_predicting_is_measured_beside_the_tower_alone():
    found = predicting(images=3, names=("zeroshot",), size="tiny")
    assert len(found) == 4 and found["zeroshot: share of the tower's rate"] > 0


def test_a_section_replaces_only_itself():
    page = put(put("# Title\n", "one", "old"), "two", "kept")
    assert put(page, "one", "new \\1") == page.replace("old", "new \\1")


def test_coverage_is_a_share_of_the_simulated_test_sets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.coverage.KNOWN", 40)
    found = coverage(sets=4)
    assert len(found) == 20
    assert all(value in (0, 25, 50, 75, 100) for value in found.values())
    assert sum(found.values()) / len(found) > 70


def test_the_script_for_gpus_runs_from_end_to_end_on_a_cpu(capsys: pytest.CaptureFixture[str]):
    assert gpu.main(["--device", "cpu", "--size", "tiny", "--batch", "2", "--seconds", "0.5"]) == 0
    assert "features, float32: largest difference from the CPU: 0" in capsys.readouterr().out


def test_every_part_of_the_script_for_gpus_measures_something(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", lambda run: run)  # which takes a minute
    bench = gpu.Bench(torch.device("cpu"), "tiny", 2, time.perf_counter() + 1)
    parts = {**gpu.PARTS, "schedule": partial(gpu.schedule, clients=2, rounds=2)}
    found = {name: dict(part(bench)) for name, part in parts.items()}
    assert all(value >= 0 for figures in found.values() for value in figures.values())
    assert all(max(figures.values()) > 0 for figures in found.values())
    assert {"bfloat16", "float32"} == {one for one in DTYPES if any(f", {one}" in what for what in found["steps"])}


def test_precisions_are_compared_with_float32():
    found = precision(test=1, scenes_test=4, rounds=1, names=("promptfl",))
    assert 0 < found["promptfl: float32"] <= 100 >= abs(found["promptfl: bfloat16, points"])
    assert {what.rpartition(": ")[2] for what in found} == {"float32", "bfloat16, points", "float16, points"}


def test_memory_is_measured_with_a_limit_and_without():
    found = {job: measure(job) for job in memory(TINY)}
    assert [job.activations_gb > 0 for job in found] == [False, True]
    assert "ours, activations in" in list(rows(found))[3]


def test_the_defaults_are_checked_with_an_interval_per_method(tmp_path: Path):
    images = textures(tmp_path / "images", 1, each=4)
    asked = ("train.rounds=1", "minutes=0", "compare=[{name='zeroshot'}]", "method.name=fedclip", "evaluate.samples=0")
    run = check_defaults.train("own_folder", (f"data.path={images}", *asked), tmp_path / "run")
    found = check_defaults.table({"textures": run})
    head, _, row = found.strip().splitlines()
    assert head.startswith("| images | method | figure | zero-shot | gain, 95% interval |")
    assert re.fullmatch(
        r"\| textures \| FedCLIP \| [\d.]+ \| [\d.]+ \| [+-][\d.]+ \(.+ to .+\) \| (yes|no) \| [\d.]+ \|", row
    )
