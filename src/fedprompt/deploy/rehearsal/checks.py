"""The rehearsal: a federation on one machine, its doors tried, its processes killed, every bar with its measure."""

from __future__ import annotations

import json
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from fedprompt.config.recipe import Recipe
from fedprompt.deploy.preflight import versions
from fedprompt.deploy.rehearsal.processes import SITES, Say, Stage, control_status, intruder_is_refused, staged
from fedprompt.deploy.server_run import enlisted, events_of
from fedprompt.deploy.settings import DEPLOYMENT, SITE, load_site, save
from fedprompt.deploy.submit import resume_on, run_on
from fedprompt.deploy.worker_socket import ADDRESS, BUSY
from fedprompt.errors import UserError
from fedprompt.experiments import run as runs
from fedprompt.experiments.context import RunCallbacks
from fedprompt.experiments.plan import resolve
from fedprompt.records.events import ResumeEvent, RoundEvent, TrialEvent
from fedprompt.records.run_folder import RunFolder, write_atomic
from fedprompt.updates import State

RESULT = "rehearsal.json"
VICTIM = SITES[1]
VICTIM_ID = SITES.index(VICTIM)
ROUND = 300.0  # seconds within which something must happen in a round, else the rehearsal has failed


@dataclass(frozen=True)
class Row:
    """One promise, the bar it is held to, and what was measured."""

    what: str
    bar: str
    measured: str
    held: bool = True


Act = Callable[[Stage], list[Row]]


class Running:
    """A run over the stage's sites in a thread of its own, to be watched and disturbed."""

    def __init__(self, stage: Stage, name: str, *, rounds: int, resumed: bool = False) -> None:
        self.out = stage.server / "runs" / name
        self.error: Exception | None = None
        train = stage.recipe.train.model_copy(update={"rounds": rounds})
        recipe = enlisted(stage.recipe.model_copy(update={"train": train}), stage.deployment)
        self._thread = threading.Thread(target=self._run, args=(recipe, stage.server, resumed), daemon=True)
        self._thread.start()

    def _run(self, recipe: Recipe, server: Path, resumed: bool) -> None:  # noqa: FBT001  (called by the thread)
        try:
            if resumed:
                resume_on(self.out, callbacks=RunCallbacks())
            else:
                run_on(recipe, server, self.out, callbacks=RunCallbacks())
        except Exception as error:
            self.error = error

    def rounds(self) -> list[RoundEvent]:
        """The rounds so far."""
        return [event for event in events_of(self.out) if isinstance(event, RoundEvent)]

    def wait(self, until: Callable[[list[RoundEvent]], bool]) -> float:
        """Wait until the rounds are so; returns the seconds that took. UserError if the run ends or hangs before."""
        begun = time.monotonic()
        while not until(self.rounds()):
            if not self._thread.is_alive() or time.monotonic() - begun > ROUND:
                raise UserError(f"The rehearsal's run {self.out} did not go on as it should ({self.error}).")
            time.sleep(0.2)
        return time.monotonic() - begun

    def end(self) -> list[RoundEvent]:
        """Wait until it is over and return its rounds; UserError if it failed."""
        self._thread.join()
        if self.error is not None:
            raise UserError(f"The rehearsal's run {self.out} failed: {self.error}")
        return self.rounds()


def rehearse(folder: Path, *, full: bool, say: Say, settings: Sequence[str] = ()) -> list[Row]:
    """Play everything and return the rows; they are also written to `rehearsal.json` in the folder.

    `settings` change the recipe: another backbone, another method.
    """
    acts: list[Act] = [doors, equality, killed_site]
    if full:
        acts += [killed_worker, straggler, killed_server, without_worker]
    rows: list[Row] = []
    with staged(folder, say=say, settings=settings) as stage:
        for act in acts:
            for row in _played(act, stage):
                rows.append(row)
                say(f"{'ok    ' if row.held else 'FAILED'} {row.what}: {row.measured} (bar: {row.bar})")
            _write(folder / RESULT, stage.recipe, rows)
    return rows


def _played(act: Act, stage: Stage) -> list[Row]:
    """The rows of an act, or one that says why it was not played to its end; the others are played all the same."""
    try:
        return act(stage)
    except UserError as error:
        return [Row(act.__name__.replace("_", " "), "is played to its end", str(error), held=False)]


def _write(path: Path, recipe: Recipe, rows: Sequence[Row]) -> None:
    what = {"backbone": Path(recipe.backbone.path).name, "method": recipe.method.name}
    about = {"platform": platform.platform(), "cores": os.cpu_count(), **versions(), **what}
    write_atomic(path, json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=2))


def doors(stage: Stage) -> list[Row]:
    """What the network must not be able to do."""
    rows = []
    if stage.proxied:
        status = control_status(stage)
        rows.append(Row("control call through the proxy", "refused (403)", str(status), status == 403))
    for what, authority in (("site whose key nobody let in", True), ("site without TLS", False)):
        refused = intruder_is_refused(stage, authority=authority)
        rows.append(Row(what, "refused", "refused" if refused else "let in", refused))
    return rows


def equality(stage: Stage) -> list[Row]:
    """An undisturbed run, against the simulator on the same pictures."""
    running = Running(stage, "undisturbed", rounds=3)
    rounds = running.end()
    data = stage.recipe.data.model_copy(
        update={"folders": {name: str(stage.site(name) / "pictures") for name in SITES}}
    )
    train = stage.recipe.train.model_copy(update={"rounds": 3})
    backbone = stage.recipe.backbone.model_copy(update={"device": "cpu"})
    recipe = stage.recipe.model_copy(update={"data": data, "train": train, "backbone": backbone})
    runs.start(resolve(recipe), stage.folder / "simulated")
    same = _same(_model(running.out), _model(stage.folder / "simulated"))
    late = _overheads(rounds[1:])
    return [
        Row("global model of processes and of the simulator", "equal to the bit", "equal" if same else "differs", same),
        Row("overhead of a round with a resident worker", "at most 8 s", f"{median(late):.1f} s", median(late) <= 8),
        Row("bytes a site sends a round", "what it trained", f"{max(rounds[-1].bytes_up.values()):,}"),
    ]


def killed_site(stage: Stage) -> list[Row]:
    """SIGKILL a site, all of it; the run goes on, and the site comes back under its own key."""
    running = Running(stage, "killed-site", rounds=5)
    running.wait(lambda rounds: len(rounds) >= 1)
    stage.stop(VICTIM, signal.SIGKILL)
    running.wait(lambda rounds: any(VICTIM_ID in event.failed for event in rounds))
    missed = running.rounds()[-1].round
    stage.start_site(VICTIM)
    seconds = running.wait(lambda rounds: _first_with_victim(rounds, after=missed) is not None)
    joined = _first_with_victim(running.rounds(), after=missed)
    seconds -= _seconds(joined) if joined else 0.0  # a site that was given up is asked in no round before it is back
    rounds = running.end()
    deadline = stage.deployment.deadline
    longest = max(map(_seconds, rounds))
    return [
        Row("site killed in a round", "the run completes", f"{len(rounds)} of 5 rounds", len(rounds) == 5),
        Row("longest round then", f"deadline {deadline:.0f} s + 5 s", f"{longest:.1f} s", longest <= deadline + 5),
        Row("site back, with the same key", "within 15 s", f"in a round begun {seconds:.0f} s later", seconds <= 15),
    ]


def killed_worker(stage: Stage) -> list[Row]:
    """SIGKILL the worker while it trains: the site says so, and takes part again in a next round."""
    running = Running(stage, "killed-worker", rounds=5)
    running.wait(lambda rounds: len(rounds) >= 1)
    while not _kill_busy_worker(stage.site(VICTIM)):
        time.sleep(0.05)
    rounds = running.end()
    failed = [event.round for event in rounds if VICTIM_ID in event.failed]
    back = any(event.round > max(failed, default=9) and VICTIM_ID in event.losses for event in rounds)
    said = f"missed {failed}, {'back' if back else 'not back'}"
    return [Row("worker killed while it trains", "the run completes, the site is back", said, back)]


def straggler(stage: Stage) -> list[Row]:
    """Freeze a site's worker for longer than the deadline: rounds end in time without it."""
    running = Running(stage, "straggler", rounds=4)
    running.wait(lambda rounds: len(rounds) >= 1)
    deadline, worker = stage.deployment.deadline, _worker_of(stage.site(VICTIM))
    os.kill(worker, signal.SIGSTOP)
    try:
        running.wait(lambda rounds: any(VICTIM_ID in event.failed for event in rounds))
    finally:
        os.kill(worker, signal.SIGCONT)
    longest = max(map(_seconds, running.end()))
    what = "longest round with a straggler"
    return [Row(what, f"deadline {deadline:.0f} s + 5 s", f"{longest:.1f} s", longest <= deadline + 5)]


def killed_server(stage: Stage) -> list[Row]:
    """SIGKILL the server, start it again, resume: the sites are left alone."""
    running = Running(stage, "killed-server", rounds=4)
    running.wait(lambda rounds: len(rounds) >= 2)
    stage.stop("server", signal.SIGKILL)
    with suppress(UserError):
        running.end()
    before = len(running.rounds())
    stage.start_server()
    stage.wait_for_sites()
    rounds = Running(stage, "killed-server", rounds=4, resumed=True).end()
    resumed = [event.round for event in events_of(running.out) if isinstance(event, ResumeEvent)]
    numbers = [event.round for event in rounds]
    held = numbers == [1, 2, 3, 4] and bool(resumed) and resumed[-1] >= before - 1
    said = f"killed after round {before}, went on after round {resumed[-1] if resumed else '?'}"
    return [Row("server killed, started, resumed", "goes on at the next round", said, held)]


def without_worker(stage: Stage) -> list[Row]:
    """The same rounds when every message loads torch and the backbone anew, which may take long."""
    stage.deployment = stage.deployment.model_copy(update={"deadline": 5 * stage.deployment.deadline})
    save(stage.server / DEPLOYMENT, stage.deployment)
    for name in SITES:
        stage.stop(name)
        save(stage.site(name) / SITE, load_site(stage.site(name)).model_copy(update={"worker": False}))
        stage.start_site(name)
    stage.wait_for_sites()
    late = _overheads(Running(stage, "without-worker", rounds=3).end()[1:])
    return [Row("overhead of a round without a worker", "none", f"{median(late):.1f} s")]


def _first_with_victim(rounds: Sequence[RoundEvent], *, after: int) -> RoundEvent | None:
    return next((event for event in rounds if event.round > after and VICTIM_ID in event.losses), None)


def _seconds(event: RoundEvent) -> float:
    return event.seconds or 0.0


def _overheads(rounds: Sequence[RoundEvent]) -> list[float]:
    """Seconds of each round in which nobody trained."""
    return [
        _seconds(event) - max(seconds or 0.0 for seconds in event.site_seconds.values())
        for event in rounds
        if event.site_seconds
    ]


def _model(out: Path) -> State:
    with RunFolder.open(out) as run:
        trial = next(event.trial for event in run.events() if isinstance(event, TrialEvent))
        checkpoint = run.load_checkpoint(trial)
    return checkpoint.shared if checkpoint else {}


def _same(ours: State, theirs: State) -> bool:
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def _worker_of(folder: Path) -> int:
    return int(json.loads((folder / ADDRESS).read_text(encoding="utf-8"))["process"])


def _kill_busy_worker(folder: Path) -> bool:
    """Kill the worker if it works on a request."""
    if not (folder / BUSY).exists():
        return False
    os.kill(_worker_of(folder), signal.SIGKILL)
    return True
