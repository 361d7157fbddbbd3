"""Why a run over sites stopped, in a file of the run's folder that can be written on a full disk too."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fedprompt.records.atomic_files import write_atomic

STOPPED = "stopped.txt"  # in a run's folder: why the run stopped
RESERVED = ".stopped"  # in a run's folder while it runs: the space for it, which nothing else can take
SPACE = 4096  # bytes
FULL = 1 << 20  # bytes; with less free space a disk is as good as full


def reserve(folder: Path) -> None:
    """Remove the reason of an earlier stop, and take the space for one."""
    (folder / STOPPED).unlink(missing_ok=True)
    write_atomic(folder / RESERVED, b" " * SPACE)


def write_stopped(folder: Path, reason: str) -> None:
    """Write the reason into the reserved space, and give the file its name; neither needs space on the disk."""
    content = reason.encode()[:SPACE].ljust(SPACE)
    with (folder / RESERVED).open("rb+", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())
    (folder / RESERVED).replace(folder / STOPPED)


def read_stopped(folder: Path) -> str | None:
    """Why a run stopped; None if it left no reason."""
    path = folder / STOPPED
    return path.read_text(encoding="utf-8", errors="replace").rstrip() if path.exists() else None


def guessed_reason(folder: Path) -> str:
    """What may have ended a run that left no reason."""
    if shutil.disk_usage(folder).free < FULL:
        return f"The disk of {folder} is full; free some space"
    return f"The run {folder} was killed, or could not begin; see logs/superlink.log of the deployment"
