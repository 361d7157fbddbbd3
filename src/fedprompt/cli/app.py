"""The command `app`: a page on this machine that classifies images with trained adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedprompt.cli.config import TrustCode


def app(
    places: Annotated[list[Path], typer.Argument(metavar="RUN_OR_ADAPTER...", help="Folders of runs or of adapters.")],
    trial: Annotated[
        list[str] | None, typer.Option("--trial", help="Trial of the runs (default: the main one); repeatable.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to serve on; beyond this machine it needs --token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any that is free.")] = 8150,
    token: Annotated[str, typer.Option(help="Secret that a browser must send.")] = "",
    backbone: Annotated[str | None, typer.Option(help="Folder of the backbone, if it lies elsewhere now.")] = None,
    trust_code: TrustCode = None,
) -> None:
    """Serve a page where one drops images, types classes and sees what adapters and zero-shot CLIP recognise."""
    from fedprompt.file_system import require_folder

    for place in places:  # before torch is imported, which takes seconds
        require_folder(place, "give the folder of a run or of an adapter")
    _require_starlette()
    from fedprompt.webapp.adapters import Adapters
    from fedprompt.webapp.server import Address, serve

    address = Address(host, port, token)
    address.check()
    bound = address.bind()
    adapters = Adapters.open(places, trials=trial or (), trusted=trust_code or (), backbone=backbone)
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"Open http://{shown}:{bound.getsockname()[1]}/{'?token=TOKEN' if token else ''} in a browser.")
    typer.echo("Ctrl-C ends the server.")
    serve(adapters, address, bound)


def _require_starlette() -> None:
    from importlib.util import find_spec

    from fedprompt.errors import UserError

    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise UserError("The page needs two packages; install them with: pip install 'fedprompt[app]'.")
