"""The configuration of an open_clip checkpoint: what of it is supported, and what it says of the towers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedprompt.errors import UserError
from fedprompt.file_system import read_bytes
from fedprompt.text_files import load_json_object

Activation = Literal["gelu", "quick_gelu"]
HEAD_WIDTH = 64  # of OpenAI's models, timm's vision transformers up to ViT-L, and BERT
NAME = "open_clip_config.json"

# Keys that sizes are read from, or that matter only while a model is trained.
PLAIN = {
    "model_cfg": {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale"},
    "vision_cfg": {
        *("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout", "output_tokens"),
        *("timm_model_name", "timm_model_pretrained", "timm_drop", "timm_drop_path"),
    },
    "text_cfg": {
        *("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "output_tokens"),
        *("hf_model_name", "hf_tokenizer_name", "hf_model_pretrained"),
    },
}
# The one value of a key that is supported besides an empty one.
FIXED: Mapping[str, object] = {
    "pool_type": {"vision_cfg": "tok", "text_cfg": "argmax"},
    "pos_embed_type": "learnable",
    "proj_type": "linear",
    "timm_pool": "token",
    "timm_proj": "linear",
    "hf_pooler_type": "cls_last_hidden_state_pooler",
    "hf_proj_type": "mlp",
}
TIMM = re.compile(r"vit_(tiny|small|base|large)_patch\d+_\d+(\.\w+)?")  # with a class token, its heads 64 wide
BERT = re.compile(r"([a-z0-9]*[^a-z0-9])*(bio|biomed|pubmed|sci|clinical|medical|med)?bert(?![a-z]).*", re.IGNORECASE)


@dataclass(frozen=True)
class OpenClipConfig:
    """A checkpoint's towers as its configuration gives them; `sizes` are those that the weights must have too."""

    activation: Activation
    image_size: int
    vision_head_width: int = HEAD_WIDTH
    text_heads: int | None = None
    context_length: int | None = None
    bert: bool = False  # a timm vision transformer with a BERT from the Hub, as BiomedCLIP has them
    sizes: Mapping[str, int] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)


def read_config(path: Path) -> OpenClipConfig:
    """Read an `open_clip_config.json`; UserError, with the key, for what is not supported or malformed."""
    try:
        content = load_json_object(read_bytes(path))
        model = content.get("model_cfg", content)
        vision, text = model["vision_cfg"], model["text_cfg"]
        for place, table in (("model_cfg", model), ("vision_cfg", vision), ("text_cfg", text)):
            _check_keys(path, place, table)
        return _config(path, model, content.get("preprocess_cfg", {}))
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no configuration of an open_clip model ({error!r}); copy it again.") from error


def _check_keys(path: Path, place: str, table: Mapping[str, Any]) -> None:
    for key, value in table.items():
        fixed = FIXED.get(key)
        fixed = fixed.get(place) if isinstance(fixed, Mapping) else fixed
        if key not in PLAIN[place] and value and value != fixed:
            raise UserError(
                f"{path} sets {place}.{key} = {value!r}, which is not supported for open_clip checkpoints; use the "
                "same model as a Hugging Face folder (of clip, siglip or metaclip_2), if there is one."
            )


def _config(path: Path, model: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> OpenClipConfig:
    vision, text = model["vision_cfg"], model["text_cfg"]
    timm, hugging_face = vision.get("timm_model_name"), text.get("hf_model_name")
    if bool(timm) != bool(hugging_face):
        raise UserError(f"{path} has a tower of timm or of the Hub beside another; only a ViT with a BERT is read.")
    if timm and not (TIMM.fullmatch(timm) and BERT.fullmatch(hugging_face.rpartition("/")[2])):
        raise UserError(
            f"{path} names the towers {timm} and {hugging_face}; of those of timm and the Hub, only a plain ViT with a "
            "BERT is supported, as in BiomedCLIP."
        )
    size = vision.get("image_size", 224)
    if not isinstance(size, int):
        raise UserError(f"{path} says image_size = {size!r}, but only square images are read; use another checkpoint.")
    sizes = {"joint width": model["embed_dim"], "text layers": text.get("layers"), "text width": text.get("width")}
    sizes |= {"vocabulary": text.get("vocab_size"), "image layers": vision.get("layers")}
    sizes |= {"image width": vision.get("width"), "patch size": vision.get("patch_size")}
    sizes |= {"context length": None if timm else text.get("context_length")}
    return OpenClipConfig(
        activation="quick_gelu" if model.get("quick_gelu") else "gelu",
        image_size=size,
        vision_head_width=vision.get("head_width", HEAD_WIDTH),
        text_heads=text.get("heads"),
        context_length=text.get("context_length"),
        bert=bool(timm),
        sizes={name: value for name, value in sizes.items() if value is not None},
        preprocessing=preprocessing,
    )
