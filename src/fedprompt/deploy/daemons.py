"""The long-running commands: `server up` runs a SuperLink, `site up` runs a SuperNode and what answers it."""

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
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType

from fedprompt.child_processes import kill_with_parent
from fedprompt.deploy.audit import RecordsCheck
from fedprompt.deploy.init import expiry_warnings, site_key, tls_of
from fedprompt.deploy.roster import check_authority, write_roster
from fedprompt.deploy.settings import (
    ADMITTED,
    DATABASE,
    HOME,
    LINK,
    SITE,
    Deployment,
    SiteFile,
    load_deployment,
    load_site,
    save,
)
from fedprompt.errors import UserError
from fedprompt.records.atomic_files import acquire_lock, write_atomic
from fedprompt.runtimes.flower import commands

POLL, RETRY, GRACE = 1.0, 5.0, 10.0  # seconds between checks, before a restart, and for a process to end
CHILDREN = "children.pid"  # in the folder of a server or site: the process groups that its command has started
LOCK = ".up.lock"
_log = logging.getLogger(__name__)


class Process:
    """A child process that ends with this one, in a process group of its own: stopping it stops what it started too."""

    def __init__(self, command: Sequence[str], *, folder: Path, log: str, environment: Mapping[str, str]) -> None:
        (folder / "logs").mkdir(exist_ok=True)
        with (folder / "logs" / log).open("ab") as file:
            self.popen = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=kill_with_parent if os.name == "posix" else None,
            )
        self.started = time.monotonic()

    @property
    def ended(self) -> int | None:
        """The exit code, or None while it runs."""
        return self.popen.poll()

    @property
    def must_be_replaced(self) -> bool:
        """Whether it has ended, but not so soon after its start that a new one would end too."""
        return self.ended is not None and time.monotonic() - self.started >= RETRY

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop the process and all that it started; kill it if it is still running after GRACE seconds."""
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
    """Treat SIGTERM, which service managers send, like Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Lock a folder until SIGTERM or Ctrl-C; UserError if another command runs its processes."""
    lock = acquire_lock(folder / LOCK, busy=f"Another command already runs {folder}; stop that one first.")
    try:
        with stoppable():
            kill_orphans(folder)
            yield
    finally:
        lock.release()


def _metrics(folder: Path, settings: Deployment | SiteFile) -> AbstractContextManager[None]:
    """The endpoint of the metrics, if the settings ask for one."""
    if settings.metrics_port is None:
        return contextlib.nullcontext()
    from fedprompt.deploy.metrics import exported
    from fedprompt.deploy.metrics_server import ServerMetrics  # imports what runs need, which takes seconds
    from fedprompt.deploy.metrics_site import SiteMetrics

    metrics = ServerMetrics(folder) if isinstance(settings, Deployment) else SiteMetrics(folder)
    return exported(settings.metrics_port, metrics.read)


def server_up(folder: Path, *, say: Callable[[str], None]) -> None:
    """Run a SuperLink until stopped, and admit exactly the sites with public keys `keys/SITE.pub`."""
    folder = folder.resolve()
    deployment = load_deployment(folder)
    environment = commands.environment(folder / "flower", **{HOME: str(folder)})
    command = commands.superlink(port=deployment.local_port, database=folder / DATABASE, tls=tls_of(folder))
    for warning in filter(None, (commands.newer(), *expiry_warnings(folder))):
        say(warning)
    with _exclusive(folder), _metrics(folder, deployment):
        link = Process(command, folder=folder, log="superlink.log", environment=environment)
        try:
            _write_children(folder, [link])
            write_atomic(folder / LINK, str(link.popen.pid))
            wait_for_port(deployment.local_port, alive=lambda: link.ended is None)
            say(f"The server {deployment.name} is up; sites connect to {deployment.address}:{deployment.port}.")
            while link.ended is None:
                admit_sites(folder, load_deployment(folder).sites, say=say)
                time.sleep(POLL)
        finally:
            link.stop()
    raise UserError(f"The SuperLink ended with code {link.ended}; see {folder / 'logs' / 'superlink.log'}.")


def admit_sites(folder: Path, sites: Sequence[str], *, say: Callable[[str], None]) -> None:
    """Register new public keys with the SuperLink, and take back those that are gone or replaced.

    The node id that Flower assigns to each key is kept.
    """
    keys = {path.stem: path for path in sorted((folder / "keys").glob("*.pub"))}
    wanted = {}
    for name, path in keys.items():
        if name in sites:
            wanted[f"{name}-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"] = name
        else:
            _log.warning("%s is not a site of the deployment; add it to deployment.toml or rename the file.", name)
    known = {mark.name: mark for mark in (folder / ADMITTED).glob("*-*")}
    for gone in known.keys() - wanted.keys():
        commands.ask(commands.unregister(known[gone].read_text(encoding="utf-8")), folder)
        known[gone].unlink()
        say(f"The site {gone.rpartition('-')[0]} may no longer connect with its former key.")
    for new in sorted(wanted.keys() - known.keys()):
        name = wanted[new]
        reply = commands.ask(commands.register(keys[name], name), folder)
        if not reply.get("success"):
            raise UserError(f"The server did not accept the key {keys[name]} ({reply.get('error-message', reply)}).")
        write_atomic(folder / ADMITTED / new, str(reply["node-id"]))
        say(f"The site {name} may now connect.")
    if known.keys() != wanted.keys():
        write_roster(folder)


def site_up(folder: Path, *, data: Path | None, say: Callable[[str], None]) -> None:
    """Run a site's SuperNode, the processes of its tasks and the worker until stopped; restart each when it ends."""
    folder = folder.resolve()
    site = load_site(folder)
    if data is not None:
        if not data.is_dir():
            raise UserError(f"There is no folder {data}; give the folder with one folder of images per class.")
        site = site.model_copy(update={"data": str(data.resolve())})
        save(folder / SITE, site)
    if not site_key(folder).exists():
        raise UserError(f"The site has no key yet; make it with: fedprompt site init {folder}")
    environment = commands.environment(folder / "flower")
    programs = {
        "supernode": _node(folder, site),
        "clientapp": commands.client_processes(port=site.port, module="fedprompt.deploy.apps", folder=folder),
    }
    if site.worker:
        programs["worker"] = [sys.executable, "-m", "fedprompt.deploy.worker", str(folder)]
    say(f"The site {site.name} connects to {site.superlink} with the images of {site.data or 'the recipe'}.")
    with _exclusive(folder), _metrics(folder, site):
        check_authority(folder, site)
        for warning in filter(None, (commands.newer(), *expiry_warnings(folder))):
            say(warning)
        records = _RecordsReport(folder, say)
        records.report()
        _supervise(programs, folder, environment, say, records.report)


def _node(folder: Path, site: SiteFile) -> list[str]:
    return commands.supernode(
        address=site.superlink,
        port=site.port,
        folder=folder,
        authority=folder / "ca.crt",
        key=site_key(folder),
    )


class _RecordsReport:
    """Says once when a site's records are found damaged, and once when they are whole again."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._records, self._say, self._said = RecordsCheck(folder), say, ""

    def report(self) -> None:
        """Say what has changed since the last call."""
        found = self._records.damage()
        if found != self._said:
            self._say(found or "The site's records are whole again: it answers.")
        self._said = found


def _supervise(
    programs: Mapping[str, Sequence[str]],
    folder: Path,
    environment: Mapping[str, str],
    say: Callable[[str], None],
    on_poll: Callable[[], None],
) -> None:
    """Keep the programs running until stopped; `on_poll` is called about every second."""

    def start(name: str) -> Process:
        return Process(programs[name], folder=folder, log=f"{name}.log", environment=environment)

    running: dict[str, Process] = {}
    try:
        for name in programs:
            running[name] = start(name)
        _write_children(folder, running.values())
        while True:
            time.sleep(POLL)
            on_poll()
            for name in [name for name, process in running.items() if process.must_be_replaced]:
                say(f"The {name} ended with code {running[name].ended} (see logs/{name}.log) and is restarted.")
                running[name].stop()  # kill children that it may have left
                running[name] = start(name)
                _write_children(folder, running.values())
    finally:
        for process in running.values():
            process.stop()


def _write_children(folder: Path, running: Iterable[Process]) -> None:
    write_atomic(folder / CHILDREN, "".join(f"{process.popen.pid}\n" for process in running))


def kill_orphans(folder: Path) -> None:
    """Kill the processes that a killed command left running: they would occupy its port and answer requests.

    Running processes are looked up in /proc, so this works on Linux only.
    """
    path = folder / CHILDREN
    for number in map(int, path.read_text(encoding="utf-8").split() if path.exists() else ()):
        with contextlib.suppress(OSError):  # the process is gone; its id may belong to an unrelated process by now
            if str(folder).encode() in Path(f"/proc/{number}/cmdline").read_bytes():
                os.killpg(number, signal.SIGKILL)


def wait_for_port(port: int, *, alive: Callable[[], bool], seconds: float = 180.0) -> None:
    """Wait until something listens on a port of loopback; UserError if nothing does in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and alive():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise UserError(f"Nothing listens on port {port} of this machine; see the logs, and check that the port is free.")
