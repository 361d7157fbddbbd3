"""The loopback socket between a site's short-lived Flower process and its worker; imports nothing heavy."""

from __future__ import annotations

import os
import secrets
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from fedprompt.errors import UserError
from fedprompt.runtimes.payload import Payload
from fedprompt.text_files import json_text, load_json_object

BUSY = "worker.busy"  # exists while the worker answers a request
ADDRESS = "worker.json"  # the worker's port, and the secret that authenticates both ends (mode 0600)
LARGEST = 1 << 31  # bytes of a message


class NoWorkerError(Exception):
    """No worker listens."""


def listen(folder: Path) -> Listener:
    """Listen on a port of loopback, authenticated by a new secret, and write both to the site's folder."""
    secret = secrets.token_hex(32)
    listener = Listener(("127.0.0.1", 0), backlog=16, authkey=bytes.fromhex(secret))
    content = json_text({"port": listener.address[1], "secret": secret, "process": os.getpid()})
    part = folder / f".{ADDRESS}.{os.getpid()}.part"
    part.unlink(missing_ok=True)
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(content)
    part.replace(folder / ADDRESS)
    return listener


def request_worker(folder: Path, request: Payload) -> Payload:
    """The worker's answer. Raises NoWorkerError if none listens, UserError if it stops before it answers."""
    try:
        address = load_json_object((folder / ADDRESS).read_bytes())
        connection = Client(("127.0.0.1", int(address["port"])), authkey=bytes.fromhex(address["secret"]))
    except (OSError, ValueError, KeyError, EOFError, AuthenticationError) as error:
        raise NoWorkerError from error
    with connection:
        try:
            connection.send_bytes(request.to_bytes())
            return receive(connection)
        except (OSError, EOFError) as error:
            raise UserError("The worker stopped before it answered; `fedprompt site up` restarts it.") from error


def receive(connection: Connection) -> Payload:
    """The next message of a connection."""
    return Payload.from_bytes(connection.recv_bytes(LARGEST))
