"""The connection to Ray: the cluster that RAY_ADDRESS names, else a Ray of this machine that ends with this process."""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from fedprompt.config.recipe_tables import RuntimeTable
from fedprompt.errors import UserError, option, plural
from fedprompt.runtimes.ray import guard

ADDRESS = "RAY_ADDRESS"
OLDEST, NEXT_MAJOR = (2, 44), 3  # versions of Ray that are known
REACH_TIMEOUT = 5.0  # seconds for a connection to the cluster's address
ANSWER_TIMEOUT = 20.0  # seconds for a head node to answer a process that must import Ray first
DASHBOARD = "8265"  # the usual port of Ray's dashboard
PROBE = "import sys, ray; ray._raylet.GcsClient(address=sys.argv[1])"
END_TIMEOUT = 15.0  # seconds for the guard of a local Ray to end
STORE = 1 << 30, 100 << 20  # bytes of a local object store: at most, and at least, which Ray wants
QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
# A local Ray takes work from this process alone, as the token is in no file. A run that uses up the memory is tried
# again a few times only, and actors have the priority of this process.
PRIVATE = {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_task_oom_retries": "2", "RAY_worker_niceness": "0"}
SET_BY_RAY = ("RAY_AUTH_MODE",)


@dataclass(frozen=True)
class Node:
    """A node of a cluster and what it has."""

    name: str
    cpus: float
    gpus: float

    def room(self, table: RuntimeTable, gpus: float) -> int:
        """The number of actors that fit."""
        by_cpus = int(self.cpus / table.cpus + 1e-9)
        if not gpus:
            return by_cpus
        by_gpus = int(self.gpus / gpus + 1e-9) if gpus >= 1 else int(self.gpus) * int(1 / gpus + 1e-9)
        return min(by_cpus, by_gpus)


def require_ray() -> None:
    """Raise UserError if Ray is missing, or a version that is not known; to be called before Ray is imported."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")  # Ray reads it when it is imported
    if find_spec("ray") is None:
        raise UserError("Training on Ray needs the package ray; install it with: pip install 'fedprompt[ray]'")
    found = version("ray")
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if numbers < OLDEST or numbers >= (NEXT_MAJOR,):
        raise UserError(
            f"Ray {found} is installed, but fedprompt knows versions from {'.'.join(map(str, OLDEST))} on and below "
            f"{NEXT_MAJOR}; install one with: pip install 'fedprompt[ray]'"
        )


@contextmanager
def connected() -> Iterator[Sequence[Node]]:
    """Connect to Ray for the time of a block; yields its nodes. UserError where there is none to connect to.

    A Ray that is in use in this process already stays as it is. One that is started here ends with the block, and also
    if this process is killed.
    """
    require_ray()
    with _environment(QUIET):
        import ray

        if ray.is_initialized():
            yield nodes()
            return
        _silence()
        address = os.environ.get(ADDRESS) or "local"
        terminate = signal.getsignal(signal.SIGTERM)
        with _local() if address == "local" else _remote(address):
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, terminate)  # Ray has set one of its own
            yield nodes()


def _silence() -> None:
    """Have Ray say nothing by itself: warnings of the pool name the actors that died, and why."""
    from ray._private import worker

    logging.getLogger("ray").setLevel(logging.ERROR)
    if hasattr(worker, "print_to_stdstream"):  # which prints the messages of nodes about processes that ended
        worker.print_to_stdstream = lambda *_, **__: None


def nodes() -> Sequence[Node]:
    """The nodes of the cluster that are alive."""
    import ray

    return [
        Node(
            f"{one['NodeManagerHostname']} ({one['NodeManagerAddress']})",
            one["Resources"].get("CPU", 0.0),
            one["Resources"].get("GPU", 0.0),
        )
        for one in ray.nodes()
        if one["Alive"]
    ]


def actors_and_gpus(table: RuntimeTable, found: Sequence[Node], *, wants_gpu: bool) -> tuple[int, float]:
    """The number of actors, and the share of a GPU of each; UserError if the nodes have less than is asked.

    By default as many actors as have room, each with a GPU of its own if there are any and the backbone may use them.
    """
    gpus = _gpus(table) if wants_gpu and any(node.gpus for node in found) else table.gpus or 0.0
    if gpus > 1 and gpus % 1:
        raise UserError(
            f"[runtime] gpus = {gpus:g} is not possible; give a part of one GPU, or a whole number of them."
        )
    room = sum(node.room(table, gpus) for node in found)
    if table.actors <= room and room:
        return table.actors or room, gpus
    each = f"{table.cpus:g} core{'s' * (table.cpus != 1)}" + (f" and {gpus:g} GPUs" if gpus else "")
    there = "; ".join(
        f"{node.name} has {node.cpus:g} cores" + (f" and {node.gpus:g} GPUs" if gpus else "") for node in found
    )
    fix = f"give runtime.actors = {room} at most, or less of runtime.cpus" if room else "give less of runtime.cpus"
    raise UserError(
        f"[runtime] asks for {plural(table.actors or 1, 'actor')} with {each} each, but {there}: {fix}"
        f"{' or runtime.gpus' if gpus else ''}."
    )


def _gpus(table: RuntimeTable) -> float:
    """The share of a GPU of an actor where there are GPUs."""
    if table.gpus is not None:
        return table.gpus
    if not table.gpu_memory_gb:
        return 1.0
    import ray

    whole = ray.get(ray.remote(_gpu_memory).options(num_gpus=0.01, num_cpus=0).remote())
    return float(min(1.0, math.ceil(100 * table.gpu_memory_gb * 2**30 / whole) / 100))


def _gpu_memory() -> int:
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


@contextmanager
def _local() -> Iterator[None]:
    import ray

    folder = tempfile.mkdtemp(prefix="fp-ray-", dir="/tmp" if os.name == "posix" else None)  # sockets have short paths
    mark = secrets.token_hex(8)
    command = [sys.executable, "-I", "-S", str(Path(guard.__file__)), mark, folder]
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        with _environment(PRIVATE):
            with _environment({guard.MARK: mark}):
                _start(folder)
            yield
    finally:
        ray.shutdown()
        assert watcher.stdin is not None
        watcher.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            watcher.wait(END_TIMEOUT)


def _start(folder: str) -> None:
    """Start a Ray whose files are in a folder; it gives up after half a minute, too early on a busy machine."""
    import ray

    for last in (False, False, True):
        try:
            ray.init(
                address="local",
                num_cpus=cores(),
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                object_store_memory=_store(),
                _temp_dir=os.path.join(folder, "r"),  # Ray lets everyone into it, and the folder nobody else
            )
        except Exception as error:  # of many types
            ray.shutdown()
            if last:
                raise UserError(
                    f"Ray could not be started on this machine ({_reason(error)}); is it very busy, or "
                    f"out of memory? Without {option('on ray', 'on')}, one process trains all clients."
                ) from error
        else:
            return


def _reason(error: Exception) -> str:
    """What Ray raised, on one line of limited length and without a full stop."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400].rstrip('.')}"


@contextmanager
def _remote(address: str) -> Iterator[None]:
    import ray

    if "://" in address:
        raise UserError(
            f"{ADDRESS}={address} names a server of Ray Client; run fedprompt on a node of the cluster, and give the "
            "address of its head node there, as in HEAD:6379."
        )
    _require_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except Exception as error:  # Ray raises its own and built-in ones of many types for a cluster that it cannot join
        if address == "auto" and isinstance(error, ConnectionError):
            raise UserError(
                f"No Ray cluster runs on this machine, where {ADDRESS}=auto looks; start one (ray start --head), or "
                "unset that variable to have a Ray started for this command."
            ) from error
        raise UserError(
            f"The Ray cluster at {address} cannot be used ({_reason(error)}). Its nodes need the "
            "versions of Ray and of Python that this machine has, and this machine its token (ray get-auth-token)."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_reachable(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        if address == "auto":
            return
        raise UserError(f"{ADDRESS}={address} is no address; give that of the cluster's head node, as in HEAD:6379.")
    try:
        socket.create_connection((host, int(port)), REACH_TIMEOUT).close()
    except OSError as error:
        raise UserError(
            f"The Ray cluster at {address} cannot be reached ({error.strerror or error}); check {ADDRESS}, and that "
            "the head node is up (ray status). Without that variable, a Ray is started on this machine."
        ) from error
    if not _is_head(address):
        hint = f" {DASHBOARD} is the port of Ray's dashboard." if port == DASHBOARD else ""
        raise UserError(
            f"No head node of Ray answers at {address}; give the address and port of ray start --head as {ADDRESS}, as "
            f"in HEAD:6379, and the cluster's token (ray get-auth-token) if it has one.{hint}"
        )


def _is_head(address: str) -> bool:
    """Whether a head node answers; asked in a process of its own, since Ray tries for minutes and then exits."""
    try:
        command = [sys.executable, "-c", PROBE, address]
        return not subprocess.run(command, capture_output=True, timeout=ANSWER_TIMEOUT, check=False).returncode
    except subprocess.TimeoutExpired:
        return False


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _store() -> int:
    """Bytes of the object store of a local Ray, which is in shared memory; containers have little of that."""
    most, least = STORE
    with suppress(OSError):
        return max(least, min(most, shutil.disk_usage("/dev/shm").free // 2))
    return most


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the time of a block."""
    before = {key: os.environ.get(key) for key in (*values, *SET_BY_RAY)}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
