"""Runs on a deployment, from the server's shell: start one, follow it by its records, go on with it, look around."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from fedprompt.build.desk import Watch
from fedprompt.build.runs import RECIPE
from fedprompt.config import Recipe
from fedprompt.deploy.conduct import Federation, events_of
from fedprompt.deploy.settings import ADMITTED, PROCESS, STOPPED, load_deployment
from fedprompt.errors import UserError
from fedprompt.records import Event, write_atomic
from fedprompt.runtimes.flower import commands

TICK = 0.5  # seconds between looks at a run's records
BIRTH = 180.0  # seconds within which a run must have begun


def run_on(recipe: Recipe, folder: Path, out: Path, *, watch: Watch) -> Path:
    """Run a recipe over the sites of a deployment whose server is up; returns the run's folder when it is done.

    Ctrl-C ends the looking on, not the run. Raises UserError with the reason when the run stops.
    """
    if (out / "run.jsonl").exists():
        raise UserError(f"The folder {out} already holds a run; resume it or choose another folder.")
    return _submit(recipe.to_toml(), folder, out, watch)


def resume_on(out: Path, *, watch: Watch) -> Path:
    """Go on with a run over sites from its last finished round."""
    federation = Federation.of(out)
    if federation is None:
        raise UserError(f"The run {out} was not made by a deployment; resume it with: fedprompt resume {out}")
    if _alive(out):
        raise UserError(f"The run {out} is still going on; follow it with: fedprompt status {federation.deployment}")
    return _submit((out / RECIPE).read_text(encoding="utf-8"), Path(federation.deployment), out, watch)


def _submit(recipe: str, folder: Path, out: Path, watch: Watch) -> Path:
    folder, out = folder.resolve(), out.resolve()
    load_deployment(folder)
    out.mkdir(parents=True, exist_ok=True)
    settings = out / ".run-config.toml"
    write_atomic(settings, tomli_w.dumps({"recipe": recipe, "out": str(out)}))
    for name in (PROCESS, STOPPED):
        (out / name).unlink(missing_ok=True)
    seen = len(events_of(out))
    watch.step("Handing the run to the server")
    said = commands.ask(commands.run(folder / "app", settings), folder)
    if not said.get("success"):
        raise UserError(f"The server did not take the run ({said.get('error-message', said)}); is it up?")
    follow(out, watch, seen=seen)
    return out


def follow(out: Path, watch: Watch, *, seen: int = 0) -> None:
    """Tell the watch what a run records, until it is done; UserError with the reason when it stops."""
    begun = time.monotonic()
    while True:
        alive = _alive(out)  # before the records are read, so that the last of them are not missed
        events = events_of(out)
        for event in events[seen:]:
            _tell(event, watch)
        seen = max(seen, len(events))
        if events and events[-1]["event"] == "end" and events[-1]["status"] == "done":
            return
        if (out / STOPPED).exists():
            raise UserError((out / STOPPED).read_text(encoding="utf-8"))
        unborn = not (out / PROCESS).exists() and time.monotonic() - begun < BIRTH
        if not alive and not unborn:
            raise UserError(f"The run {out} stopped without a word; go on with: fedprompt resume {out}")
        time.sleep(TICK)


def _tell(event: Event, watch: Watch) -> None:
    if event["event"] == "trial" and event["status"] == "running":
        watch.trial(event["trial"], event["rounds"], 0)
    elif event["event"] == "round":
        watch.round(event["round"], event["loss"])
        for client, reason in event.get("failed", {}).items():
            watch.warn(f"In round {event['round']}, site {client} {reason}")


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
class RunState:
    """A run as its records say."""

    folder: Path
    status: str
    trial: str
    round_number: int
    rounds: int


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
    trials = [event for event in events if event["event"] == "trial" and "rounds" in event]
    trial, rounds = (trials[-1]["trial"], int(trials[-1]["rounds"])) if trials else ("", 0)
    done = [int(event["round"]) for event in events if event["event"] == "round" and event["trial"] == trial]
    last = events[-1] if events else {}
    ended = str(last["status"]) if last.get("event") == "end" else ""
    status = "running" if _alive(out) else ended or "stopped"
    return RunState(out, status, trial, max(done, default=0), rounds)
