"""The configuration of an open_clip checkpoint: what of it is supported, and what it says of the towers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedprompt.errors import UserError
from fedprompt.file_system import read_bytes
from fedprompt.text_files import load_json_object

Activation = Literal["gelu", "quick_gelu"]
Heads = tuple[int, int]  # of the image tower and of the text tower
HEAD_WIDTH = 64  # of OpenAI's models, timm's vision transformers up to ViT-L, and BERT; open_clip's default
TEXT_HEADS = 8  # open_clip's default
NAME = "open_clip_config.json"

# What a value must be, in words, and whether it is.
Kind = tuple[str, Callable[[Any], bool]]
TRUTH: Kind = ("true or false", lambda value: isinstance(value, bool))
TEXT: Kind = ("a text", lambda value: isinstance(value, str))
NUMBER: Kind = ("a number", lambda value: type(value) in (int, float))
WHOLE: Kind = ("a whole number above 0", lambda value: type(value) is int and value > 0)
LAYERS: Kind = (f"{WHOLE[0]} (a list is a ResNet's, and only vision transformers can be prompted)", WHOLE[1])
SQUARE: Kind = (f"{WHOLE[0]} (only square images are read)", WHOLE[1])
COLOURS: Kind = ("a list of three numbers", lambda value: is_colours(value))
SPREADS: Kind = ("a list of three numbers above 0", lambda value: is_colours(value) and min(value) > 0)

# Keys that sizes are read from, or that matter only while a model is trained.
PLAIN: Mapping[str, Mapping[str, Kind]] = {
    "model_cfg": {"embed_dim": WHOLE, "quick_gelu": TRUTH, "custom_text": TRUTH, "init_logit_scale": NUMBER},
    "vision_cfg": {
        **dict.fromkeys(("width", "head_width", "patch_size"), WHOLE),
        **dict.fromkeys(("mlp_ratio", "patch_dropout", "timm_drop", "timm_drop_path"), NUMBER),
        **{"layers": LAYERS, "image_size": SQUARE, "output_tokens": TRUTH},
        **{"timm_model_name": TEXT, "timm_model_pretrained": TRUTH},
    },
    "text_cfg": {
        **dict.fromkeys(("context_length", "vocab_size", "width", "heads", "layers"), WHOLE),
        **{"mlp_ratio": NUMBER, "output_tokens": TRUTH, "hf_model_pretrained": TRUTH},
        **dict.fromkeys(("hf_model_name", "hf_tokenizer_name"), TEXT),
    },
}
PREPROCESSING: Mapping[str, Kind] = {"mean": COLOURS, "std": SPREADS, "interpolation": TEXT, "resize_mode": TEXT}
# The values of a key that are supported besides an empty one.
FIXED: Mapping[str, tuple[str, ...]] = {
    "vision_cfg.pool_type": ("tok",),
    "text_cfg.pool_type": ("argmax",),
    "vision_cfg.pos_embed_type": ("learnable",),
    "text_cfg.proj_type": ("linear",),
    "vision_cfg.timm_pool": ("token",),
    "vision_cfg.timm_proj": ("linear",),
    "text_cfg.hf_pooler_type": ("cls_last_hidden_state_pooler",),
    "text_cfg.hf_proj_type": ("mlp", "linear"),
}
TIMM = re.compile(r"vit_(tiny|small|base|large)_patch\d+_\d+(\.\w+)?")  # with a class token, its heads 64 wide
BERT = re.compile(r"([a-z0-9]*[^a-z0-9])*(bio|biomed|pubmed|sci|clinical|medical|med)?bert(?![a-z]).*", re.IGNORECASE)


@dataclass(frozen=True)
class OpenClipConfig:
    """A checkpoint's towers as its configuration gives them; `sizes` are those that the weights must have too."""

    activation: Activation
    image_size: int
    vision_head_width: int | None = None  # None, as of the next: not stated
    text_heads: int | None = None
    heads: Heads = (0, 0)  # of both towers, once the weights are read
    context_length: int | None = None
    bert: bool = False  # a timm vision transformer with a BERT from the Hub, as BiomedCLIP has them
    sizes: Mapping[str, int] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)


def is_colours(value: Any) -> bool:
    """Whether a value is a list of three numbers, one per colour."""
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(map(NUMBER[1], value))


def read_config(path: Path) -> OpenClipConfig:
    """Read an `open_clip_config.json`; UserError, with the key, for what is not supported or malformed."""
    try:
        content = load_json_object(read_bytes(path))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is no configuration of an open_clip model: it is no whole JSON object.") from error
    model = _table(path, content, "model_cfg") if "model_cfg" in content else content
    tables = {"model_cfg": model, **{key: _table(path, model, key) for key in ("vision_cfg", "text_cfg")}}
    for place, table in tables.items():
        _check_keys(path, place, table)
        check_kinds(path, place, table, PLAIN[place])
    preprocessing = _table(path, content, "preprocess_cfg") if content.get("preprocess_cfg") is not None else {}
    check_kinds(path, "preprocess_cfg", preprocessing, PREPROCESSING)
    if model.get("embed_dim") is None:
        raise UserError(f"{path} is no configuration of an open_clip model: it has no embed_dim; copy it again.")
    return _config(path, model, preprocessing)


def _table(path: Path, content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = content.get(key)
    if not isinstance(table, dict):
        what = "has no" if table is None else "has no JSON object as"
        raise UserError(f"{path} is no configuration of an open_clip model: it {what} {key}; copy it again.")
    return table


def _check_keys(path: Path, place: str, table: Mapping[str, Any]) -> None:
    for key, value in table.items():
        known = FIXED.get(f"{place}.{key}", ())
        if key in (*PLAIN[place], "vision_cfg", "text_cfg") or not value or value in known:
            continue
        fix = f"; only {' and '.join(known)} can be read" if known else ""
        if not key.startswith(("timm_", "hf_")):  # pairs with such towers are no Hugging Face folders
            fix += "; use the same model as a Hugging Face folder, if there is one"
        raise UserError(
            f"{path} sets {place}.{key} = {value!r}, which is not supported for open_clip checkpoints{fix}."
        )


def check_kinds(path: Path | str, place: str, table: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Raise UserError for a value of another type than its key has; null is as if the key were not there."""
    for key, (words, fits) in kinds.items():
        value = table.get(key)
        if value is not None and not fits(value):
            raise UserError(f"{path} sets {place}.{key} = {value!r}, which must be {words}; correct it.")


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
    sizes = {"joint width": model["embed_dim"], "text layers": text.get("layers"), "text width": text.get("width")}
    sizes |= {"vocabulary": text.get("vocab_size"), "image layers": vision.get("layers")}
    sizes |= {"image width": vision.get("width"), "patch size": vision.get("patch_size")}
    sizes |= {"text heads": text.get("heads"), "image head width": vision.get("head_width")}
    sizes |= {"context length": None if timm else text.get("context_length")}
    return OpenClipConfig(
        activation="quick_gelu" if model.get("quick_gelu") else "gelu",
        image_size=vision.get("image_size") or 224,
        vision_head_width=vision.get("head_width") or HEAD_WIDTH,
        text_heads=text.get("heads") or (None if timm else TEXT_HEADS),
        context_length=text.get("context_length"),
        bert=bool(timm),
        sizes={name: value for name, value in sizes.items() if value is not None},
        preprocessing=preprocessing,
    )
