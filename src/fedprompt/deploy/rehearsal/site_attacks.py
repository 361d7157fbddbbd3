"""Sites that lie, sites that join late with another backbone, and clocks that are wrong."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedprompt.deploy.daemons import Process
from fedprompt.deploy.rehearsal.checks import DISTURBED, DISTURBED_ID, TIMEOUT, BackgroundRun
from fedprompt.deploy.rehearsal.lying_server import T3, T5, Outcome, changed
from fedprompt.deploy.rehearsal.lying_worker import CLOCK
from fedprompt.deploy.rehearsal.processes import SITES, LocalFederation
from fedprompt.deploy.rehearsal.site_changes import other_backbone
from fedprompt.deploy.settings import SITE, load_site, save
from fedprompt.deploy.worker_socket import ADDRESS
from fedprompt.errors import UserError
from fedprompt.experiments.run import RECIPE
from fedprompt.records.atomic_files import write_atomic
from fedprompt.records.events import RoundEvent
from fedprompt.runtimes.flower import commands

LATE_ROUNDS = 12  # rounds within which a site that joins late is noticed
LIES = {
    "loss": "12: a loss of 1e300",
    "update": "13: an update of 1e30",
    "nested": "12: a loss nested 50 deep",
    "count": "12: 10^18 images",
    "serial": "an answer to another message",
}


def lying_site(federation: LocalFederation) -> list[Outcome]:
    """A run in which one of three sites sends another lie in each round."""
    with lying_worker(federation, list(LIES)):
        rounds = BackgroundRun(federation, "lying-site", rounds=len(LIES) + 1).end()
    return [
        *(judge_lie(what, event) for what, event in zip(LIES.values(), rounds, strict=False)),
        judge_course(rounds, len(LIES) + 1),
    ]


def judge_lie(what: str, event: RoundEvent) -> Outcome:
    """Whether the lying site alone lost its round."""
    why = event.failed.get(DISTURBED_ID, "")
    others = set(range(len(SITES))) - {DISTURBED_ID}
    held = bool(why) and others <= event.losses.keys() and DISTURBED_ID not in event.losses
    happened = f"refused in round {event.round}: {why[:100]}" if why else f"taken in round {event.round}"
    return Outcome(what, T3, happened + ("; the others' updates counted" if held else ""), held)


def judge_course(rounds: Sequence[RoundEvent], wanted: int) -> Outcome:
    """Whether the run went on to its end, where the site that stopped lying takes part again."""
    honest = bool(rounds) and len(rounds[-1].losses) == len(SITES)
    happened = f"{len(rounds)} of {wanted} rounds; in the last, {'all' if honest else 'not all'} sites took part"
    return Outcome("the run with the lying site", T3, happened, len(rounds) == wanted and honest)


def wrong_clock(federation: LocalFederation) -> list[Outcome]:
    """A run with a site whose clock is an hour ahead; the preflight names it."""
    with lying_worker(federation, [CLOCK]):
        try:
            BackgroundRun(federation, "wrong-clock", rounds=1).end()
            said = "the run went on"
        except UserError as stop:
            said = str(stop).partition("The preflight ")[2]
    held = f"{DISTURBED}: " in said and "clock" in said
    found = [Outcome("18: a clock that is an hour ahead", T5, said[:160], held)]
    return [*found, _edited_recipe(federation)]


def _edited_recipe(federation: LocalFederation) -> Outcome:
    """The run that the clock stopped is resumed with another learning rate in its recipe."""
    out = federation.server / "runs" / "wrong-clock"
    text = (out / RECIPE).read_text(encoding="utf-8")
    write_atomic(out / RECIPE, changed(text, {"train.lr": 0.5}))
    try:
        BackgroundRun(federation, "wrong-clock", rounds=1, resumed=True).end()
        said = "the run went on"
    except UserError as stop:
        said = "refused: " + str(stop).partition("is not as it began: ")[2].partition(". ")[0]
    return Outcome("19: an edited recipe is resumed", T5, said, "lr was" in said)


def late_site(federation: LocalFederation) -> list[Outcome]:
    """A site joins a run late, with another backbone of the same shape; with its own it takes part."""
    federation.stop(DISTURBED)
    running = BackgroundRun(federation, "late-site", rounds=LATE_ROUNDS)
    running.wait(lambda rounds: len(rounds) >= 1)
    with other_backbone(federation.site(DISTURBED)):
        federation.start_site(DISTURBED)
        running.wait(lambda rounds: any("backbone" in event.failed.get(DISTURBED_ID, "") for event in rounds))
    running.wait(lambda rounds: DISTURBED_ID in rounds[-1].losses)
    rounds = running.end()
    noticed = next(event for event in rounds if "backbone" in event.failed.get(DISTURBED_ID, ""))
    early = [event.round for event in rounds if event.round <= noticed.round and DISTURBED_ID in event.losses]
    happened = f"refused in round {noticed.round}: {noticed.failed[DISTURBED_ID][:100]}"
    return [Outcome("15: another backbone joins late", T3, happened, not early)]


@contextmanager
def lying_worker(federation: LocalFederation, lies: Sequence[str]) -> Iterator[None]:
    """Replace the worker of one site by one that lies, and put its own back afterwards."""
    folder = federation.site(DISTURBED)
    _restart(federation, worker=False)
    (folder / ADDRESS).unlink(missing_ok=True)
    command = [sys.executable, "-m", "fedprompt.deploy.rehearsal.lying_worker", str(folder), *lies]
    environment = commands.environment(folder / "flower")
    process = Process(command, folder=folder, log="lying_worker.log", environment=environment)
    try:
        wait_for(folder / ADDRESS, process)
        yield
    finally:
        process.stop()
        _restart(federation, worker=True)


def wait_for(path: Path, process: Process) -> None:
    """Wait until a worker has written its address."""
    end = time.monotonic() + TIMEOUT
    while not path.exists():
        if process.ended is not None or time.monotonic() > end:
            raise UserError(f"The worker of {path.parent} did not start; see its logs.")
        time.sleep(0.1)


def _restart(federation: LocalFederation, *, worker: bool) -> None:
    folder = federation.site(DISTURBED)
    federation.stop(DISTURBED)
    save(folder / SITE, load_site(folder).model_copy(update={"worker": worker}))
    federation.start_site(DISTURBED)
    federation.wait_for_sites()
