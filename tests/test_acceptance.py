"""The command that measures the acceptance criteria: verdicts of met, missed and missing ones, and its quick parts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from benchmarks import robustness
from benchmarks.acceptance import adapters, attacks, crashes, privacy, processes, secure
from benchmarks.acceptance import criteria as proofs_module
from benchmarks.acceptance.__main__ import page
from benchmarks.acceptance.criteria import Criterion, Proof, Row, row, settled
from benchmarks.mutations import fuzz
from benchmarks.robustness import BROKEN, Bench, Case, Found, average, cases

from fedprompt.records.checkpoints import Checkpoint
from fedprompt.records.events import HeaderEvent
from fedprompt.records.run_folder import RunFolder
from toys import Toy

BENCH = Bench("promptfl", 20)


def of(criteria: object) -> dict[str, str]:
    return {f"{one.what}: {one.criterion}": one.verdict for one in criteria if isinstance(one, Row)}


def test_cases_without_results_are_not_measured() -> None:
    assert set(of(attacks.criteria(BENCH, {})).values()) == {"not measured"}


def test_attacks_are_compared_with_their_criteria() -> None:
    found = {case: Found(0.8, 40 if case.attack in BROKEN else 0) for case in cases()}
    for attack in attacks.MUST_WITHSTAND:
        found[Case(attack=attack)] = Found(0.4, 0)
    assert set(of(attacks.criteria(BENCH, found)).values()) == {"met", "no criterion"}
    found[Case("median", "gaussian")] = Found(0.75, 0)
    found[Case(attack="broken.nan")] = Found(0.8, 39)
    found[Case("krum", partition="one_tenth")] = Found(0.76, 0)
    missed = [what for what, verdict in of(attacks.criteria(BENCH, found)).items() if verdict == "not met"]
    assert [what.split()[0] for what in missed] == ["2", "median", "krum"]


def test_a_rehearsal_is_read_and_missing_results_are_not_measured(tmp_path: Path) -> None:
    lines = [
        {"what": "site rejoins with the same key", "criterion": "later", "measured": "after 21 s", "met": False},
        {
            "what": "longest round after a site was killed",
            "criterion": "deadline 120 s + 5 s",
            "measured": "50.4 s",
            "met": True,
        },
        {"what": "overhead without a worker", "criterion": "none", "measured": "9 s", "met": True},
        {"what": "site without TLS", "criterion": "refused", "measured": "accepted", "met": False},
    ]
    (tmp_path / processes.RESULT).write_text(json.dumps({"about": {"flwr": "1.41.0"}, "results": lines}))
    found = {one.what: one.verdict for one in processes.criteria([tmp_path]) if isinstance(one, Row)}
    assert [found[line["what"]] for line in lines] == ["not met", "met", "no criterion", "not met"]
    assert list(found.values()).count("not measured") == len(processes.PROMISES) - 2


def test_criteria_are_proved_by_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = {"a.py::x": ["passed", "passed"], "a.py::y": ["passed", "skipped"], "b.py::z": ["failure"]}
    monkeypatch.setattr(
        proofs_module, "ran", lambda tests: {name: outcomes[name] for name in tests if name in outcomes}
    )
    proofs = [Proof("", "", names) for names in (("a.py::x",), ("a.py::x", "a.py::y"), ("b.py::z",), ("c.py::gone",))]
    assert [one.verdict for one in settled({"t": proofs})["t"]] == ["met", "not measured", "not met", "not met"]


def test_every_test_of_a_proof_exists() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    source = "".join(path.read_text(encoding="utf-8") for path in Path(proofs_module.__file__).parent.glob("*.py"))
    named = re.findall(r"::(test_\w+)", source)
    assert len(named) > 30 and [name for name in named if f"def {name}(" not in tests] == []


def test_the_page_counts_its_verdicts_and_keeps_its_columns() -> None:
    lines: list[Row] = [row("a | b", "c\nd", "e", met=False), Row("x", "y", "-", "not measured")]
    text = page({"Title": lines}, command="python", minutes=2.0)
    assert "Of 2: 1 not met, 1 not measured." in text and "| a \\| b | c d | e | **not met** | here |" in text


def test_robustness_continues_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, measured = tmp_path / "results.jsonl", []

    def measure(bench: Bench, case: Case) -> Found:
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(case)
        return Found(0.5 + len(measured) / 100, 0)

    monkeypatch.setattr(Bench, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        BENCH.complete(path)
    first, measured[:] = list(measured), []
    monkeypatch.setattr(robustness, "cases", lambda scope: list(cases(scope))[:5])
    found = BENCH.complete(path)
    assert not set(first) & set(measured) and len(found) == 5 and found == BENCH.read(path)
    for other in (Bench("promptfl", 21), Bench("promptfl", 20, seed=2)):
        assert not other.read(path), "results of other settings are not these"


def test_results_of_several_seeds_are_means_with_their_deviation_and_all_refusals() -> None:
    case, alone = Case("median", "gaussian"), Case("krum")
    found = average([{case: Found(0.7, 20), alone: Found(0.5)}, {case: Found(0.8, 19)}])
    assert set(found) == {case} and str(found[case]) == "0.750 ± 0.071" and found[case].refused == 39
    assert average([]) == {}
    page_of = robustness.page({BENCH: average([{one: Found(0.8, 40) for one in cases()}] * 3)}, (1, 2, 3))
    assert "| nan | 0.800 ± 0.000 | 0.800 ± 0.000 | +0.0 | 120 |" in page_of and "fedmvp" not in page_of
    every = {case: Found(0.8, 40 if case.attack in BROKEN else 0) for case in cases()}
    nan = next(attacks.criteria(BENCH, average([every, every])))
    assert isinstance(nan, Row) and (nan.verdict, "80 of 80 refused" in nan.measured) == ("met", True)


def assert_met(criteria: object) -> list[Criterion]:
    found = list(criteria)
    assert found and all(one.verdict == "met" for one in found if isinstance(one, Row)), found
    return found


def test_the_quick_criteria_are_met(tmp_path: Path) -> None:
    assert_met(secure.sums(5, 100))
    assert_met(secure.dropouts())
    assert_met(privacy.clipping())
    assert_met(privacy.resumed(tmp_path))
    assert_met(crashes.quorum())


def test_a_checkpoint_truncated_anywhere_falls_back(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run") as run:
        run.append(HeaderEvent())
        for number in (1, 2):
            run.save_checkpoint(crashes.METHOD, Checkpoint(number, dict(Toy().state_dict()), {}))
    assert_met(crashes.torn(tmp_path / "run"))


def test_no_forged_adapter_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "MANY", 200_000)
    found = adapters.measure(tmp_path)
    assert (found["accepted"], found["canary"]) == ("", "untouched")
    assert found["kinds"] == len(list(tmp_path.iterdir())) - 1


def test_mutated_messages_are_used_or_refused() -> None:
    reasons, growth = fuzz(270)
    assert reasons.total() == 270 and len(reasons) > 8 and growth > 0
