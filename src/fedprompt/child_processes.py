"""Child processes that end with their parent, also where it is killed and can clean up nothing."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait

POLL = 1.0  # seconds between looks for the parent, where nothing tells of its end
PR_SET_PDEATHSIG = 1  # of prctl(2)


def end_with_parent() -> None:
    """End this process when its parent does; to be called at its start, in its main thread.

    A thread waits for the parent's end: on the pipe that processes of `multiprocessing` inherit, elsewhere by asking
    for the parent. On Linux the kernel sends SIGKILL too, which also ends a process that is stuck.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        # No signal here: the kernel sends it when the thread ends that started the process, not only with the process.
        _watch(lambda: bool(wait([parent.sentinel])))
        return
    number = os.getppid()
    kill_with_parent()
    _watch(lambda: _outlived(number))


def kill_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends; Linux only, elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start_worker(initialize: Callable[..., object], *arguments: object) -> None:
    """The initializer of a pool's processes: end with the parent, and call `initialize`."""
    end_with_parent()
    initialize(*arguments)


def _outlived(parent: int) -> bool:
    while os.getppid() == parent:
        time.sleep(POLL)
    return True


def _watch(ended: Callable[[], bool]) -> None:
    def end() -> None:
        if ended():
            os._exit(1)

    threading.Thread(target=end, daemon=True, name="end with parent").start()
