"""Accidents of a deployment: silent connections (attack 16), children without a parent (17), and the rest of 20."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedprompt.config.recipe import parse_recipe
from fedprompt.deploy import stopped, submit, worker, worker_socket
from fedprompt.deploy.init import init_deployment, init_site, service
from fedprompt.deploy.settings import Deployment, load_site
from fedprompt.deploy.site_policy import RefusedError, check_backbone
from fedprompt.deploy.stopped import RESERVED, STOPPED, reserve, write_stopped
from fedprompt.errors import UserError
from fedprompt.experiments.context import RunCallbacks
from fedprompt.records.atomic_files import write_atomic
from fedprompt.runtimes.payload import DONE, TRAIN, Payload
from fedprompt.seeding import numpy_stream
from fedprompt.text_files import load_json_object

TRIES = int(os.environ.get("FEDPROMPT_ATTACK_TRIES", "12"))


class Echo:
    """A site that answers at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def answer(self, request: Payload) -> Payload:
        return Payload(DONE, {"again": request.fields["number"]})


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a worker that runs in a thread."""
    monkeypatch.setattr(worker, "Site", Echo)
    monkeypatch.setattr(worker_socket, "HANDSHAKE_SECONDS", 60.0)  # on a busy machine honest askers are slow too
    threading.Thread(target=worker.serve, args=(tmp_path,), daemon=True).start()
    while not (tmp_path / worker_socket.ADDRESS).exists():
        time.sleep(0.01)
    yield int(load_json_object((tmp_path / worker_socket.ADDRESS).read_text())["port"])


def silent(connection: socket.socket, draws: np.random.Generator) -> None:
    """Sends nothing."""


def rude(connection: socket.socket, draws: np.random.Generator) -> None:
    connection.sendall(draws.bytes(int(draws.integers(1, 500))))


def half(connection: socket.socket, draws: np.random.Generator) -> None:
    connection.sendall(draws.bytes(worker_socket.NONCE))


def gone(connection: socket.socket, draws: np.random.Generator) -> None:
    connection.close()


def test_no_connection_keeps_the_worker_from_answering(tmp_path: Path, port: int) -> None:
    """Attack 16: a silent local connection to the worker's port stops the site."""
    draws, kinds, opened = numpy_stream(0, "attack 16"), (silent, rude, half, gone), []
    for number in range(TRIES):
        for _ in range(int(draws.integers(1, 8))):
            opened.append(socket.create_connection(("127.0.0.1", port)))
            with contextlib.suppress(OSError):  # the worker may have closed it
                kinds[draws.integers(len(kinds))](opened[-1], draws)
        answer = worker_socket.request_worker(tmp_path, Payload(TRAIN, {"number": number}))
        assert answer.fields == {"again": number}
    for connection in opened:
        connection.close()


def test_who_knows_the_secret_and_then_stays_silent_blocks_nobody(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = bytes.fromhex(load_json_object((tmp_path / worker_socket.ADDRESS).read_text())["secret"])
    with worker_socket._connect(port, secret) as slow:
        slow.sendall(b"\x10")
        asker = worker_socket.request_worker(tmp_path, Payload(TRAIN, {"number": 1}))
        assert asker.fields == {"again": 1}
    with monkeypatch.context() as patch:
        patch.setattr(worker_socket, "MESSAGE_SECONDS", 0.3)
        with worker_socket._connect(port, secret) as slow:
            slow.sendall(b"\x10")
            slow.settimeout(60)
            assert slow.recv(1) == b"", "it is closed when its time is over"
    left = worker_socket._connect(port, secret)
    worker_socket.send(left, Payload(TRAIN, {"number": 2}))
    left.close()
    assert worker_socket.request_worker(tmp_path, Payload(TRAIN, {"number": 3})).fields == {"again": 3}


def test_a_port_on_which_somebody_else_listens_is_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_socket, "HANDSHAKE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = {"port": other.getsockname()[1], "secret": "00" * 32}
        (tmp_path / worker_socket.ADDRESS).write_text(worker_socket.json_text(address))
        with pytest.raises(worker_socket.NoWorkerError):
            worker_socket.request_worker(tmp_path, Payload(TRAIN, {}))


POOL = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from fedprompt.child_processes import start_worker

def nothing(): pass
def pid(_): time.sleep(0.05); return os.getpid()

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    pool = ProcessPoolExecutor(2, mp_context=context, initializer=start_worker, initargs=(nothing,))
    print(*set(pool.map(pid, range(8))), flush=True)
    time.sleep(600)
"""
SINGLE = """
import subprocess, sys, time
child = "import time; from fedprompt.child_processes import end_with_parent as end; end(); print(1, flush=True)"
one = subprocess.Popen([sys.executable, "-c", child + "; time.sleep(600)"], stdout=subprocess.PIPE)
one.stdout.readline()
print(one.pid, flush=True)
time.sleep(600)
"""
PROCESS = """
import sys, time
from pathlib import Path
from fedprompt.deploy.daemons import Process
import os
print(Process(["sleep", "600"], folder=Path(sys.argv[1]), log="x.log", environment=os.environ).popen.pid, flush=True)
time.sleep(600)
"""


def running(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_end(numbers: list[int]) -> bool:
    end = time.monotonic() + 60
    while time.monotonic() < end and any(map(running, numbers)):
        time.sleep(0.02)
    return not any(map(running, numbers))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("kind", ["spawn", "forkserver", "single", "process"])
def test_children_end_when_their_parent_is_killed(kind: str, tmp_path: Path) -> None:
    """Attack 17: `compare --jobs 2` leaves workers when its parent is killed; decoding and a site's worker alike."""
    program = {"single": SINGLE, "process": PROCESS}.get(kind, POOL)
    (tmp_path / "parent.py").write_text(program)
    argument = str(tmp_path) if kind == "process" else kind
    for _ in range(max(1, TRIES // 12)):
        command = [sys.executable, str(tmp_path / "parent.py"), argument]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            children = [int(word) for word in parent.stdout.readline().split()]
            assert children and all(map(running, children))
            os.kill(parent.pid, signal.SIGKILL)
        assert all_end(children), kind


@pytest.mark.parametrize("own", ["", "/srv/clip"])
def test_a_job_names_no_path_as_backbone(own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = numpy_stream(0, "attack 20")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "clip").mkdir(parents=True)
    parts = ("..", ".", "~", "etc", "models", "clip", "", "C:", "a b", "$HOME", "\n", "x\0y", "file:")
    paths = ["/etc", "models/clip", "./models/clip", "models", "../x", "~/clip", "C:\\clip", "hf://a/b", "a/b/c", ""]
    for _ in range(TRIES):
        paths.append("/".join(str(draws.choice(parts)) for _ in range(draws.integers(1, 5))))
    for path in paths:
        known = path.count("/") == 1 and all(part.isalnum() for part in path.split("/"))
        if own or known:
            check_backbone(path, own)
        else:
            with pytest.raises(RefusedError, match=r"names a path as backbone.*\(rule backbone\)"):
                check_backbone(path, own)
    for name in ("demo", "openai/clip-vit-base-patch16"):
        check_backbone(name, own)


def test_units_and_proxy_file_stand_any_folder(tmp_path: Path) -> None:
    folder = tmp_path / 'my "fed" 100% $x \\ y'
    unit = service("fedprompt server", "server up", folder)
    lines = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line)
    assert lines["User"] and lines["WorkingDirectory"] == str(folder).replace("%", "%%")
    last = shlex.split(lines["ExecStart"].replace("%%", "%").replace("$$", "$"))[-1]
    assert last == str(folder)
    with pytest.raises(UserError, match="reads the"):
        init_deployment(folder, Deployment(name="a", address="localhost", sites=("east",)))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd")
def test_systemd_reads_the_units_of_a_folder_with_spaces(tmp_path: Path) -> None:
    folder = tmp_path / "the hospitals"
    init_deployment(folder, Deployment(name="a", address="localhost", sites=("east",)))
    assert f'ssl_certificate "{folder}/certificates/server.pem";' in (folder / "nginx.conf").read_text()
    init_site(folder / "sites" / "east")
    for unit in (folder / "fedprompt-server.service", folder / "sites" / "east" / "fedprompt-site.service"):
        said = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
        assert unit.name not in said.stderr, said.stderr
    assert load_site(folder / "sites" / "east").name == "east"


def test_a_run_on_a_full_disk_leaves_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack 20: a deployment on a full disk stopped without a word."""
    reserve(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedprompt.records.atomic_files.os.fsync", full)
    with pytest.raises(UserError, match="disk is full"):
        write_atomic(tmp_path / "x", "y")
    monkeypatch.undo()
    write_stopped(tmp_path, "Cannot write to /x: the disk is full.")
    assert not (tmp_path / RESERVED).exists() and (tmp_path / STOPPED).stat().st_size == stopped.SPACE
    with pytest.raises(UserError, match=r"^Cannot write to /x: the disk is full\.$"):
        submit.follow(tmp_path, RunCallbacks())
    reserve(tmp_path)
    assert not (tmp_path / STOPPED).exists()


def test_a_run_that_left_no_reason_says_what_may_have_ended_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "START_TIMEOUT", -1)
    with pytest.raises(UserError, match=r"was killed, or could not begin; see logs/superlink\.log.*fedprompt resume"):
        submit.follow(tmp_path, RunCallbacks())
    monkeypatch.setattr(stopped.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(UserError, match="is full; free some space, then continue with: fedprompt resume"):
        submit.follow(tmp_path, RunCallbacks())


def test_a_run_over_sites_with_the_demo_backbone_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []

    class Callbacks(RunCallbacks):
        def on_warning(self, text: str) -> None:
            warned.append(text)

    submitted: Callable[..., Path] = lambda *_, **__: tmp_path  # noqa: E731
    monkeypatch.setattr(submit, "_submit", submitted)
    text = 'name = "x"\n[data]\nsource = "sites"\n[partition]\nrule = "by_site"\n[method]\nname = "promptfl"\n'
    for more, said in (("", True), ('[backbone]\npath = "openai/clip-vit-base-patch16"\n', False)):
        warned.clear()
        submit.run_on_deployment(parse_recipe(text + more), tmp_path, tmp_path / "run", callbacks=Callbacks())
        assert bool(warned) == said and (not said or "embedded for demonstrations" in warned[0])
