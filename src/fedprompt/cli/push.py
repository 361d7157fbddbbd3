"""The command `push`: a trained adapter with its model card as a repository of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER_OR_RUN", help="Folder of an adapter or of a run.")],
    name: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="The repository, which is made if it is not there.")
    ],
    trial: Annotated[str | None, typer.Option("--trial", help="Trial of the run (default: the main one).")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the backbone, if the adapter was trained with a copy in a folder.")
    ] = None,
) -> None:
    """Upload an adapter to the Hugging Face Hub, without paths of this machine, and print its commit."""
    from fedprompt.file_system import require_folder

    require_folder(adapter, "give the folder of a run or of an adapter")  # before torch is imported
    from fedprompt.api.adapters import load_adapter

    commit = load_adapter(adapter, trial=trial).push_to_hub(name, private=not public, base_model=base_model)
    typer.echo(f"{name} has the adapter at commit {commit}.")
    typer.echo(f"Load it with: fedprompt.load_adapter({name!r}, revision={commit!r})")
