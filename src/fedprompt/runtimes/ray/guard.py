"""A program that ends what is left of a local Ray when its driver has ended, also where that was killed: MARK FOLDER.

Ray's own processes end with the driver too, but some take minutes for it. They are recognised by a mark in their
environment. The standard library is all that this program imports, so it starts at once and takes little memory.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MARK = "FEDPROMPT_RAY"  # environment variable of all processes of a local Ray
TRIES = 50


def main(mark: str, folder: str) -> None:
    """Wait for the end of standard input, which is that of the driver; then end the processes, delete the folder."""
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)  # they are for the driver, and come to its whole group
    while sys.stdin.buffer.read(1):
        pass
    for _ in range(TRIES):
        left = list(marked(mark))
        for number in left:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        if not left:
            break
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


def marked(mark: str) -> Iterator[int]:
    """The processes with the mark, on Linux; elsewhere Ray's own ways of ending them must do."""
    wanted = f"{MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is another user's
            if wanted in path.read_bytes().split(b"\0"):
                yield int(path.parent.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
