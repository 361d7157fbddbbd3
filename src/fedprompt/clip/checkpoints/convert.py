"""Converting a checkpoint into a folder of safetensors, once, which is checked against the published forward pass."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from fedprompt.clip.checkpoints import published
from fedprompt.clip.checkpoints.config import NAME, Activation, Heads
from fedprompt.clip.checkpoints.opening import SUFFIXES, OpenedCheckpoint, find_checkpoint, open_checkpoint
from fedprompt.clip.checkpoints.reading import read_tensors
from fedprompt.clip.checkpoints.weights import check_whole
from fedprompt.clip.folders import POSITIONS
from fedprompt.clip.hub import is_hub_id
from fedprompt.clip.loading import family_of, quiet
from fedprompt.clip.model import Clip
from fedprompt.errors import UserError, option
from fedprompt.file_system import entries, is_file, is_folder, new_folder

PICKLED = "pytorch_model.bin"
TEXTS = ("a photo of a dog.", "two cats", "x")
TOLERANCE = 1e-4  # of a component of a unit feature, in float32


@dataclass(frozen=True)
class Converted:
    """A folder with its family, the fingerprint, and by how much its features differ from the checkpoint's."""

    folder: Path
    title: str
    fingerprint: str
    difference: float | None  # None where weights were compared, which keep their names
    assumed: tuple[str, ...] = ()  # what of the preprocessing no configuration said, and is OpenAI's
    assumed_heads: Heads | None = None  # of the image and text tower, which nothing but the widths says


def convert(
    path: Path,
    folder: Path,
    *,
    activation: Activation | None = None,
    heads: Heads | None = None,
    tokenizer: str | None = None,
    load: Callable[[Path], Clip] = Clip.load,
) -> Converted:
    """Write the checkpoint at `path`, a file or a folder, as a folder of a family, with its tokenizer.

    Random images and a few texts are encoded by the written folder and by the checkpoint's own tensors and published
    formulas; the folder appears when they agree, or not at all. Raises UserError for what `open_checkpoint` refuses, if
    features differ, or if the folder is not new.
    """
    path = path.expanduser()
    if not is_folder(path) and not is_file(path):
        hub = is_hub_id(str(path)) and path.suffix not in SUFFIXES
        fix = f"; convert takes no Hub id; fetch it first: fedprompt backbone fetch {path} FOLDER" if hub else ""
        raise UserError(f"There is no such file or folder as {path}{fix or '; give the path of a checkpoint'}.")
    found = find_checkpoint(path)
    if found is None:
        given = {"activation": activation, "heads": heads, "tokenizer": tokenizer}
        if wrong := next((name for name, value in given.items() if value), None):
            raise UserError(
                f"{path} is a Hugging Face folder, whose activation, heads and tokenizer are its own; leave out "
                f"{option(wrong)}."
            )
        return _convert_folder(path, folder, load=load)
    opened = open_checkpoint(found, activation=activation, heads=heads, tokenizer=tokenizer)
    with new_folder(folder) as part:
        with quiet(progress=False):
            for one in (opened.model, opened.tokenizer, opened.processor):
                one.save_pretrained(part)
        clip = load(part)
        difference = largest_difference(clip, opened)
        if not difference <= TOLERANCE:
            raise UserError(
                f"The features of {path} differ by {difference:.2g} after conversion, more than {TOLERANCE:g}; nothing "
                "was written. Please report this with the checkpoint's name."
            )
    about = opened.config
    assumed = tuple(key for key in ("mean", "std") if not about.preprocessing.get(key))
    known = about.heads if heads is None and about.vision_head_width is None else None
    return Converted(folder, clip.family.title, clip.fingerprint, difference, assumed, known)


def _convert_folder(path: Path, folder: Path, *, load: Callable[[Path], Clip]) -> Converted:
    """Write a Hugging Face folder whose weights are not safetensors as one whose are; their names stay."""
    if not is_file(path / PICKLED):
        if is_file(path / NAME):
            raise UserError(
                f"{path} needs no conversion: the Hugging Face model that its config.json names is taken. To convert "
                "the checkpoint of open_clip beside it, give its file."
            )
        raise UserError(
            f"{path} is no checkpoint to convert: give a .pt, .pth, .bin or .safetensors file of OpenAI's or "
            f"open_clip's CLIP, a folder with open_clip_config.json, or one with {PICKLED}; other Hugging Face folders "
            "are used as they are."
        )
    family, name = family_of(path), str(path / PICKLED)
    tensors = {key: one for key, one in read_tensors(path / PICKLED).items() if not key.endswith(POSITIONS)}
    with torch.random.fork_rng(devices=()):  # a new module draws initial weights
        model = family.model(family.model.config_class.from_pretrained(path))
    check_whole(tensors, dict(model.state_dict()), name)
    model.load_state_dict(tensors)
    with new_folder(folder) as part:
        for one in entries(path):
            if one.is_file() and one.name.endswith((".json", ".txt", ".model", ".md")) and "index" not in one.name:
                shutil.copyfile(one.path, part / one.name)
        with quiet(progress=False):
            model.save_pretrained(part)
        clip = load(part)
        written = dict(clip.model.state_dict())
        pairs = [(written[key].cpu(), one.to(written[key].dtype)) for key, one in tensors.items()]
        if not all(torch.equal(ours, theirs) for ours, theirs in pairs):
            raise UserError(f"The weights of {path} are not the same after conversion; nothing was written.")
    return Converted(folder, family.title, clip.fingerprint, None)


@torch.no_grad()
def largest_difference(clip: Clip, opened: OpenedCheckpoint) -> float:
    """The largest difference of unit image and text features between a backbone and the checkpoint's own tensors."""
    side = clip.image_tower.side
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    ours = [clip.encode_image(clip.image_tower.embed(pixels)).image]
    theirs = [published.image_features(opened.tensors, opened.config, pixels)]
    for row in clip.tokenizer.sentences(TEXTS):
        ids = torch.tensor([row])
        ours.append(clip.text_tower.encode(clip.text_tower.embed(ids), torch.tensor([len(row) - 1])))
        theirs.append(published.text_features(opened.tensors, opened.config, ids))
    pairs: list[tuple[Any, Any]] = list(zip(ours, theirs, strict=True))
    return max(float((normalize(one, dim=-1) - normalize(other, dim=-1)).abs().max()) for one, other in pairs)
