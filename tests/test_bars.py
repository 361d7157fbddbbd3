"""The command that measures every bar: what it says of what is there, late, wrong or missing; and its quick parts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from benchmarks import robustness
from benchmarks.bars import adapters, attacks, crashes, privacy, processes, rows, secure
from benchmarks.bars.__main__ import page
from benchmarks.bars.rows import Bar, Proof, Row, row, settled
from benchmarks.mutations import fuzz
from benchmarks.robustness import BROKEN, Bench, Case, Found, cases

from fedprompt.records.events import HeaderEvent
from fedprompt.records.run_folder import Checkpoint, RunFolder
from toys import Toy

BENCH = Bench("promptfl", 20)


def of(bars: object) -> dict[str, str]:
    return {f"{bar.what}: {bar.bar}": bar.verdict for bar in bars if isinstance(bar, Row)}


def test_a_training_nobody_has_measured_is_said_to_be_so() -> None:
    assert set(of(attacks.bars(BENCH, {})).values()) == {"not measured"}


def test_attacks_are_held_to_their_bars() -> None:
    found = {case: Found(0.8, 40 if case.attack in BROKEN else 0) for case in cases()}
    for attack in attacks.MUST_WITHSTAND:
        found[Case(attack=attack)] = Found(0.4, 0)
    assert set(of(attacks.bars(BENCH, found)).values()) == {"held", "no criterion"}
    found[Case("median", "gaussian")] = Found(0.75, 0)
    found[Case(attack="broken.nan")] = Found(0.8, 39)
    found[Case("krum", partition="one_tenth")] = Found(0.76, 0)
    missed = [what for what, verdict in of(attacks.bars(BENCH, found)).items() if verdict == "not met"]
    assert [what.split()[0] for what in missed] == ["2", "median", "krum"]


def test_a_rehearsal_is_read_and_what_it_lacks_is_named(tmp_path: Path) -> None:
    lines = [
        {"what": "site back, with the same key", "bar": "later", "measured": "after 21 s", "held": False},
        {"what": "longest round then", "bar": "deadline 120 s + 5 s", "measured": "50.4 s", "held": True},
        {"what": "overhead without a worker", "bar": "none", "measured": "9 s", "held": True},
        {"what": "door", "bar": "refused", "measured": "let in", "held": False},
    ]
    (tmp_path / processes.RESULT).write_text(json.dumps({"about": {"flwr": "1.41.0"}, "rows": lines}))
    found = {bar.what: bar.verdict for bar in processes.bars([tmp_path]) if isinstance(bar, Row)}
    assert [found[line["what"]] for line in lines] == ["not met", "held", "no criterion", "not met"]
    assert list(found.values()).count("not measured") == len(processes.PROMISES) - 2


def test_tests_prove_what_only_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = {"a.py::x": ["passed", "passed"], "a.py::y": ["passed", "skipped"], "b.py::z": ["failure"]}
    monkeypatch.setattr(rows, "ran", lambda tests: {name: outcomes[name] for name in tests if name in outcomes})
    proofs = [Proof("", "", names) for names in (("a.py::x",), ("a.py::x", "a.py::y"), ("b.py::z",), ("c.py::gone",))]
    assert [one.verdict for one in settled({"t": proofs})["t"]] == ["held", "not measured", "not met", "not met"]


def test_every_test_that_proves_something_is_there() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    source = "".join(path.read_text(encoding="utf-8") for path in Path(rows.__file__).parent.glob("*.py"))
    named = re.findall(r"::(test_\w+)", source)
    assert len(named) > 30 and [name for name in named if f"def {name}(" not in tests] == []


def test_the_page_counts_its_verdicts_and_keeps_its_columns() -> None:
    lines: list[Row] = [row("a | b", "c\nd", "e", held=False), Row("x", "y", "-", "not measured")]
    text = page({"Title": lines}, command="python", minutes=2.0)
    assert "Of 2: 1 not met, 1 not measured." in text and "| a \\| b | c d | e | **not met** | here |" in text


def test_robustness_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, measured = tmp_path / "results.jsonl", []

    def measure(bench: Bench, case: Case) -> Found:
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(case)
        return Found(0.5 + len(measured) / 100, 0)

    monkeypatch.setattr(Bench, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        BENCH.go_on(path)
    first, measured[:] = list(measured), []
    monkeypatch.setattr(robustness, "cases", lambda: list(cases())[:5])
    found = BENCH.go_on(path)
    assert not set(first) & set(measured) and len(found) == 5 and found == BENCH.read(path)
    assert not Bench("promptfl", 21).read(path), "results of other settings are not these"


def held(bars: object) -> list[Bar]:
    found = list(bars)
    assert found and all(bar.verdict == "held" for bar in found if isinstance(bar, Row)), found
    return found


def test_the_quick_parts_hold_here(tmp_path: Path) -> None:
    held(secure.sums(5, 100))
    held(secure.dropouts())
    held(privacy.clipping())
    held(privacy.resumed(tmp_path))
    held(crashes.quorum())


def test_a_checkpoint_is_torn_everywhere(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run") as run:
        run.append(HeaderEvent())
        for number in (1, 2):
            run.save_checkpoint(crashes.METHOD, Checkpoint(number, dict(Toy().state_dict()), {}))
    held(crashes.torn(tmp_path / "run"))


def test_no_forged_adapter_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "MANY", 200_000)
    found = adapters.measure(tmp_path)
    assert (found["accepted"], found["canary"]) == ("", "untouched")
    assert found["kinds"] == len(list(tmp_path.iterdir())) - 1


def test_mutated_messages_are_used_or_refused() -> None:
    reasons, growth = fuzz(270)
    assert reasons.total() == 270 and len(reasons) > 8 and growth > 0
