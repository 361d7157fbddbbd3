"""The commands `backbone`: fetch one from the Hub as a folder, say what one is, and convert a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedprompt.errors import series

if TYPE_CHECKING:
    from fedprompt.clip.model import Clip

backbone = typer.Typer(
    no_args_is_help=True, help="Get a backbone for machines without a network, inspect one, or convert a checkpoint."
)


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


@backbone.command()
def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="demo, a folder, a checkpoint, or a Hub id.")],
) -> None:
    """Say what a backbone is: its family, sizes and context length, and which methods it can carry."""
    from fedprompt.config.recipe_tables import BackboneTable
    from fedprompt.experiments.experiment import load_backbone

    for name, found in facts(load_backbone(BackboneTable(path=path, memory_gb=0, device="cpu"))):
        typer.echo(f"{name:<12} {found}")


@backbone.command()
def convert(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="CKPT", help="A .pt, .pth, .bin or .safetensors file of OpenAI or open_clip, or its folder."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder, which backbone.path can name.")],
    activation: Annotated[
        Literal["gelu", "quick_gelu"] | None,
        typer.Option(help="Of a checkpoint without open_clip_config.json: gelu for most."),
    ] = None,
    heads: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="IMAGE TEXT", help="Numbers of heads, of one without it whose widths are not published."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the tokenizer, where none is beside the checkpoint.")
    ] = None,
) -> None:
    """Write a checkpoint as a folder of safetensors, once: tensors are read, nothing in it is executed."""
    from fedprompt.clip.checkpoints.convert import convert as convert_checkpoint

    found = convert_checkpoint(path, out, activation=activation, heads=heads, tokenizer=tokenizer)
    same = "its weights are the file's, number by number"
    if found.difference is not None:
        same = f"its features are the checkpoint's up to {found.difference:.1g}"
    typer.echo(
        f"{path} is in {found.folder} as a {found.title} backbone, fingerprint {found.fingerprint[:12]}; {same}."
    )
    if found.assumed:
        typer.echo(
            f"No configuration says the {series(found.assumed)} of its preprocessing: OpenAI's are assumed. If it was "
            f"trained with others, write them into {found.folder}/preprocessor_config.json."
        )
    if found.assumed_heads:
        image, text = found.assumed_heads
        typer.echo(
            f"Nothing says its heads: {image} of the image tower and {text} of the text tower are assumed, as in "
            "published models of these widths. If it has others, convert it with --heads IMAGE TEXT."
        )
    typer.echo(f"Use it with: --set backbone.path={found.folder}")


def facts(clip: Clip) -> Iterator[tuple[str, str]]:
    """What a backbone is, as lines of a name and what was found; methods that it cannot carry come last."""
    from fedprompt import methods

    tower, lead = clip.image_tower, clip.leading
    yield "family", f"{clip.family.title}, fingerprint {clip.fingerprint[:12]}"
    yield "images", f"{tower.side} x {tower.side} pixels, {clip.patches} patches, {lead or 'no'} class token"
    yield "image tower", f"{clip.image_blocks} blocks of width {clip.image_width}"
    yield "text tower", f"{clip.text_blocks} blocks of width {clip.text_width}, at most {clip.context_length} tokens"
    yield "features", f"width {clip.dim}, logits {clip.scale:.4g} * cosine{f' {clip.bias:+.4g}' if clip.bias else ''}"
    yield "parameters", f"{sum(parameter.numel() for parameter in clip.model.parameters()):,}"
    kinds = {name: methods.load(name) for name in methods.names()}
    refused = {name: reason for name, kind in kinds.items() if (reason := methods.refusal(kind, clip.family))}
    yield "methods", ", ".join(name for name in kinds if name not in refused)
    for name, reason in refused.items():
        yield f"no {name}", reason
