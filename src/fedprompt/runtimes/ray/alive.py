"""Whether Ray itself is still there: its process on this node, and the one of the head node that knows the cluster."""

from __future__ import annotations

import socket
import time

from fedprompt.errors import UserError

CONNECT_TIMEOUT = 2.0  # seconds
HEAD_PATIENCE = 20.0  # seconds in which a head node may come back; after 60 Ray ends this process without a word
NOTICE = 1.0  # seconds within which Ray's processes end one after another
POLL = 1.0  # seconds between looks
GONE = (ConnectionRefusedError, FileNotFoundError)


class RayEndedError(UserError):
    """Ray itself has ended, so nothing can go on; `reason` says which part of it is gone."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Ray has ended ({reason}). Give the same command again, which goes on from what is done.")
        self.reason = reason


class Watch:
    """Looks whether the processes of Ray that this one is connected to still listen.

    Ray does not say so: an actor that was lost with it is reported like any other, a new one is waited for, and after
    some seconds Ray's library ends this process.
    """

    def __init__(self) -> None:
        from ray._private import worker

        node = getattr(worker.global_worker, "node", None)
        self._raylet = str(getattr(node, "raylet_socket_name", None) or "")
        self._head = str(getattr(node, "gcs_address", None) or "")
        self._head_gone = 0.0  # since when, 0 while it is there

    def require(self, *, notice: float = 0.0) -> None:
        """Raise RayEndedError if Ray has ended, or does within `notice` seconds."""
        end = time.monotonic() + notice
        while not (reason := self.reason()) and time.monotonic() < end:
            time.sleep(NOTICE / 5)
        if reason:
            raise RayEndedError(reason)

    def reason(self) -> str:
        """What has ended of Ray, "" if nothing has."""
        if self._raylet.startswith("/") and not _listens(socket.AF_UNIX, self._raylet):
            return "its process on this machine is gone"
        host, _, port = self._head.rpartition(":")
        if not port.isdigit() or _listens(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, int(port))):
            self._head_gone = 0.0
            return ""
        self._head_gone = self._head_gone or time.monotonic()
        gone = time.monotonic() - self._head_gone >= HEAD_PATIENCE
        return f"its head node at {self._head} cannot be reached" if gone else ""


def _listens(family: int, address: str | tuple[str, int]) -> bool:
    with socket.socket(family) as one:
        one.settimeout(CONNECT_TIMEOUT)
        try:
            one.connect(address)
        except GONE:
            return False
        except OSError:  # busy: it will be looked at again
            return True
    return True
