"""Runs on a deployment, from the server's shell: start one, follow it by its records, go on with it, look around."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import tomli_w

from fedprompt.config.recipe import Recipe
from fedprompt.deploy.server_run import Federation, events_of
from fedprompt.deploy.settings import ADMITTED, PROCESS, STOPPED, WAITING, load_deployment
from fedprompt.errors import UserError
from fedprompt.experiments.context import RunCallbacks
from fedprompt.experiments.run import RECIPE
from fedprompt.records.events import EndEvent, Event, RoundEvent, TrialEvent
from fedprompt.records.run_folder import write_atomic
from fedprompt.runtimes.flower import commands

TICK = 0.5  # seconds between looks at a run's records
PATIENCE = 30.0  # seconds after which it is said who is waited for
BIRTH = 180.0  # seconds within which a run must have begun


def run_on(recipe: Recipe, folder: Path, out: Path, *, callbacks: RunCallbacks) -> Path:
    """Run a recipe over the sites of a deployment whose server is up; returns the run's folder when it is done.

    Ctrl-C ends the looking on, not the run. Raises UserError with the reason when the run stops.
    """
    if (out / "run.jsonl").exists():
        raise UserError(f"The folder {out} already holds a run; resume it or choose another folder.")
    return _submit(recipe.to_toml(), folder, out, callbacks)


def resume_on(out: Path, *, callbacks: RunCallbacks) -> Path:
    """Go on with a run over sites from its last finished round."""
    federation = Federation.of(out)
    if federation is None:
        raise UserError(f"The run {out} was not made by a deployment; resume it with: fedprompt resume {out}")
    if _alive(out):
        raise UserError(f"The run {out} is still going on; follow it with: fedprompt status {federation.deployment}")
    return _submit((out / RECIPE).read_text(encoding="utf-8"), Path(federation.deployment), out, callbacks)


def _submit(recipe: str, folder: Path, out: Path, callbacks: RunCallbacks) -> Path:
    folder, out = folder.resolve(), out.resolve()
    load_deployment(folder)
    out.mkdir(parents=True, exist_ok=True)
    settings = out / ".run-config.toml"
    write_atomic(settings, tomli_w.dumps({"recipe": recipe, "out": str(out)}))
    for name in (PROCESS, STOPPED, WAITING):
        (out / name).unlink(missing_ok=True)
    told = events_of(out)
    callbacks.on_step("Handing the run to the server")
    said = commands.ask(commands.run(folder / "app", settings), folder)
    if not said.get("success"):
        raise UserError(f"The server did not take the run ({said.get('error-message', said)}); is it up?")
    try:
        follow(out, callbacks, told=told)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(
            f"The run goes on without you; see how it stands with: fedprompt status {folder}"
        ) from interrupt
    return out


def follow(out: Path, callbacks: RunCallbacks, *, told: Sequence[Event] = ()) -> None:
    """Tell the callbacks what a run records, until it is done; UserError with the reason when it stops."""
    begun = time.monotonic()
    teller = _Teller(callbacks, told)
    while True:
        alive = _alive(out)  # before the records are read, so that the last of them are not missed
        events = events_of(out)
        teller.tell(events)
        if events and isinstance(events[-1], EndEvent) and events[-1].status == "done":
            return
        if (out / STOPPED).exists():
            raise UserError((out / STOPPED).read_text(encoding="utf-8"))
        unborn = not (out / PROCESS).exists() and time.monotonic() - begun < BIRTH
        if not alive and not unborn:
            raise UserError(f"The run {out} stopped without a word; go on with: fedprompt resume {out}")
        teller.wait_for(waited_for(out))
        time.sleep(TICK)


class _Teller:
    """Tells a callbacks what is new in records; a run that goes on takes back those that its checkpoint does not hold."""

    def __init__(self, callbacks: RunCallbacks, told: Sequence[Event]) -> None:
        self._watch, self._told, self._trial, self._named = callbacks, told, "", ""

    def tell(self, events: Sequence[Event]) -> None:
        """Tell what comes after the beginning that is known."""
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self._told, events, strict=False)))
        for number, event in enumerate(events[same:], start=same):
            if isinstance(event, RoundEvent):
                self._begin(event.trial, events[:number])
                self._watch.on_round(event.round, event.loss)
                for client, reason in event.failed.items():
                    self._watch.on_warning(f"In round {event.round}, site {client} {reason}")
            elif isinstance(event, TrialEvent) and event.status == "running":
                self._begin(event.trial, events[: number + 1])
        self._told = events

    def wait_for(self, waiting: Waiting | None) -> None:
        """Say who keeps the others waiting, if it takes long, and again when that changes."""
        said = ", ".join(waiting.sites) if waiting and waiting.seconds >= PATIENCE else ""
        if said and said != self._named:
            self._watch.on_message(f"Waiting for {said}.")
        self._named = said

    def _begin(self, trial: str, events: Sequence[Event]) -> None:
        if trial == self._trial:
            return
        self._trial = trial
        done, rounds = _progress(trial, events)
        self._watch.on_trial(trial, rounds, done)


def _progress(trial: str, events: Sequence[Event]) -> tuple[int, int]:
    """The last finished round of a trial, and how many it has."""
    begun = [event for event in events if isinstance(event, TrialEvent) and event.trial == trial]
    rounds = [event.rounds for event in begun if event.rounds is not None]
    done = [event.round for event in events if isinstance(event, RoundEvent) and event.trial == trial]
    return max(done, default=0), rounds[-1] if rounds else 0


def _alive(out: Path) -> bool:
    """Whether the process that conducts the run is there."""
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
class SiteState:
    """A site as the server sees it."""

    name: str
    status: str  # Flower's word: "online", "offline", "registered"; or that no key came yet


@dataclass(frozen=True)
class Waiting:
    """Sites whose answers are missing, and for how many seconds they have been asked."""

    sites: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        """For a table: "north, 4 min"."""
        spent = f"{self.seconds / 60:.0f} min" if self.seconds >= 60 else f"{self.seconds:.0f} s"
        return f"{', '.join(self.sites)}, {spent}"


@dataclass(frozen=True)
class RunState:
    """A run as its records say."""

    folder: Path
    status: str
    trial: str
    round_number: int
    rounds: int
    waiting: Waiting | None = None


def waited_for(out: Path) -> Waiting | None:
    """Who keeps a run waiting; None if nobody does."""
    try:
        said = json.loads((out / WAITING).read_text(encoding="utf-8"))
    except OSError:
        return None
    return Waiting(tuple(said["sites"]), max(time.time() - said["since"], 0.0)) if said["sites"] else None


def sites_of(folder: Path) -> list[SiteState]:
    """Every site of a deployment; UserError when the server does not answer."""
    folder = folder.resolve()
    deployment = load_deployment(folder)
    said = commands.ask(commands.nodes(), folder)
    if not said.get("success"):
        raise UserError(f"The server of {deployment.name} does not answer; start it with: fedprompt server up {folder}")
    listed = said.get("nodes", [])
    assert isinstance(listed, list)
    status = {str(node["node-id"]): str(node["status"]) for node in listed}
    numbers = {path.name.rpartition("-")[0]: path.read_text() for path in (folder / ADMITTED).glob("*-*")}
    return [SiteState(name, status.get(numbers.get(name, ""), "its key has not come")) for name in deployment.sites]


def runs_of(folder: Path) -> list[RunState]:
    """The runs in a deployment's folder, oldest first."""
    return [run_state(path.parent) for path in sorted((folder / "runs").glob("*/run.jsonl"))]


def run_state(out: Path) -> RunState:
    """What the records of a run say."""
    events = events_of(out)
    begun = (event for event in reversed(events) if isinstance(event, TrialEvent) and event.rounds is not None)
    trial = next((event.trial for event in begun), "")
    done, rounds = _progress(trial, events)
    last = events[-1] if events else None
    ended = last.status if isinstance(last, EndEvent) else None
    status = "running" if _alive(out) else ended or "stopped"
    waiting = waited_for(out) if status == "running" else None
    return RunState(out, status, trial, done, rounds, waiting)
