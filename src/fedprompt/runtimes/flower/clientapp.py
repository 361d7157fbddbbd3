"""Flower's client process with fedprompt's own ClientApp: `python -m fedprompt.runtimes.flower.clientapp [ARGUMENTS]`.

Flower installs and imports the app that the server sends with each run, so whoever has the server could run any code at
every site. Here nothing of that app is installed or imported.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

NAME = "flwr-clientapp"  # as Flower calls it


def main() -> None:
    """Answer one message with the arguments of this process."""
    from flwr.supernode.cli import flwr_clientapp
    from flwr.supernode.runtime import run_clientapp

    for name, own in (("install_from_fab", _nothing), ("get_load_client_app_fn", _own_app)):
        if not hasattr(run_clientapp, name):  # another version of Flower, which would import the server's app
            raise SystemExit(f"This version of Flower has no {name}; install one that fedprompt was tested with.")
        setattr(run_clientapp, name, own)
    flwr_clientapp()


def install(folder: Path) -> Path:
    """Write a program of Flower's name that runs this module; returns its folder, which is to be first in PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / NAME
    part = program.with_suffix(".part")
    part.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {__spec__.name} "$@"\n', encoding="utf-8")
    part.chmod(0o700)
    os.replace(part, program)
    return folder


def _nothing(*_: object, **__: object) -> None:
    """Install no app."""


def _own_app(**_: object) -> Callable[..., object]:
    """What loads the ClientApp of the installed fedprompt, whichever app the server names."""
    from fedprompt.deploy.apps import client

    return lambda *_: client


if __name__ == "__main__":
    main()
