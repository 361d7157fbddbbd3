"""Criteria for crashes and resumes: kills, truncated checkpoints, a full disk, a missing quorum, memory over rounds."""

from __future__ import annotations

import itertools
import logging
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from benchmarks.acceptance.criteria import ROOT, Criterion, Row, proof, row
from benchmarks.acceptance.subprocesses import WARM, kept_round, recipe, run_in_process
from benchmarks.mutations import SHARED, Bare
from fedprompt.errors import UserError
from fedprompt.experiments import run as runs
from fedprompt.experiments.plan import resolve
from fedprompt.federated.rounds import federate
from fedprompt.records.checkpoints import Checkpoint
from fedprompt.records.events import BaseEvent, RoundEvent, ScoreEvent
from fedprompt.records.run_folder import RunFolder, read_events
from fedprompt.runtimes.payload import Payload
from fedprompt.runtimes.remote import MISSED_ROUNDS, Remote, RemoteSettings
from fedprompt.updates import State

METHOD, CLIENTS, ROUNDS = "fedotp", 4, 12  # a method with tensors that stay at clients: a checkpoint has them all
KILLS = 3
Kind = TypeVar("Kind", bound=BaseEvent)
TIMEOUT = 120.0  # seconds in which a process must reach a round
EVERY = 10  # bytes between two positions at which a checkpoint is truncated
MEASURES: dict[type[BaseEvent], tuple[str, ...]] = {
    RoundEvent: ("clients", "loss", "losses", "bytes_up"),
    ScoreEvent: ("split", "figures", "per_class"),
}


def criteria(folder: Path) -> Iterator[Criterion]:
    """All criteria for crashes."""
    whole, killed = folder / "whole", folder / "killed"
    small = recipe(METHOD, clients=CLIENTS, rounds=ROUNDS)
    runs.start(resolve(small), whole)
    recipe_file = folder / "recipe.toml"
    recipe_file.write_text(small.to_toml(), encoding="utf-8")
    lost = killed_and_resumed(recipe_file, killed)
    yield from compared(whole, killed, lost)
    yield from torn(shutil.copytree(whole, folder / "torn"))
    yield proof(
        "the same in the folder of a deployment's run",
        "falls back, and comes to the same bits",
        "test_runtimes_flower_grid.py::test_a_torn_checkpoint_over_the_grid_falls_back_to_the_same_bits",
    )
    yield full_disk(folder)
    yield from quorum()
    yield grown(folder)


def killed_and_resumed(recipe_file: Path, out: Path) -> list[int]:
    """SIGKILL a run in randomly chosen rounds and resume it each time; returns the recorded rounds that were lost."""
    lost, command = [], ["run", str(recipe_file), "--out", str(out), "--quiet"]
    recorded = 0
    for number in sorted(secrets.SystemRandom().sample(range(1, ROUNDS - 1), KILLS)):
        with process(command) as running:
            wait_for(out, max(number, recorded + 1), running)  # a round of this process, not of the previous one
            time.sleep(secrets.randbelow(100) / 500)  # any moment of a round, while it trains or saves
            running.kill()
        recorded = max((event.round for event in events(out, RoundEvent)), default=0)
        lost.append(recorded - kept_round(out, METHOD))
        command = ["resume", str(out), "--quiet"]
    with process(command) as running:
        assert running.wait() == 0, "the last resume must finish"
    return lost


@contextmanager
def process(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A fedprompt command as a process, killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-m", "fedprompt", *command], cwd=ROOT, stdout=subprocess.DEVNULL
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def wait_for(out: Path, number: int, running: subprocess.Popen[bytes]) -> None:
    """Wait until the round is recorded."""
    end = time.monotonic() + TIMEOUT
    while not any(event.round >= number for event in events(out, RoundEvent)):
        assert running.poll() is None and time.monotonic() < end, "the run did not reach the round in time"
        time.sleep(0.01)


def events(out: Path, kind: type[Kind]) -> list[Kind]:
    """The events of a kind in a run that may not have begun."""
    return [event for event in read_events(out) if isinstance(event, kind)] if (out / "run.jsonl").exists() else []


def compared(whole: Path, killed: Path, lost: list[int]) -> Iterator[Criterion]:
    """The killed run, compared with an undisturbed one."""
    one, other = (last(place) for place in (whole, killed))
    equal = same(tensors(one), tensors(other)) and one.round_number == other.round_number
    what = f"{METHOD}, SIGKILL in {len(lost)} of {ROUNDS} rounds by chance, resumed"
    yield row(what, "final tensors equal to the bit", "equal" if equal else "differ", met=equal)
    figures = [measures(place) for place in (whole, killed)]
    count, alike = len(figures[0]), figures[0] == figures[1]
    yield row(what, "metrics identical", f"{count} lines {'equal' if alike else 'differ'}", met=alike)
    yield row(what, "loses at most one round", f"{max(lost)} recorded rounds at most", met=max(lost) <= 1)


def last(place: Path) -> Checkpoint:
    """The newest checkpoint."""
    with RunFolder.open(place) as run:
        found = run.load_checkpoint(METHOD)
    assert found is not None
    return found


def tensors(checkpoint: Checkpoint) -> State:
    """All tensors of a checkpoint, the personal ones included."""
    own = {f"{client}/{name}": one for client, state in checkpoint.personal.items() for name, one in state.items()}
    return {**checkpoint.shared, **checkpoint.memory, **own}


def same(ours: State, theirs: State) -> bool:
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def measures(place: Path) -> list[Mapping[str, object]]:
    """What a run recorded of rounds and scores, without times."""
    return [
        {key: getattr(event, key) for key in keys} for kind, keys in MEASURES.items() for event in events(place, kind)
    ]


def torn(place: Path) -> Iterator[Criterion]:
    """Truncate the newest checkpoint at every tenth byte."""
    newest = max((place / "checkpoints").iterdir())
    content, wanted = newest.read_bytes(), int(newest.stem.rpartition("@")[2]) - 1
    found, warnings = 0, Counting()
    log = logging.getLogger("fedprompt.records.run_folder")
    log.addHandler(warnings)
    log.propagate = False
    with RunFolder.open(place) as run:
        for cut in range(0, len(content), EVERY):
            newest.write_bytes(content[:cut])
            kept = run.load_checkpoint(METHOD)
            found += kept is not None and kept.round_number == wanted
    log.removeHandler(warnings)
    log.propagate = True
    cuts = len(range(0, len(content), EVERY))
    yield row(
        f"newest checkpoint cut at every {EVERY}th byte",
        "falls back to the one before with a warning",
        f"{found} of {cuts} fall back, {warnings.count} warnings",
        met=found == cuts == warnings.count,
    )


class Counting(logging.Handler):
    """Counts warnings."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count a record."""
        self.count += record.levelno == logging.WARNING


def full_disk(folder: Path) -> Row:
    """A file system that fills up during a run; needs Linux's user namespaces."""
    what, criterion = (
        "disk full while a run saves",
        "a clear error, the last checkpoint intact; goes on once there is room",
    )
    place = folder / "disk"
    place.mkdir()
    try:
        within = ("unshare", "--map-root-user", "--mount")
        found = run_in_process("full_disk", place, METHOD, CLIENTS, 4, within=within)
    except (OSError, subprocess.CalledProcessError):
        return Row(what, criterion, "this machine lets nobody mount a file system", "not measured")
    clear = "disk is full" in str(found["said"]) and found["kept"] == 2
    said = (
        f'"{str(found["said"]).partition(": ")[2]}" Kept: round {found["kept"]}; resumed to round {found["last"]} of 4'
    )
    return row(what, criterion, said, met=clear and found["last"] == 4)


def quorum() -> Iterator[Criterion]:
    """Three sites that do not answer, with a quorum of two."""

    class Silent:
        def ask(self, payloads: Mapping[str, Payload], *, deadline: float) -> dict[str, Payload | str]:
            return dict.fromkeys(payloads, "did not answer.")

    transport = Remote(Bare(), Silent(), RemoteSettings(("a", "b", "c"), quorum=2), {})
    skipped, unchanged, said = 0, True, ""
    with suppress(StopIteration):
        rounds = federate(Bare(), transport, clients=range(3), rounds=9, seed=1)
        for number in itertools.count(1):
            try:
                record = next(rounds)
            except UserError as error:
                said = f"paused in round {number}" if "Paused" in str(error) else str(error)
                break
            skipped += bool(transport.notes.skipped)
            unchanged &= same(record.shared, SHARED)
    met = unchanged and said == f"paused in round {MISSED_ROUNDS}" and skipped == MISSED_ROUNDS - 1
    yield row(
        "fewer answers than the quorum",
        f"rounds skipped, model unchanged, the run pauses after {MISSED_ROUNDS} in a row",
        f"{skipped} skipped, model {'unchanged' if unchanged else 'changed'}, {said}",
        met=met,
    )


def grown(folder: Path, rounds: int = 200) -> Row:
    """Resident memory over many rounds."""
    found = run_in_process("memory", folder / "memory", rounds)
    warm, most = float(found["warm"]), float(found["most"])
    said = f"{100 * (most / warm - 1):+.1f}% ({warm:.0f} to {most:.0f} MiB)"
    what = f"memory over {rounds} rounds of 10 clients, promptfl"
    return row(what, f"grows at most 5% after round {WARM}", said, met=most <= 1.05 * warm)
