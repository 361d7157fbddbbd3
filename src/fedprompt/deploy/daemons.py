"""The two commands that stay: `server up` keeps a SuperLink, `site up` keeps a worker and a SuperNode."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from fedprompt.deploy.init import site_key, tls_of
from fedprompt.deploy.settings import ADMITTED, HOME, LINK, SITE, SiteFile, load_deployment, load_site, save
from fedprompt.errors import UserError
from fedprompt.records.run_folder import own, write_atomic
from fedprompt.runtimes.flower import commands

TICK, RETRY, GRACE = 1.0, 5.0, 10.0  # seconds between looks, before a restart, and for a process to end
CHILDREN = "children.pid"  # in the folder of a server or site: the process groups that its command has started
LOCK = ".up.lock"
_log = logging.getLogger(__name__)


class Process:
    """A child in a process group of its own, so that stopping it stops what it has started."""

    def __init__(self, command: Sequence[str], *, folder: Path, log: str, environment: Mapping[str, str]) -> None:
        (folder / "logs").mkdir(exist_ok=True)
        with (folder / "logs" / log).open("ab") as file:
            self.popen = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=file, stderr=file, start_new_session=True
            )
        self.started = time.monotonic()

    @property
    def ended(self) -> int | None:
        """The exit code, or None while it runs."""
        return self.popen.poll()

    @property
    def must_be_replaced(self) -> bool:
        """Whether it has ended, and not so soon after its start that the next one would too."""
        return self.ended is not None and time.monotonic() - self.started >= RETRY

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and all it started, at the latest after the grace by force."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, how)
        try:
            self.popen.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.stop(signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):  # children that outlived their parent
            os.killpg(self.popen.pid, signal.SIGKILL)


@contextmanager
def stoppable() -> Iterator[None]:
    """Take SIGTERM, with which service managers stop a program, for Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _in_charge(folder: Path) -> Iterator[None]:
    """Keep a folder's processes alone, until SIGTERM or Ctrl-C; UserError if another command does."""
    held = own(folder / LOCK, busy=f"{folder} is kept running by another command already; stop that one first.")
    try:
        with stoppable():
            end_orphans(folder)
            yield
    finally:
        held.release()


def server_up(folder: Path, *, say: Callable[[str], None]) -> None:
    """Keep a SuperLink and let in every site whose public key lies in `keys/`, named after its file; until stopped."""
    folder = folder.resolve()
    deployment = load_deployment(folder)
    environment = commands.environment(folder / "flower", **{HOME: str(folder)})
    command = commands.superlink(port=deployment.local_port, database=folder / "state.db", tls=tls_of(folder))
    if warning := commands.newer():
        say(warning)
    with _in_charge(folder):
        link = Process(command, folder=folder, log="superlink.log", environment=environment)
        try:
            _remember(folder, [link])
            write_atomic(folder / LINK, str(link.popen.pid))
            wait_for_port(deployment.local_port, alive=lambda: link.ended is None)
            say(f"The server {deployment.name} is up; sites connect to {deployment.address}:{deployment.port}.")
            while link.ended is None:
                admit(folder, deployment.sites, say=say)
                time.sleep(TICK)
        finally:
            link.stop()
    raise UserError(f"The SuperLink ended with code {link.ended}; see {folder / 'logs' / 'superlink.log'}.")


def admit(folder: Path, sites: Sequence[str], *, say: Callable[[str], None]) -> None:
    """Register public keys that are new, and keep the number that Flower gives each."""
    known = folder / ADMITTED
    for key in sorted((folder / "keys").glob("*.pub")):
        mark = known / f"{key.stem}-{hashlib.sha256(key.read_bytes()).hexdigest()[:16]}"
        if mark.exists():
            continue
        if key.stem not in sites:
            _log.warning("%s is no site of the deployment; add it to deployment.toml or rename the file.", key.stem)
            continue
        said = commands.ask(commands.register(key, key.stem), folder)
        if not said.get("success"):
            raise UserError(f"The server did not accept the key {key} ({said.get('error-message', said)}).")
        write_atomic(mark, str(said["node-id"]))
        say(f"The site {key.stem} may now connect.")


def site_up(folder: Path, *, data: Path | None, say: Callable[[str], None]) -> None:
    """Keep the worker and the SuperNode of a site; either is started again when it ends; until stopped."""
    folder = folder.resolve()
    site = load_site(folder)
    if data is not None:
        if not data.is_dir():
            raise UserError(f"There is no folder {data}; give the folder that holds one folder of pictures a class.")
        site = site.model_copy(update={"data": str(data.resolve())})
        save(folder / SITE, site)
    if not site_key(folder).exists():
        raise UserError(f"The site has no key yet; make it with: fedprompt site init {folder}")
    environment = commands.environment(folder / "flower")
    programs = {"supernode": _node(folder, site)}
    if site.worker:
        programs["worker"] = [sys.executable, "-m", "fedprompt.deploy.worker", str(folder)]
    say(f"The site {site.name} works for {site.superlink} with the pictures of {site.data or 'the recipe'}.")
    with _in_charge(folder):
        _keep(programs, folder, environment, say)


def _node(folder: Path, site: SiteFile) -> list[str]:
    return commands.supernode(
        address=site.superlink,
        port=site.port,
        site=site.name,
        folder=folder,
        authority=folder / "ca.crt",
        key=site_key(folder),
    )


def _keep(
    programs: Mapping[str, Sequence[str]], folder: Path, environment: Mapping[str, str], say: Callable[[str], None]
) -> None:
    def start(name: str) -> Process:
        return Process(programs[name], folder=folder, log=f"{name}.log", environment=environment)

    running: dict[str, Process] = {}
    try:
        for name in programs:
            running[name] = start(name)
        _remember(folder, running.values())
        while True:
            time.sleep(TICK)
            for name in [name for name, process in running.items() if process.must_be_replaced]:
                say(f"The {name} ended with code {running[name].ended} (see logs/{name}.log); it is started again.")
                running[name].stop()  # what it may have left behind
                running[name] = start(name)
                _remember(folder, running.values())
    finally:
        for process in running.values():
            process.stop()


def _remember(folder: Path, running: Iterable[Process]) -> None:
    write_atomic(folder / CHILDREN, "".join(f"{process.popen.pid}\n" for process in running))


def end_orphans(folder: Path) -> None:
    """End what a command that was killed left running: it would hold the port, and answer beside its successor.

    Who still runs is read from /proc, so this does something on Linux only.
    """
    path = folder / CHILDREN
    for number in map(int, path.read_text(encoding="utf-8").split() if path.exists() else ()):
        with contextlib.suppress(OSError):  # it is gone; a number may have passed to a stranger, who is spared
            if str(folder).encode() in Path(f"/proc/{number}/cmdline").read_bytes():
                os.killpg(number, signal.SIGKILL)


def wait_for_port(port: int, *, alive: Callable[[], bool], seconds: float = 60.0) -> None:
    """Return when something listens on a port of loopback; UserError when nothing does in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and alive():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise UserError(f"Nothing listens on port {port} of this machine; see the logs, and whether the port is taken.")
