"""Start, follow and resume runs on a deployment, and list its sites and runs, from the server's shell."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from pathlib import Path

import tomli_w

from fedprompt.config.recipe import Recipe
from fedprompt.demo import DEMO
from fedprompt.deploy.job_keys import overruled
from fedprompt.deploy.server_run import Federation, recorded_events, require_rounds
from fedprompt.deploy.settings import ADMITTED, PROCESS, WAITING, load_deployment
from fedprompt.deploy.stopped import STOPPED, guessed_reason, read_stopped
from fedprompt.errors import UserError
from fedprompt.experiments.context import RunCallbacks
from fedprompt.experiments.run import RECIPE
from fedprompt.records.atomic_files import write_atomic
from fedprompt.records.events import EndEvent, Event, HeaderEvent, RoundEvent, SitesEvent, TrialEvent
from fedprompt.runtimes.flower import commands
from fedprompt.text_files import load_json_object

POLL = 0.5  # seconds between reads of a run's records
NOTICE_AFTER = 30.0  # seconds after which the sites that the run waits for are printed
START_TIMEOUT = 180.0  # seconds within which a run must have begun


def run_on_deployment(recipe: Recipe, folder: Path, out: Path, *, callbacks: RunCallbacks) -> Path:
    """Run a recipe over the sites of a deployment whose server is up; returns the run's folder when it is done.

    Ctrl-C stops following, not the run. Raises UserError with the reason when the run stops.
    """
    if (out / "run.jsonl").exists():
        raise UserError(f"The folder {out} already holds a run; resume it, delete it, or choose another folder.")
    require_rounds(recipe)
    if recipe.backbone.path == DEMO:
        callbacks.on_warning(
            "The recipe names no backbone, so the sites train the tiny CLIP that is embedded for demonstrations; for "
            "images of your own, name one as [backbone] path."
        )
    if ignored := overruled(recipe):
        callbacks.on_warning(
            f"{', '.join(ignored)}: every site splits and reads its images as its own file says, so these keys of the "
            "recipe have no effect there."
        )
    return _submit(recipe.to_toml(), folder, out, callbacks)


def resume_on_deployment(out: Path, *, callbacks: RunCallbacks, accept_changes: bool = False) -> Path:
    """Resume a run over sites from its last finished round."""
    federation = Federation.of(out)
    if federation is None:
        raise UserError(f"The run {out} was not made by a deployment; resume it with: fedprompt resume {out}")
    if is_running(out):
        raise UserError(f"The run {out} is still running; follow it with: fedprompt status {federation.deployment}")
    recipe = (out / RECIPE).read_text(encoding="utf-8")
    return _submit(recipe, Path(federation.deployment), out, callbacks, accept_changes=accept_changes)


def _submit(recipe: str, folder: Path, out: Path, callbacks: RunCallbacks, *, accept_changes: bool = False) -> Path:
    folder, out = folder.resolve(), out.resolve()
    load_deployment(folder)
    out.mkdir(parents=True, exist_ok=True)
    settings = out / ".run-config.toml"
    write_atomic(settings, tomli_w.dumps({"recipe": recipe, "out": str(out), "accept-changes": accept_changes}))
    for name in (PROCESS, STOPPED, WAITING):
        (out / name).unlink(missing_ok=True)
    known = recorded_events(out)
    callbacks.on_step("Submitting the run to the server")
    reply = commands.ask(commands.run(folder / "app", settings), folder)
    if not reply.get("success"):
        raise UserError(f"The server did not accept the run ({reply.get('error-message', reply)}); is it up?")
    try:
        follow(out, callbacks, known=known)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"The run continues; see its status with: fedprompt status {folder}") from interrupt
    return out


def follow(out: Path, callbacks: RunCallbacks, *, known: Sequence[Event] = ()) -> None:
    """Report new events of a run to the callbacks until it is done; UserError with the reason when it stops."""
    begun = time.monotonic()
    reporter = _Reporter(callbacks, known)
    while True:
        alive = is_running(out)  # before the records are read, so that the last of them are not missed
        events = recorded_events(out)
        reporter.report(events)
        if events and isinstance(events[-1], EndEvent) and events[-1].status == "done":
            return
        if (reason := read_stopped(out)) is not None:
            raise UserError(reason)
        starting = not (out / PROCESS).exists() and time.monotonic() - begun < START_TIMEOUT
        if not alive and not starting:
            raise UserError(f"{guessed_reason(out)}, then continue with: fedprompt resume {out}")
        reporter.report_waiting(waiting_for(out))
        time.sleep(POLL)


class _Reporter:
    """Reports new events to callbacks. A resumed run removes the events after its checkpoint, so known ones can go."""

    def __init__(self, callbacks: RunCallbacks, known: Sequence[Event]) -> None:
        self._callbacks, self._known, self._trial, self._waiting = callbacks, known, "", ""
        self._withheld: set[str] = set()

    def report(self, events: Sequence[Event]) -> None:
        """Report the events after those that are known."""
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self._known, events, strict=False)))
        for number, event in enumerate(events[same:], start=same):
            if isinstance(event, RoundEvent):
                self._begin(event.trial, events[:number])
                self._callbacks.on_round(event.round, event.loss)
                for client, reason in event.failed.items():
                    self._callbacks.on_warning(f"In round {event.round}, {_site(client, events)}{_said(reason)}")
            elif isinstance(event, TrialEvent) and event.status == "running":
                self._begin(event.trial, events[: number + 1])
            elif isinstance(event, SitesEvent):
                self._report_withheld(event)
        self._known = events

    def _report_withheld(self, event: SitesEvent) -> None:
        names = {name for name, said in event.sites.items() if said.get("scores") == "withheld"} - self._withheld
        self._withheld |= names
        for name in sorted(names):
            self._callbacks.on_warning(f"{name} withholds the scores and losses of its images, as its policy says.")

    def report_waiting(self, waiting: Waiting | None) -> None:
        """Report the sites that the run has waited for longer than NOTICE_AFTER, whenever they change."""
        names = ", ".join(waiting.sites) if waiting and waiting.seconds >= NOTICE_AFTER else ""
        if names and names != self._waiting:
            self._callbacks.on_message(f"Waiting for {names}.")
        self._waiting = names

    def _begin(self, trial: str, events: Sequence[Event]) -> None:
        if trial == self._trial:
            return
        self._trial = trial
        done, rounds = _progress(trial, events)
        self._callbacks.on_trial(trial, rounds, done)


def _site(client: int, events: Sequence[Event]) -> str:
    """The name of a client's site, or its number where the record has no names."""
    header = next((event for event in events if isinstance(event, HeaderEvent)), None)
    names = header.partition.clients if header is not None and header.partition is not None else ()
    return f"site {names[client] if 0 <= client < len(names) else client}"


def _said(reason: str) -> str:
    """A reason behind the name of its site: a sentence goes on, a code with its sentence stands after a colon."""
    return f": {reason}" if re.match(r"[a-z ]{1,20}: ", reason) else f" {reason}"


def _progress(trial: str, events: Sequence[Event]) -> tuple[int, int]:
    """The last finished round of a trial, and its number of rounds."""
    begun = [event for event in events if isinstance(event, TrialEvent) and event.trial == trial]
    rounds = [event.rounds for event in begun if event.rounds is not None]
    done = [event.round for event in events if isinstance(event, RoundEvent) and event.trial == trial]
    return max(done, default=0), rounds[-1] if rounds else 0


def is_running(out: Path) -> bool:
    """Whether the run's server process is running."""
    try:
        number = int((out / PROCESS).read_text(encoding="utf-8"))
        os.kill(number, 0)
        return b"defunct" not in _command(number)
    except (OSError, ValueError):
        return False


def _command(number: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{number}/cmdline").read_bytes() or b"defunct"
    return b""


@dataclass(frozen=True)
class SiteStatus:
    """The status of a site at the server."""

    name: str
    status: str  # Flower's status "online", "offline" or "registered"; or that its key is missing
    last_seen: float | None = None  # when it was last connected, in seconds since 1970; None: never


@dataclass(frozen=True)
class Waiting:
    """Sites whose answers are missing, and the seconds since their request."""

    sites: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        """E.g. "north, 4 min"."""
        spent = f"{self.seconds / 60:.0f} min" if self.seconds >= 60 else f"{self.seconds:.0f} s"
        return f"{', '.join(self.sites)}, {spent}"


@dataclass(frozen=True)
class RunStatus:
    """The status of a run, from its records."""

    folder: Path
    status: str
    trial: str
    round_number: int
    rounds: int
    waiting: Waiting | None = None


def waiting_for(out: Path) -> Waiting | None:
    """The sites that a run waits for; None if there are none."""
    try:
        fields = load_json_object((out / WAITING).read_bytes())
    except OSError:
        return None
    return Waiting(tuple(fields["sites"]), max(time.time() - fields["since"], 0.0)) if fields["sites"] else None


def sites_of(folder: Path) -> list[SiteStatus]:
    """The status of every site of a deployment; UserError when the server does not answer."""
    folder = folder.resolve()
    deployment = load_deployment(folder)
    reply = commands.ask(commands.nodes(), folder)
    if not reply.get("success"):
        raise UserError(f"The server of {deployment.name} does not answer; start it with: fedprompt server up {folder}")
    listed = reply.get("nodes", [])
    assert isinstance(listed, list)
    found = {str(node["node-id"]): node for node in listed}
    numbers = {path.name.rpartition("-")[0]: path.read_text() for path in (folder / ADMITTED).glob("*-*")}
    return [_site_status(name, found.get(numbers.get(name, ""))) for name in deployment.sites]


def _site_status(name: str, node: Mapping[str, object] | None) -> SiteStatus:
    if node is None:
        return SiteStatus(name, "no key yet")
    last_seen = None
    if node["status"] == "online":
        last_seen = time.time()
    elif node.get("offline-at", "N/A") != "N/A":
        last_seen = datetime.fromisoformat(str(node["offline-at"])).timestamp()
    return SiteStatus(name, str(node["status"]), last_seen)


def runs_of(folder: Path) -> list[RunStatus]:
    """The runs in a deployment's folder, oldest first."""
    return [run_status(path.parent) for path in sorted((folder / "runs").glob("*/run.jsonl"))]


def run_status(out: Path) -> RunStatus:
    """The status of the run in a folder."""
    events = recorded_events(out)
    begun = (event for event in reversed(events) if isinstance(event, TrialEvent) and event.rounds is not None)
    trial = next((event.trial for event in begun), "")
    done, rounds = _progress(trial, events)
    last = events[-1] if events else None
    ended = last.status if isinstance(last, EndEvent) else None
    status = "running" if is_running(out) else ended or "stopped"
    waiting = waiting_for(out) if status == "running" else None
    return RunStatus(out, status, trial, done, rounds, waiting)
