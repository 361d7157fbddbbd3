"""The local line between a site's short-lived Flower process and its resident worker; imports nothing heavy."""

from __future__ import annotations

import json
import os
import secrets
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from fedprompt.errors import UserError
from fedprompt.runtimes.payload import Payload

BUSY = "worker.busy"  # there while the worker has a request in hand
ADDRESS = "worker.json"  # where the worker listens, and the secret that both ends prove to know (mode 0600)
LARGEST = 1 << 31  # bytes of a message


class NoWorkerError(Exception):
    """There is no worker to talk to."""


def listen(folder: Path) -> Listener:
    """Open a port of loopback that only holders of a fresh secret may talk to, and leave both in the site's folder."""
    secret = secrets.token_hex(32)
    listener = Listener(("127.0.0.1", 0), backlog=16, authkey=bytes.fromhex(secret))
    content = json.dumps({"port": listener.address[1], "secret": secret, "process": os.getpid()})
    part = folder / f".{ADDRESS}.{os.getpid()}.part"
    part.unlink(missing_ok=True)
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(content)
    part.replace(folder / ADDRESS)
    return listener


def ask(folder: Path, request: Payload) -> Payload:
    """The worker's answer. Raises NoWorkerError if none listens, UserError if it went away while it worked."""
    try:
        address = json.loads((folder / ADDRESS).read_text(encoding="utf-8"))
        line = Client(("127.0.0.1", int(address["port"])), authkey=bytes.fromhex(address["secret"]))
    except (OSError, ValueError, KeyError, EOFError, AuthenticationError) as error:
        raise NoWorkerError from error
    with line:
        try:
            line.send_bytes(request.to_bytes())
            return Payload.from_bytes(line.recv_bytes(LARGEST))
        except (OSError, EOFError) as error:
            raise UserError("The worker went away while it worked; `fedprompt site up` starts it again.") from error


def receive(line: Connection) -> Payload:
    """The request at the worker's end."""
    return Payload.from_bytes(line.recv_bytes(LARGEST))
