"""A Flower ServerApp that sends sites any payload, as a server's operator can, and the channel that tells it what.

The app is in the folder of a rehearsal only: the app of a deployment does not refer to it. Its ClientApp is code of the
server's own, which no site must run.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import tomli_w

from fedprompt.deploy.settings import DATABASE
from fedprompt.deploy.worker_socket import NoWorkerError, WorkerListener, listen, request_worker, send
from fedprompt.errors import UserError
from fedprompt.records.atomic_files import write_atomic
from fedprompt.runtimes.flower import commands
from fedprompt.runtimes.flower.apps import Settings, server_app
from fedprompt.runtimes.flower.grid import GridChannel
from fedprompt.runtimes.payload import DONE, Payload, RawTensor

ASK, END = "ask", "end"  # kinds of what the channel tells the app
APP = "relay-app"  # in the server's folder of a rehearsal
START_SECONDS = 300.0
MARK = "code_of_the_server_ran"  # in the folder of a site's Flower, if the server's code was imported there
CODE = f"""import os
from pathlib import Path

from fedprompt.deploy import apps

Path(os.environ["FLWR_HOME"], "{MARK}").touch()
client = apps.client
"""


def serve(channel: GridChannel, settings: Settings) -> None:
    """Pass on what arrives at a socket in the folder `out` until the end is asked for."""
    with listen(Path(str(settings["out"]))) as listener:
        while _pass_on(listener, channel):
            pass


def _pass_on(listener: WorkerListener, channel: GridChannel) -> bool:
    """Pass on one request; False if it asks for the end."""
    with listener.next_request() as (connection, request):
        if request.kind == END:
            send(connection, Payload(DONE))
            return False
        asked = {name: Payload.from_bytes(raw.data) for name, raw in request.tensors.items()}
        answers = channel.ask(asked, deadline=request.fields["deadline"])
        failed = {name: answer for name, answer in answers.items() if isinstance(answer, str)}
        send(connection, Payload(DONE, {"failed": failed}, _packed(answers)))
        return True


class RelayChannel:
    """A channel to a deployment's sites through the app, without any of the checks of an honest server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ask(self, payloads: Mapping[str, Payload], *, deadline: float) -> dict[str, Payload | str]:
        """Each site's answer, or the reason why there is none."""
        said = request_worker(self.folder, Payload(ASK, {"deadline": deadline}, _packed(payloads)))
        answers = {name: Payload.from_bytes(raw.data) for name, raw in said.tensors.items()}
        return {**said.fields["failed"], **answers}


@contextmanager
def relay(server: Path, name: str, *, agent: bool = False) -> Iterator[RelayChannel]:
    """Submit the app to the server of a rehearsal, and end it afterwards; as an `agent`, sites are to run AgentApps."""
    out = server / "runs" / name
    run_id = _submit(server, out)
    channel = RelayChannel(out)
    try:
        _wait_for(channel, server)
        if agent:
            _call_agent(server, run_id)
        yield channel
    finally:
        with suppress(NoWorkerError, UserError):
            request_worker(out, Payload(END))


def _submit(server: Path, out: Path) -> int:
    """Submit the app with code of the server's own for the sites; returns the number of its run."""
    out.mkdir(parents=True)
    licence = (server / "app" / "LICENSE").read_text(encoding="utf-8")
    files = commands.app_files(licence, server="fedprompt.deploy.rehearsal.relay:server", client="server_code:client")
    for name, content in {**files, "server_code.py": CODE}.items():
        write_atomic(server / APP / name, content)
    settings = out / ".run-config.toml"
    write_atomic(settings, tomli_w.dumps({"out": str(out)}))
    reply = commands.ask(commands.run(server / APP, settings), server)
    if not reply.get("success"):
        raise UserError(f"The server did not accept the app ({reply.get('error-message', reply)}); is it up?")
    return int(str(reply["run-id"]))


def _wait_for(channel: RelayChannel, server: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with suppress(NoWorkerError):
            channel.ask({}, deadline=1.0)
            return
        time.sleep(0.5)
    raise UserError(f"The app did not start within {START_SECONDS:.0f} s; see the logs in {server / 'logs'}.")


def _call_agent(server: Path, run_id: int) -> None:
    """Say of a run that it is an agent's, in the database of Flower's SuperLink, from which sites get to know it."""
    number = run_id - 2**64 if run_id >= 2**63 else run_id  # SQLite's integers are signed
    with sqlite3.connect(server / DATABASE, timeout=30) as database:
        changed = database.execute("UPDATE task SET type = 'flwr-agentapp' WHERE run_id = ?", (number,)).rowcount
    database.close()
    if not changed:
        raise UserError(f"The database of the SuperLink in {server} does not have the run {run_id}.")


def _packed(payloads: Mapping[str, Payload | str]) -> dict[str, RawTensor]:
    contents = {name: one.to_bytes() for name, one in payloads.items() if isinstance(one, Payload)}
    return {name: RawTensor("uint8", (len(content),), content) for name, content in contents.items()}


server = server_app(serve)
