"""The loopback socket between a site's short-lived Flower process and its worker; imports nothing heavy.

Every read and write before an answer has a time limit, and connections are read side by side: one that is silent, slow
or without the secret keeps nobody waiting.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fedprompt.errors import UserError
from fedprompt.runtimes.payload import Payload
from fedprompt.text_files import json_text, load_json_object

BUSY = "worker.busy"  # exists while the worker answers a request
ADDRESS = "worker.json"  # the worker's port, and the secret that authenticates both ends (mode 0600)
LARGEST = 1 << 31  # bytes of a message
HANDSHAKE_SECONDS, MESSAGE_SECONDS = 5.0, 120.0  # to prove knowledge of the secret, and to send or receive a message
MOST_STRANGERS = 32  # connections that have not proved it yet; the oldest is closed for one more
NONCE, LENGTH = 32, 8  # bytes
_log = logging.getLogger(__name__)


class NoWorkerError(Exception):
    """No worker listens."""


@dataclass
class WorkerListener:
    """Authenticated requests, one after another, read by a thread per connection."""

    server: socket.socket
    secret: bytes
    _requests: queue.Queue[tuple[socket.socket, Payload]] = field(default_factory=queue.Queue)
    _strangers: list[socket.socket] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Accept connections from now on."""
        threading.Thread(target=self._accept, daemon=True).start()

    @contextmanager
    def next_request(self) -> Iterator[tuple[socket.socket, Payload]]:
        """The next request whose sender still waits, and its connection, which is closed afterwards."""
        while True:
            connection, request = self._requests.get()
            with connection:
                if _is_open(connection):
                    yield connection, request
                    return

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:  # closed
                return
            with self._lock:
                self._strangers.append(connection)
                surplus = self._strangers[:-MOST_STRANGERS]
            for oldest in surplus:
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        try:
            try:
                self._authenticate(connection)
            finally:
                with self._lock:
                    self._strangers.remove(connection)
            self._requests.put((connection, receive(connection, seconds=MESSAGE_SECONDS)))
        except (OSError, EOFError, UserError) as error:
            _log.warning("A connection was lost or refused: %s", type(error).__name__)
            connection.close()

    def _authenticate(self, connection: socket.socket) -> None:
        """Prove both ends' knowledge of the secret; ConnectionError for an end that has none."""
        end, ours = time.monotonic() + HANDSHAKE_SECONDS, secrets.token_bytes(NONCE)
        _send(connection, ours, end)
        theirs, proof = _receive(connection, NONCE, end), _receive(connection, NONCE, end)
        if not hmac.compare_digest(proof, _proof(self.secret, b"client", ours + theirs)):
            raise ConnectionError("a wrong secret")
        _send(connection, _proof(self.secret, b"server", ours + theirs), end)


@contextmanager
def listen(folder: Path) -> Iterator[WorkerListener]:
    """Listen on a port of loopback, authenticated by a new secret, and write both to the site's folder."""
    secret = secrets.token_bytes(NONCE)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        content = json_text({"port": server.getsockname()[1], "secret": secret.hex(), "process": os.getpid()})
        part = folder / f".{ADDRESS}.{os.getpid()}.part"
        part.unlink(missing_ok=True)
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        part.replace(folder / ADDRESS)
        listener = WorkerListener(server, secret)
        listener.start()
        yield listener


def worker_number(folder: Path, what: Literal["port", "process"]) -> int:
    """The port or the process of a site's worker, as it has written; OSError if there is no such file."""
    return int(load_json_object((folder / ADDRESS).read_bytes())[what])


def request_worker(folder: Path, request: Payload) -> Payload:
    """The worker's answer. Raises NoWorkerError if none listens, UserError if it stops before it answers."""
    try:
        address = load_json_object((folder / ADDRESS).read_bytes())
        connection = _connect(int(address["port"]), bytes.fromhex(address["secret"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise NoWorkerError from error
    with connection:
        try:
            send(connection, request)
            return receive(connection, seconds=None)  # a training takes as long as it takes; Flower has the deadline
        except (OSError, EOFError) as error:
            raise UserError("The worker stopped before it answered; `fedprompt site up` restarts it.") from error


def _connect(port: int, secret: bytes) -> socket.socket:
    """A connection to whoever listens on the port, if it knows the secret."""
    end = time.monotonic() + HANDSHAKE_SECONDS
    connection = socket.create_connection(("127.0.0.1", port), timeout=HANDSHAKE_SECONDS)
    try:
        theirs, ours = _receive(connection, NONCE, end), secrets.token_bytes(NONCE)
        _send(connection, ours + _proof(secret, b"client", theirs + ours), end)
        if not hmac.compare_digest(_receive(connection, NONCE, end), _proof(secret, b"server", theirs + ours)):
            raise ConnectionError("a wrong secret")
    except BaseException:
        connection.close()
        raise
    return connection


def send(connection: socket.socket, message: Payload) -> None:
    """Send a message; TimeoutError if the other end does not take it in time."""
    content = message.to_bytes()
    _send(connection, len(content).to_bytes(LENGTH, "little") + content, time.monotonic() + MESSAGE_SECONDS)


def receive(connection: socket.socket, *, seconds: float | None) -> Payload:
    """The next message of a connection; TimeoutError if it is not complete after so many seconds."""
    end = None if seconds is None else time.monotonic() + seconds
    size = int.from_bytes(_receive(connection, LENGTH, end), "little")
    if size > LARGEST:
        raise ConnectionError("a message that is too long")
    return Payload.from_bytes(_receive(connection, size, end))


def _proof(secret: bytes, end: bytes, nonces: bytes) -> bytes:
    return hmac.digest(secret, end + nonces, hashlib.sha256)


def _send(connection: socket.socket, content: bytes, end: float) -> None:
    connection.settimeout(_left(end))
    connection.sendall(content)  # its timeout is that of the whole content


def _receive(connection: socket.socket, size: int, end: float | None) -> bytes:
    """So many bytes; the time limit is that of all of them, so that a byte now and then does not extend it."""
    content = bytearray()
    while len(content) < size:
        connection.settimeout(None if end is None else _left(end))
        part = connection.recv(min(size - len(content), 1 << 20))
        if not part:
            raise EOFError
        content += part
    return bytes(content)


def _left(end: float) -> float:
    if (left := end - time.monotonic()) <= 0:
        raise TimeoutError("the connection is too slow")
    return left


def _is_open(connection: socket.socket) -> bool:
    """Whether the other end still waits: it sends nothing more, so only its end could be read."""
    connection.settimeout(0.0)
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
