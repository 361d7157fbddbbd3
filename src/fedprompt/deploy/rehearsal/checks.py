"""Checks of a rehearsal: access is refused, processes are killed, and each acceptance criterion is measured."""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from fedprompt.config.recipe import Recipe
from fedprompt.deploy.preflight import versions
from fedprompt.deploy.rehearsal.processes import (
    SITES,
    LocalFederation,
    Say,
    control_status,
    intruder_is_refused,
    local_federation,
)
from fedprompt.deploy.server_run import recorded_events, with_deployment_sites
from fedprompt.deploy.settings import DEPLOYMENT, SITE, load_site, save
from fedprompt.deploy.submit import resume_on_deployment, run_on_deployment
from fedprompt.deploy.worker_socket import BUSY, worker_number
from fedprompt.errors import UserError
from fedprompt.experiments import run as runs
from fedprompt.experiments.context import RunCallbacks
from fedprompt.experiments.plan import resolve
from fedprompt.records.atomic_files import write_atomic
from fedprompt.records.events import ResumeEvent, RoundEvent, TrialEvent
from fedprompt.records.run_folder import RunFolder
from fedprompt.text_files import json_text
from fedprompt.updates import State

RESULT = "rehearsal.json"
DISTURBED = SITES[1]
DISTURBED_ID = SITES.index(DISTURBED)
TIMEOUT = 300.0  # seconds after which a run that does not progress has failed


@dataclass(frozen=True)
class CheckResult:
    """One acceptance criterion with its measurement."""

    what: str
    criterion: str
    measured: str
    met: bool = True


Check = Callable[[LocalFederation], list[CheckResult]]


class BackgroundRun:
    """A run over the federation's sites in its own thread, while the checks disturb it."""

    def __init__(self, federation: LocalFederation, name: str, *, rounds: int, resumed: bool = False) -> None:
        self.out = federation.server / "runs" / name
        self.error: Exception | None = None
        train = federation.recipe.train.model_copy(update={"rounds": rounds})
        recipe = with_deployment_sites(federation.recipe.model_copy(update={"train": train}), federation.deployment)
        self._thread = threading.Thread(target=self._run, args=(recipe, federation.server, resumed), daemon=True)
        self._thread.start()

    def _run(self, recipe: Recipe, server: Path, resumed: bool) -> None:  # noqa: FBT001  (called by the thread)
        try:
            if resumed:
                resume_on_deployment(self.out, callbacks=RunCallbacks())
            else:
                run_on_deployment(recipe, server, self.out, callbacks=RunCallbacks())
        except Exception as error:
            self.error = error

    def rounds(self) -> list[RoundEvent]:
        """The events of the rounds so far."""
        return [event for event in recorded_events(self.out) if isinstance(event, RoundEvent)]

    def wait(self, until: Callable[[list[RoundEvent]], bool], *, poll: float = 0.2) -> float:
        """Wait until the rounds satisfy `until`; returns the seconds. UserError if the run ends or hangs before.

        `poll` is in seconds.
        """
        begun = time.monotonic()
        while not until(self.rounds()):
            if not self._thread.is_alive():
                why = f": {self.error}" if self.error else " before that was seen; try again on a machine that is idle."
                raise UserError(f"The rehearsal's run {self.out} ended{why}")
            if time.monotonic() - begun > TIMEOUT:
                raise UserError(f"The rehearsal's run {self.out} made no progress for {TIMEOUT:.0f} s; see its logs.")
            time.sleep(poll)
        return time.monotonic() - begun

    def end(self) -> list[RoundEvent]:
        """Wait for the end and return the rounds; UserError if the run failed."""
        self._thread.join()
        if self.error is not None:
            raise UserError(f"The rehearsal's run {self.out} failed: {self.error}")
        return self.rounds()


def rehearse(folder: Path, *, full: bool, say: Say, settings: Sequence[str] = ()) -> list[CheckResult]:
    """Run the checks and return their results, which are also written to `rehearsal.json` in the folder.

    `settings` override keys of the recipe, e.g. the backbone or the method.
    """
    checks: list[Check] = [refused_access, equality, killed_site]
    if full:
        checks += [killed_worker, straggler, killed_server, without_worker]
    results: list[CheckResult] = []
    with local_federation(folder, say=say, settings=settings) as federation:
        for check in checks:
            for one in _results(check, federation):
                results.append(one)
                say(f"{'ok    ' if one.met else 'FAILED'} {one.what}: {one.measured} (criterion: {one.criterion})")
            write_results(folder / RESULT, federation.recipe, [asdict(one) for one in results])
    return results


def _results(check: Check, federation: LocalFederation) -> list[CheckResult]:
    """The results of a check, or one that says why it could not be completed; the other checks run in any case."""
    try:
        return check(federation)
    except UserError as error:
        return [CheckResult(check.__name__.replace("_", " "), "completes", str(error), met=False)]


def write_results(path: Path, recipe: Recipe, results: Sequence[Mapping[str, object]]) -> None:
    """Write results with what they were measured with: platform, versions, backbone and method."""
    what = {"backbone": Path(recipe.backbone.path).name, "method": recipe.method.name}
    about = {"platform": platform.platform(), "cores": os.cpu_count(), **versions(), **what}
    write_atomic(path, json_text({"about": about, "results": results}, indent=2))


def refused_access(federation: LocalFederation) -> list[CheckResult]:
    """Requests from the network that must be refused."""
    results = []
    if federation.proxied:
        status = control_status(federation)
        results.append(CheckResult("control call through the proxy", "refused (403)", str(status), status == 403))
    for what, authority in (("site with an unregistered key", True), ("site without TLS", False)):
        refused = intruder_is_refused(federation, authority=authority)
        results.append(CheckResult(what, "refused", "refused" if refused else "accepted", refused))
    return results


def equality(federation: LocalFederation) -> list[CheckResult]:
    """An undisturbed run equals the simulator's on the same images, bit for bit."""
    running = BackgroundRun(federation, "undisturbed", rounds=3)
    rounds = running.end()
    data = federation.recipe.data.model_copy(
        update={"folders": {name: str(federation.site(name) / "images") for name in SITES}}
    )
    train = federation.recipe.train.model_copy(update={"rounds": 3})
    backbone = federation.recipe.backbone.model_copy(update={"device": "cpu"})
    recipe = federation.recipe.model_copy(update={"data": data, "train": train, "backbone": backbone})
    runs.start(resolve(recipe), federation.folder / "simulated")
    same = _same(_model(running.out), _model(federation.folder / "simulated"))
    late = _overheads(rounds[1:])
    return [
        CheckResult(
            "global model of processes and of the simulator", "equal to the bit", "equal" if same else "differs", same
        ),
        CheckResult(
            "overhead of a round with a resident worker", "at most 8 s", f"{median(late):.1f} s", median(late) <= 8
        ),
        CheckResult("bytes that a site sends per round", "none", f"{max(rounds[-1].bytes_up.values()):,}"),
    ]


def killed_site(federation: LocalFederation) -> list[CheckResult]:
    """SIGKILL a whole site: the run continues, and the site rejoins with the same key."""
    planned = 8  # enough that the site, which opens its backbone first, is back before the end
    running = BackgroundRun(federation, "killed-site", rounds=planned)
    running.wait(lambda rounds: len(rounds) >= 1)
    federation.stop(DISTURBED, signal.SIGKILL)
    running.wait(lambda rounds: any(DISTURBED_ID in event.failed for event in rounds))
    missed = running.rounds()[-1].round
    federation.start_site(DISTURBED)
    seconds = running.wait(lambda rounds: _first_with_disturbed(rounds, after=missed) is not None)
    joined = _first_with_disturbed(running.rounds(), after=missed)
    seconds -= _seconds(joined) if joined else 0.0  # the round that it rejoins
    rounds = running.end()
    deadline = federation.deployment.deadline
    longest = max(map(_seconds, rounds))
    return [
        CheckResult(
            "site killed in a round", "the run completes", f"{len(rounds)} of {planned} rounds", len(rounds) == planned
        ),
        CheckResult(
            "longest round after a site was killed",
            f"deadline {deadline:.0f} s + 5 s",
            f"{longest:.1f} s",
            longest <= deadline + 5,
        ),
        CheckResult(
            "site rejoins with the same key", "within 15 s", f"in a round begun {seconds:.0f} s later", seconds <= 15
        ),
    ]


def killed_worker(federation: LocalFederation) -> list[CheckResult]:
    """SIGKILL the worker while it trains: the site reports it and takes part again in a later round."""
    running = BackgroundRun(federation, "killed-worker", rounds=5)
    running.wait(lambda rounds: len(rounds) >= 1)
    signal_busy_worker(running, federation.site(DISTURBED), signal.SIGKILL)
    rounds = running.end()
    failed = [event.round for event in rounds if DISTURBED_ID in event.failed]
    back = any(event.round > max(failed, default=9) and DISTURBED_ID in event.losses for event in rounds)
    measured = f"missed {failed}, {'rejoined' if back else 'did not rejoin'}"
    return [CheckResult("worker killed while it trains", "the run completes, the site rejoins", measured, back)]


def straggler(federation: LocalFederation) -> list[CheckResult]:
    """Suspend a site's worker while it trains, for longer than the deadline: rounds end in time without it.

    A worker that is suspended between two messages is no straggler: the site answers the next one without it.
    """
    running, deadline = BackgroundRun(federation, "straggler", rounds=4), federation.deployment.deadline
    running.wait(lambda rounds: len(rounds) >= 1)
    worker = signal_busy_worker(running, federation.site(DISTURBED), signal.SIGSTOP)
    try:
        running.wait(lambda rounds: any(DISTURBED_ID in event.failed for event in rounds))
    finally:
        os.kill(worker, signal.SIGCONT)
    longest = max(map(_seconds, running.end()))
    what = "longest round with a straggler"
    return [CheckResult(what, f"deadline {deadline:.0f} s + 5 s", f"{longest:.1f} s", longest <= deadline + 5)]


def killed_server(federation: LocalFederation) -> list[CheckResult]:
    """SIGKILL the server, restart it and resume, without touching the sites."""
    running = BackgroundRun(federation, "killed-server", rounds=4)
    running.wait(lambda rounds: len(rounds) >= 2)
    federation.stop("server", signal.SIGKILL)
    with suppress(UserError):
        running.end()
    before = len(running.rounds())
    federation.start_server()
    federation.wait_for_sites()
    rounds = BackgroundRun(federation, "killed-server", rounds=4, resumed=True).end()
    resumed = [event.round for event in recorded_events(running.out) if isinstance(event, ResumeEvent)]
    numbers = [event.round for event in rounds]
    met = numbers == [1, 2, 3, 4] and bool(resumed) and resumed[-1] >= before - 1
    measured = f"killed after round {before}, resumed after round {resumed[-1] if resumed else '?'}"
    return [CheckResult("server killed, restarted, resumed", "continues with the next round", measured, met)]


def without_worker(federation: LocalFederation) -> list[CheckResult]:
    """The overhead when every message imports torch and loads the backbone, which may take long."""
    federation.deployment = federation.deployment.model_copy(update={"deadline": 5 * federation.deployment.deadline})
    save(federation.server / DEPLOYMENT, federation.deployment)
    for name in SITES:
        federation.stop(name)
        save(federation.site(name) / SITE, load_site(federation.site(name)).model_copy(update={"worker": False}))
        federation.start_site(name)
    federation.wait_for_sites()
    late = _overheads(BackgroundRun(federation, "without-worker", rounds=3).end()[1:])
    return [CheckResult("overhead of a round without a worker", "none", f"{median(late):.1f} s")]


def _first_with_disturbed(rounds: Sequence[RoundEvent], *, after: int) -> RoundEvent | None:
    return next((event for event in rounds if event.round > after and DISTURBED_ID in event.losses), None)


def _seconds(event: RoundEvent) -> float:
    return event.seconds or 0.0


def _overheads(rounds: Sequence[RoundEvent]) -> list[float]:
    """Seconds of each round beyond the training time of its slowest site."""
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


def signal_busy_worker(running: BackgroundRun, folder: Path, number: signal.Signals) -> int:
    """Wait until a site's worker answers a request, send it a signal, and return its process."""
    running.wait(lambda _: (folder / BUSY).exists(), poll=0.05)
    process = worker_number(folder, "process")
    os.kill(process, number)
    return process
