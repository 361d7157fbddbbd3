"""Opening a checkpoint of OpenAI or open_clip as a model of a family, with its tokenizer and preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, CLIPImageProcessorPil, PreTrainedModel

from fedprompt.clip.checkpoints.config import HEAD_WIDTH, NAME, Activation, Heads, OpenClipConfig, read_config
from fedprompt.clip.checkpoints.reading import Tensors, check_dimensions, read_tensors
from fedprompt.clip.checkpoints.weights import build_model
from fedprompt.clip.families import names
from fedprompt.clip.hub import hub_answers
from fedprompt.clip.refusals import REFUSALS, reason
from fedprompt.errors import UserError, option
from fedprompt.file_system import is_file, is_folder, read_bytes
from fedprompt.text_files import load_json_object

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
TOKENIZER = ("tokenizer.json", "vocab.json", "vocab.txt")
OPENAI_ONLY = "input_resolution"  # which OpenAI's state dicts hold besides the weights
RESAMPLE = {"bicubic": 3, "bilinear": 2, "nearest": 0}  # numbers of PIL


@dataclass(frozen=True)
class Checkpoint:
    """The files of a checkpoint: its weights, its configuration if it has one, and where its tokenizer is."""

    weights: Path
    config: Path | None
    tokenizer: Path | str


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint as a model of a family, with the tensors that it was made from."""

    model: PreTrainedModel
    tokenizer: Any
    processor: Any
    tensors: Tensors
    config: OpenClipConfig


def find_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint that a file or a folder is; None for a Hugging Face folder, and for anything else."""
    if is_folder(path):
        return None if _is_hugging_face(path) else _in_folder(path)
    if not is_file(path) or path.suffix not in SUFFIXES:
        return None
    config = next((one for one in (path.with_suffix(".json"), path.parent / NAME) if is_file(one)), None)
    if config is None and _model_type(path.parent) in names():
        raise UserError(f"{path} is a part of the Hugging Face folder {path.parent}; give the folder.")
    return Checkpoint(path, config, path.parent)


def open_checkpoint(
    found: Checkpoint,
    *,
    activation: Activation | None = None,
    heads: Heads | None = None,
    tokenizer: str | None = None,
) -> OpenedCheckpoint:
    """Open a checkpoint; UserError for anything that is missing, damaged, contradictory or more than tensors.

    `activation` is needed for a checkpoint without a configuration that is not OpenAI's own, and must not contradict
    what either says; `heads` are for one whose widths are of no published model. `tokenizer` is a folder or Hub id,
    where the checkpoint has no tokenizer beside it.
    """
    name, tensors = str(found.weights), read_tensors(found.weights)
    check_dimensions(tensors, name)
    config = read_config(found.config) if found.config else _bare_config(tensors, activation, name)
    source = str(found.config) if found.config else f"{name}, which has {OPENAI_ONLY} as OpenAI's models have"
    if activation not in (None, config.activation):
        raise UserError(
            f"{option('activation')} {activation} contradicts {source}: the model was trained with "
            f"{config.activation}; leave the option out, or correct the configuration."
        )
    if heads is not None and config.vision_head_width:
        raise UserError(f"{option('heads')} is for a checkpoint that says none, unlike {source}; leave the option out.")
    model, config = build_model(tensors, config, name, heads)
    return OpenedCheckpoint(
        model, _tokenizer(tokenizer or found.tokenizer, name), _processor(config, name), tensors, config
    )


def _is_hugging_face(folder: Path) -> bool:
    """Whether a folder's config.json names a supported family, or there is nothing of open_clip in it."""
    return not is_file(folder / NAME) or _model_type(folder) in names()


def _model_type(folder: Path) -> object:
    """What a folder's config.json names; None if it is missing or damaged."""
    try:
        return load_json_object(read_bytes(folder / "config.json")).get("model_type")
    except ValueError:
        return None


def _in_folder(folder: Path) -> Checkpoint:
    others = sorted(one.name for one in folder.iterdir() if one.suffix in SUFFIXES)
    known = [name for name in WEIGHTS if name in others] or others
    if not known:
        raise UserError(f"The folder {folder} has {NAME} but no weights ({' or '.join(WEIGHTS)}); copy them there.")
    if known == others and len(known) > 1 and known[0] not in WEIGHTS:
        raise UserError(f"The folder {folder} has several checkpoints, {known[0]} and {known[1]}; give the file.")
    return Checkpoint(folder / known[0], folder / NAME, folder)


def _bare_config(tensors: Tensors, activation: Activation | None, name: str) -> OpenClipConfig:
    """What a checkpoint without a configuration is: OpenAI's models use QuickGELU, others must be told."""
    openai = OPENAI_ONLY in tensors
    activation = "quick_gelu" if openai else activation
    if activation is None:
        raise UserError(
            f"{name} has no {NAME} beside it, and its weights do not say which activation it was trained with; say "
            "it in a conversion: fedprompt backbone convert CKPT OUT --activation gelu (most models of open_clip) or "
            "quick_gelu (OpenAI's and those trained from them)."
        )
    try:
        patch = tensors["visual.conv1.weight"].shape[-1]
        side = round((len(tensors["visual.positional_embedding"]) - 1) ** 0.5) * patch
        width = tensors["token_embedding.weight"].shape[-1]
    except (KeyError, IndexError):
        side = width = 0  # which is refused with the names of the tensors
    if not openai:
        return OpenClipConfig(activation=activation, image_size=side)
    return OpenClipConfig(activation, side, vision_head_width=HEAD_WIDTH, text_heads=width // HEAD_WIDTH)


def _tokenizer(place: Path | str, name: str) -> Any:
    folder = Path(place).expanduser()
    here = is_folder(folder)
    if here and not any(is_file(folder / one) for one in TOKENIZER):
        raise UserError(
            f"{name} has no tokenizer beside it ({', '.join(TOKENIZER)}); copy its files there, or name a folder or an "
            "id of the Hub that has it: fedprompt backbone convert CKPT OUT --tokenizer openai/clip-vit-base-patch16."
        )
    try:  # without a network the library would try for a minute
        return AutoTokenizer.from_pretrained(
            folder if here else str(place), local_files_only=here or not hub_answers(), trust_remote_code=False
        )
    except REFUSALS as error:
        why = reason(error) if here else "it is no folder, and neither the Hub nor its cache has it."
        raise UserError(f"The tokenizer {place} cannot be opened: {why} Give a folder or an id of the Hub.") from error


def _processor(about: OpenClipConfig, name: str) -> CLIPImageProcessorPil:
    """open_clip's preprocessing: OpenAI's, unless the configuration says otherwise."""
    given, side = about.preprocessing, about.image_size
    mode, resample = given.get("resize_mode") or "shortest", given.get("interpolation") or "bicubic"
    if mode not in ("shortest", "squash") or resample not in RESAMPLE:
        raise UserError(
            f"The preprocessing of {name} resizes by {mode!r} and {resample!r}; only shortest and squash with "
            f"{', '.join(RESAMPLE)} are supported."
        )
    square = {"height": side, "width": side}
    colours: Mapping[str, Any] = {f"image_{key}": given[key] for key in ("mean", "std") if given.get(key)}
    return CLIPImageProcessorPil(
        size={"shortest_edge": side} if mode == "shortest" else square,
        do_center_crop=mode == "shortest",
        crop_size=square,
        resample=RESAMPLE[resample],
        **colours,
    )
