"""A Flower ServerApp that sends sites any payload, as a server's operator can, and the channel that tells it what.

The app is in the folder of a rehearsal only: the app of a deployment does not refer to it. Its ClientApp is code of the
server's own, which no site must run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import tomli_w

from fedprompt.deploy.worker_socket import NoWorkerError, listen, request_worker, send
from fedprompt.errors import UserError
from fedprompt.records.run_folder import write_atomic
from fedprompt.runtimes.flower import commands
from fedprompt.runtimes.flower.apps import Settings, server_app
from fedprompt.runtimes.flower.grid import GridChannel
from fedprompt.runtimes.payload import DONE, Payload, RawTensor

ASK, END = "ask", "end"  # kinds of what the channel tells the app
APP = "relay-app"  # in the server's folder of a rehearsal
START_SECONDS = 120.0
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
        while True:
            with listener.next_request() as (connection, request):
                if request.kind == END:
                    send(connection, Payload(DONE))
                    return
                asked = {name: Payload.from_bytes(raw.data) for name, raw in request.tensors.items()}
                answers = channel.ask(asked, deadline=request.fields["deadline"])
                failed = {name: answer for name, answer in answers.items() if isinstance(answer, str)}
                send(connection, Payload(DONE, {"failed": failed}, _packed(answers)))


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
def relay(server: Path) -> Iterator[RelayChannel]:
    """Submit the app to the server of a rehearsal, and end it afterwards."""
    out = server / "runs" / "relay"
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
    channel, end = RelayChannel(out), time.monotonic() + START_SECONDS
    while True:
        with suppress(NoWorkerError):
            channel.ask({}, deadline=1.0)
            break
        if time.monotonic() > end:
            raise UserError(f"The app did not start within {START_SECONDS:.0f} s; see the logs in {server / 'logs'}.")
        time.sleep(0.5)
    try:
        yield channel
    finally:
        with suppress(NoWorkerError, UserError):
            request_worker(out, Payload(END))


def _packed(payloads: Mapping[str, Payload | str]) -> dict[str, RawTensor]:
    contents = {name: one.to_bytes() for name, one in payloads.items() if isinstance(one, Payload)}
    return {name: RawTensor("uint8", (len(content),), content) for name, content in contents.items()}


server = server_app(serve)
