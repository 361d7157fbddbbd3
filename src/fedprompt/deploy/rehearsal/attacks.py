"""Attacks of docs/privacy.md on the real processes of a rehearsal, and a table of what happened to each."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from fedprompt.deploy.daemons import Process
from fedprompt.deploy.rehearsal.checks import DISTURBED, DISTURBED_ID, TIMEOUT, BackgroundRun, refused_access
from fedprompt.deploy.rehearsal.lying_server import T2, LyingServer, Outcome, new_run
from fedprompt.deploy.rehearsal.lying_worker import CLOCK
from fedprompt.deploy.rehearsal.processes import SITES, LocalFederation, Say, local_federation
from fedprompt.deploy.rehearsal.relay import MARK, relay
from fedprompt.deploy.rehearsal.server_attacks import attack_sites, lines
from fedprompt.deploy.settings import SITE, load_site, save
from fedprompt.deploy.worker_socket import ADDRESS, MOST_STRANGERS
from fedprompt.errors import UserError
from fedprompt.records.events import RoundEvent
from fedprompt.records.run_folder import write_atomic
from fedprompt.runtimes.flower import commands
from fedprompt.runtimes.payload import DONE, HELLO
from fedprompt.text_files import json_text, load_json_object

RESULT = "attacks.json"
LIES = {
    "loss": "12: a loss of 1e300",
    "update": "13: an update of 1e30",
    "nested": "12: a loss nested 50 deep",
    "count": "12: 10^18 images",
    "serial": "an answer to another message",
}
T3, T5, NETWORK = "T3: lying site", "T5: accident", "network"
Play = Callable[[LocalFederation], list[Outcome]]


def play_attacks(folder: Path, *, say: Say, settings: Sequence[str] = ()) -> list[Outcome]:
    """Play every attack and return what happened, which is also written to `attacks.json` in the folder."""
    found: list[Outcome] = []
    with local_federation(folder, say=say, settings=settings) as federation:
        for play in PLAYS:
            for one in _outcomes(play, federation):
                found.append(one)
                say(f"{'held  ' if one.held else 'FAILED'} {one.attack}: {one.happened}")
            write_atomic(folder / RESULT, json_text([asdict(one) for one in found], indent=2))
    return found


def _outcomes(play: Play, federation: LocalFederation) -> list[Outcome]:
    """What happened, or why an attack could not be played; the others are played in any case."""
    try:
        return play(federation)
    except (UserError, OSError) as error:
        return [Outcome(play.__name__.replace("_", " "), "", f"not played: {error}", held=False)]


def strangers(federation: LocalFederation) -> list[Outcome]:
    """Connections of those who are no site."""
    return [Outcome(one.what, NETWORK, one.measured, one.met) for one in refused_access(federation)]


def lying_server(federation: LocalFederation) -> list[Outcome]:
    """The messages of a lying server, sent by the deployment's own SuperLink."""
    folders = {name: federation.site(name) for name in SITES}
    with relay(federation.server, "relay") as channel:
        found = attack_sites(LyingServer.of(channel, federation.recipe, folders))
    return [*found, judge_code("code in the app that the server sends", folders)]


def agent_run(federation: LocalFederation) -> list[Outcome]:
    """A run whose type makes Flower's SuperNode start another program than a ClientApp's."""
    folders, what = {name: federation.site(name) for name in SITES}, "the app as a run of another type"
    with relay(federation.server, "agent", agent=True) as channel:
        answer = LyingServer.of(channel, federation.recipe, folders).ask(DISTURBED, HELLO, new_run())
    answered = answer.kind == DONE
    happened = "fedprompt answered it" if answered else f"no answer: {answer.fields.get('reason', '')}"
    return [judge_code(what, folders), Outcome("the message of that run", T2, happened, answered)]


def judge_code(what: str, folders: Mapping[str, Path]) -> Outcome:
    """Whether a site has installed or imported an app of the server."""
    ran = [name for name, folder in folders.items() if (folder / "flower" / MARK).exists()]
    installed = [name for name, folder in folders.items() if any((folder / "flower" / "apps").glob("*"))]
    happened = f"imported at {ran or 'no site'}, installed at {installed or 'no site'}".replace("'", "")
    return Outcome(what, T2, happened, not ran and not installed)


def silent_connections(federation: LocalFederation) -> list[Outcome]:
    """A run while connections to every worker's port stay silent."""
    with ExitStack() as stack:
        for name in SITES:
            _wait_for(federation.site(name) / ADDRESS, federation.processes[name])
            address = load_json_object((federation.site(name) / ADDRESS).read_bytes())
            for _ in range(2 * MOST_STRANGERS):
                stack.enter_context(socket.create_connection(("127.0.0.1", int(address["port"])), timeout=10))
        rounds = BackgroundRun(federation, "silent", rounds=2).end()
    answered = sum(len(event.losses) for event in rounds)
    happened = f"{answered} of {2 * len(SITES)} updates arrived, beside {2 * MOST_STRANGERS} connections per worker"
    what = "16: silent connections to the workers' ports"
    return [Outcome(what, T5, happened, answered == 2 * len(SITES))]


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
    return [Outcome("18: a clock that is an hour ahead", T5, said[:160], held)]


def trails(federation: LocalFederation) -> list[Outcome]:
    """The trails of all sites after all attacks; DamagedError for a line that was changed."""
    found = ", ".join(f"{name} {lines(federation.site(name))}" for name in SITES)
    rounds = BackgroundRun(federation, "afterwards", rounds=1).end()
    answered = len(rounds[-1].losses)
    return [
        Outcome("all audit trails afterwards", "all", f"whole: {found} lines", held=True),
        Outcome("an honest run afterwards", "all", f"{answered} of {len(SITES)} updates", answered == len(SITES)),
    ]


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
        _wait_for(folder / ADDRESS, process)
        yield
    finally:
        process.stop()
        _restart(federation, worker=True)


def _wait_for(path: Path, process: Process) -> None:
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


PLAYS: Sequence[Play] = (
    strangers,
    lying_server,
    agent_run,
    silent_connections,
    lying_site,
    wrong_clock,
    trails,
)
