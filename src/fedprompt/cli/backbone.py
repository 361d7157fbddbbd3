"""The command `backbone fetch`: a CLIP from the Hub as a folder, for machines without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

backbone = typer.Typer(no_args_is_help=True, help="Get a CLIP for machines without a network.")


@backbone.callback()
def _group() -> None: ...


@backbone.command()
def fetch(
    name: Annotated[
        str, typer.Argument(metavar="ID", help="A CLIP on the Hugging Face Hub, e.g. openai/clip-vit-base-patch16.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder, which backbone.path can name.")],
    revision: Annotated[str, typer.Option(help="A branch, a tag or a commit; the commit is recorded.")] = "main",
) -> None:
    """Copy a CLIP from the Hub into a folder: safetensors only, one commit, checked by opening it."""
    from fedprompt.clip.fetching import fetch as fetch_clip
    from fedprompt.report import size_text

    found = fetch_clip(name, out, revision=revision)
    typer.echo(
        f"{name} at commit {found.commit[:12]} is in {found.folder}: {size_text(found.size)}, fingerprint "
        f"{found.fingerprint[:12]}."
    )
    typer.echo(f"Use it with: --set backbone.path={found.folder}")
