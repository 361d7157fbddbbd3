"""How many attention heads the towers of a checkpoint have, which no shape says: stated, or known of a width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from fedprompt.clip.checkpoints.config import HEAD_WIDTH, NAME, Heads, OpenClipConfig
from fedprompt.clip.checkpoints.reading import Tensors
from fedprompt.errors import UserError

# The widths of all published towers of the kinds that are read, and how wide their heads are.
IMAGES: Mapping[int, int] = {
    **dict.fromkeys((384, 512, 768, 896, 1024), HEAD_WIDTH),  # S, M, B, B-plus, L
    **{1280: 80, 1408: 88, 1664: 104, 1792: 112},  # H, g, bigG, e
}
TEXTS: Mapping[int, int] = dict.fromkeys((256, 384, 512, 640, 768, 1024, 1280), HEAD_WIDTH)
KEYS = {"image": "vision_cfg.head_width", "text": "text_cfg.heads"}
BERTS: Mapping[int, int] = dict.fromkeys((128, 256, 512, 768, 1024), HEAD_WIDTH)  # Devlin (2019), Turc et al. (2019)


def find_heads(about: OpenClipConfig, tensors: Tensors, name: str, given: Heads | None = None) -> Heads:
    """The numbers of heads of the image and the text tower: given by the user, stated, or known of the widths.

    Raises UserError where none of these says them, or they do not divide a width, and KeyError for a missing tensor.
    """
    image = len(tensors["visual.trunk.patch_embed.proj.weight" if about.bert else "visual.conv1.weight"])
    text = tensors["text.transformer.embeddings.word_embeddings.weight" if about.bert else "token_embedding.weight"]
    width = text.shape[-1]
    if given is not None:
        return _divided("image", image, given[0], name), _divided("text", width, given[1], name)
    if about.bert:  # what its configuration may say of heads is not read by open_clip
        heads = _count(width, BERTS) or about.text_heads or _refuse("text", width, name)
        return image // HEAD_WIDTH, _divided("text", width, heads, name)
    head_width = about.vision_head_width or IMAGES.get(image) or _refuse("image", image, name)
    if image % head_width:
        raise UserError(
            f"The image tower of {name} has width {image}, which cannot be divided into heads of {head_width}; correct "
            f"{KEYS['image']} in its {NAME}."
        )
    heads = about.text_heads or _count(width, TEXTS) or _refuse("text", width, name)
    return image // head_width, _divided("text", width, heads, name)


def _count(width: int, head_widths: Mapping[int, int]) -> int | None:
    return width // head_widths[width] if width in head_widths else None


def _refuse(tower: str, width: int, name: str) -> NoReturn:
    raise UserError(
        f"Nothing says how many attention heads the {tower} tower of {name} has, and its width {width} is that of no "
        f"published one; give it an {NAME} with {KEYS[tower]}, or say them in a conversion: fedprompt "
        "backbone convert CKPT OUT --heads IMAGE TEXT (the numbers of heads of both towers)."
    )


def _divided(tower: str, width: int, heads: int, name: str) -> int:
    """The number of heads, if it divides the width."""
    if heads < 1 or width % heads:
        raise UserError(
            f"The {tower} tower of {name} has width {width}, which cannot be divided into {heads} heads; correct "
            f"{KEYS[tower]} in its {NAME}, or --heads."
        )
    return heads
