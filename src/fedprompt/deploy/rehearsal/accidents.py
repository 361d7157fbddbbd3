"""Accidents that happen to the processes of a site: silent connections, and a command that is killed."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

from fedprompt.deploy.daemons import CHILDREN
from fedprompt.deploy.rehearsal.checks import DISTURBED, BackgroundRun
from fedprompt.deploy.rehearsal.lying_server import T5, Outcome
from fedprompt.deploy.rehearsal.processes import SITES, LocalFederation
from fedprompt.deploy.rehearsal.site_attacks import wait_for
from fedprompt.deploy.worker_socket import ADDRESS, MOST_STRANGERS, worker_number

ENDS_WITHIN = 10.0  # seconds


def silent_connections(federation: LocalFederation) -> list[Outcome]:
    """A run while connections to every worker's port stay silent."""
    with ExitStack() as stack:
        for name in SITES:
            wait_for(federation.site(name) / ADDRESS, federation.processes[name])
            port = worker_number(federation.site(name), "port")
            for _ in range(2 * MOST_STRANGERS):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        rounds = BackgroundRun(federation, "silent", rounds=2).end()
    answered = sum(len(event.losses) for event in rounds)
    happened = f"{answered} of {2 * len(SITES)} updates arrived, beside {2 * MOST_STRANGERS} connections per worker"
    what = "16: silent connections to the workers' ports"
    return [Outcome(what, T5, happened, answered == 2 * len(SITES))]


def killed_command(federation: LocalFederation) -> list[Outcome]:
    """`site up` is killed; every process that it has started ends too."""
    folder = federation.site(DISTURBED)
    started = [int(number) for number in (folder / CHILDREN).read_text(encoding="utf-8").split()]
    os.kill(federation.processes[DISTURBED].popen.pid, signal.SIGKILL)
    end, left = time.monotonic() + ENDS_WITHIN, started
    while left and time.monotonic() < end:
        left = [number for number in left if _runs(number)]
        time.sleep(0.1)
    federation.stop(DISTURBED)
    federation.wait_until_offline(DISTURBED)
    federation.start_site(DISTURBED)
    federation.wait_for_sites()
    happened = f"{len(started) - len(left)} of its {len(started)} processes ended"
    return [Outcome("17: the command of a site is killed", T5, happened, bool(started) and not left)]


def _runs(number: int) -> bool:
    """Whether a process runs; a defunct one, which has no command, does not."""
    try:
        return bool(Path(f"/proc/{number}/cmdline").read_bytes())
    except OSError:
        return False
