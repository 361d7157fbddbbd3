"""The weights of OpenAI's and open_clip's models under the names of transformers; sizes are read from their shapes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedModel

from fedprompt.clip.checkpoints.config import Heads, OpenClipConfig
from fedprompt.clip.checkpoints.heads import find_heads
from fedprompt.clip.checkpoints.reading import Tensors
from fedprompt.clip.families.vit_bert import ViTBertConfig, ViTBertModel
from fedprompt.errors import UserError, plural

IGNORED = ("attn_mask", "input_resolution", "context_length", "vocab_size", "position_ids", "token_type_ids")
STATED = {"context_length": "context length", "vocab_size": "vocabulary"}  # numbers in OpenAI's state dicts
# Patterns of names and what they become; the first that matches holds. A projection [W, D] is transposed.
CLIP_NAMES = (
    (r"visual\.class_embedding", "vision_model.embeddings.class_embedding"),
    (r"visual\.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    (r"visual\.conv1\.weight", "vision_model.embeddings.patch_embedding.weight"),
    (r"visual\.ln_pre\.(\w+)", r"vision_model.pre_layrnorm.\1"),
    (r"visual\.ln_post\.(\w+)", r"vision_model.post_layernorm.\1"),
    (r"visual\.proj", "visual_projection.weight"),
    (r"visual\.transformer\.resblocks\.(\d+)\.(.+)", r"vision_model.encoder.layers.\1.\2"),
    (r"token_embedding\.weight", "text_model.embeddings.token_embedding.weight"),
    (r"positional_embedding", "text_model.embeddings.position_embedding.weight"),
    (r"ln_final\.(\w+)", r"text_model.final_layer_norm.\1"),
    (r"text_projection", "text_projection.weight"),
    (r"transformer\.resblocks\.(\d+)\.(.+)", r"text_model.encoder.layers.\1.\2"),
    (r"logit_scale", "logit_scale"),
)
BERT_NAMES = (
    (r"visual\.trunk\.cls_token", "vision_model.embeddings.class_embedding"),
    (r"visual\.trunk\.pos_embed", "vision_model.embeddings.position_embedding.weight"),
    (r"visual\.trunk\.patch_embed\.proj\.(\w+)", r"vision_model.embeddings.patch_embedding.\1"),
    (r"visual\.trunk\.norm\.(\w+)", r"vision_model.post_layernorm.\1"),
    (r"visual\.trunk\.blocks\.(\d+)\.(.+)", r"vision_model.encoder.layers.\1.\2"),
    (r"visual\.head\.proj\.weight", "visual_projection.weight"),
    (r"text\.transformer\.(.+)", r"text_model.\1"),
    (r"text\.proj\.(\d)\.weight", r"text_projection.\1.weight"),
    (r"text\.proj\.weight", "text_projection.weight"),
    (r"logit_scale", "logit_scale"),
)
TRANSPOSED = ("visual.proj", "text_projection")
CLIP_BLOCKS = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}  # fmt: skip
TIMM_BLOCKS = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj"}
IN_BLOCKS = CLIP_BLOCKS | TIMM_BLOCKS
JOINED = re.compile(r"(.+layers\.\d+)\.attn\.(?:in_proj_|qkv\.)(weight|bias)")


def build_model(
    tensors: Tensors, about: OpenClipConfig, name: str, heads: Heads | None = None
) -> tuple[PreTrainedModel, OpenClipConfig]:
    """A model of transformers with these weights, and the configuration with the heads of its towers.

    `heads` are those that the user says. UserError if weights are not whole or not what the configuration says.
    """
    tensors = {key.removeprefix("text.") if not about.bert else key: one for key, one in tensors.items()}
    _check_kind(tensors, about, name)
    table = BERT_NAMES if about.bert else CLIP_NAMES
    renamed = dict(_renamed(tensors, table, name))
    try:
        about = replace(about, heads=find_heads(about, tensors, name, heads))
        with torch.random.fork_rng(devices=()):  # a new module draws initial weights
            model = (_bert_model if about.bert else _clip_model)(tensors, about, name)
    except KeyError as error:
        raise UserError(f"{name} lacks the tensor {error}; give a whole checkpoint.") from error
    _check_sizes(model, tensors, about, name)
    check_whole(renamed, dict(model.state_dict()), name, functools.partial(_in_file, bert=about.bert))
    model.load_state_dict(renamed)
    return model, about


def _check_kind(tensors: Tensors, about: OpenClipConfig, name: str) -> None:
    if any(key.startswith(("visual.layer1.", "visual.attnpool.")) for key in tensors):
        raise UserError(f"The image tower of {name} is a ResNet; only vision transformers can be prompted.")
    if "logit_bias" in tensors:
        raise UserError(
            f"{name} was trained with a sigmoid loss (it has a logit_bias); use the same model as a Hugging Face "
            "folder of siglip."
        )
    first = "visual.trunk.cls_token" if about.bert else "visual.class_embedding"
    if first not in tensors:
        shown = ", ".join(sorted(tensors)[:3])
        raise UserError(
            f"{name} is no CLIP of OpenAI or open_clip with a vision transformer: it has no {first}, but {shown} ...; "
            "give such a checkpoint, or a Hugging Face folder."
        )


def _renamed(tensors: Tensors, table: Iterable[tuple[str, str]], name: str) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors as transformers has them; queries, keys and values are split."""
    extra = []
    for key, tensor in tensors.items():
        found = next((new for new in (_match(old, to, key) for old, to in table) if new), None)
        if key.rpartition(".")[2] in IGNORED:
            continue
        if found is None:
            extra.append(key)
            continue
        if joined := JOINED.fullmatch(found):
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                yield f"{joined[1]}.self_attn.{part}_proj.{joined[2]}", piece
            continue
        tensor = tensor.T if key in TRANSPOSED else tensor
        yield _in_block(found), _flat(found, tensor)
    if extra:
        raise UserError(_extra(name, extra))


def _match(old: str, new: str, key: str) -> str | None:
    found = re.fullmatch(old, key)
    return found.expand(new) if found else None


def _in_block(name: str) -> str:
    """The name of a tensor of a block, the parts of which have other names in transformers."""
    block, mark, rest = name.partition(".layers.")
    number, _, part = rest.partition(".")
    stem, _, leaf = part.rpartition(".")
    return f"{block}{mark}{number}.{IN_BLOCKS.get(stem, stem)}.{leaf}" if mark else name


def _in_file(name: str, *, bert: bool) -> str:
    """The name that a tensor of transformers' model has in a checkpoint: the tables backwards."""
    if block := re.fullmatch(r"(.+\.layers\.\d+)\.(.+)\.(weight|bias)", name):
        stems = {new: f"{old}." for old, new in (TIMM_BLOCKS if bert else CLIP_BLOCKS).items()}
        stems |= {f"self_attn.{part}_proj": "attn.qkv." if bert else "attn.in_proj_" for part in "qkv"}
        name = f"{block[1]}.{stems.get(block[2], block[2] + '.')}{block[3]}"
    for old, new in BERT_NAMES if bert else CLIP_NAMES:
        groups = re.findall(r"\([^)]+\)", old)
        pattern = re.sub(r"\\\\(\d)", lambda place: groups[int(place[1]) - 1], re.escape(new))  # noqa: B023  (used at once)
        if found := re.fullmatch(pattern, name):
            return re.sub(r"\([^)]+\)", "{}", old.replace("\\.", ".")).format(*found.groups())
    return name


def _flat(name: str, tensor: Tensor) -> Tensor:
    """Without the leading dimensions of size one that timm has."""
    if name.endswith("class_embedding"):
        return tensor.reshape(-1)
    return tensor[0] if name.endswith("position_embedding.weight") and tensor.ndim == 3 else tensor


def _depth(tensors: Tensors, stem: str) -> int:
    """The number of blocks whose names begin with a stem."""
    numbers = {int(found[1]) for key in tensors if (found := re.match(rf"{re.escape(stem)}\.(\d+)\.", key))}
    return max(numbers, default=-1) + 1


def _clip_model(tensors: Tensors, about: OpenClipConfig, name: str) -> PreTrainedModel:
    vocabulary, width = tensors["token_embedding.weight"].shape
    text = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": len(tensors["transformer.resblocks.0.mlp.c_fc.weight"]),
        "num_hidden_layers": _depth(tensors, "transformer.resblocks"),
        "num_attention_heads": about.heads[1],
        "max_position_embeddings": len(tensors["positional_embedding"]),
        "hidden_act": about.activation,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,  # the tower is read at the largest id of a row
        "pad_token_id": vocabulary - 1,
    }
    image, _, patch, _ = tensors["visual.conv1.weight"].shape
    vision = {
        "hidden_size": image,
        "intermediate_size": len(tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"]),
        "num_hidden_layers": _depth(tensors, "visual.transformer.resblocks"),
        "num_attention_heads": about.heads[0],
        "image_size": about.image_size,
        "patch_size": patch,
        "hidden_act": about.activation,
    }
    dim = tensors["text_projection"].shape[1]
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=dim))


def _bert_model(tensors: Tensors, about: OpenClipConfig, name: str) -> PreTrainedModel:
    bert = "text.transformer."
    vocabulary, width = tensors[f"{bert}embeddings.word_embeddings.weight"].shape
    positions = len(tensors[f"{bert}embeddings.position_embeddings.weight"])
    if (about.context_length or positions) > positions:
        raise UserError(
            f"The configuration of {name} says context length {about.context_length}, but its weights have {positions} "
            "positions; give the configuration that belongs to them."
        )
    text = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": len(tensors[f"{bert}encoder.layer.0.intermediate.dense.weight"]),
        "num_hidden_layers": _depth(tensors, f"{bert}encoder.layer"),
        "num_attention_heads": about.heads[1],
        "max_position_embeddings": positions,
        "type_vocab_size": len(tensors[f"{bert}embeddings.token_type_embeddings.weight"]),
    }
    image, _, patch, _ = tensors["visual.trunk.patch_embed.proj.weight"].shape
    dim = len(tensors["visual.head.proj.weight"])
    vision = {
        "hidden_size": image,
        "intermediate_size": len(tensors["visual.trunk.blocks.0.mlp.fc1.weight"]),
        "num_hidden_layers": _depth(tensors, "visual.trunk.blocks"),
        "num_attention_heads": about.heads[0],
        "image_size": about.image_size,
        "patch_size": patch,
        "projection_dim": dim,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,  # timm's
    }
    return ViTBertModel(
        ViTBertConfig(
            text_config=text,
            vision_config=vision,
            projection_dim=dim,
            text_projection="linear" if "text.proj.weight" in tensors else "mlp",
            context_length=about.context_length or positions,
        )
    )


def _check_sizes(model: PreTrainedModel, tensors: Tensors, about: OpenClipConfig, name: str) -> None:
    """Raise UserError if the configuration, or a number beside the weights, gives another size than they have."""
    text, vision = model.config.text_config, model.config.vision_config
    found = {
        "joint width": model.config.projection_dim,
        "text layers": text.num_hidden_layers,
        "text width": text.hidden_size,
        "vocabulary": text.vocab_size,
        "context length": text.max_position_embeddings,
        "image layers": vision.num_hidden_layers,
        "image width": vision.hidden_size,
        "image head width": vision.hidden_size // vision.num_attention_heads,
        "text heads": text.num_attention_heads,
        "patch size": vision.patch_size,
    }
    for what, said in about.sizes.items():
        if said != found[what]:
            raise UserError(
                f"The configuration of {name} says {what} {said}, but its weights have {found[what]}; give the "
                "configuration that belongs to them."
            )
    for key, what in STATED.items():
        if key in tensors and tensors[key].tolist() != found[what]:
            raise UserError(
                f"The tensor {key!r} of {name} says {what} {tensors[key].tolist()}, but its weights have "
                f"{found[what]}; give a whole checkpoint of one model."
            )


def check_whole(found: Tensors, wanted: Tensors, name: str, in_file: Callable[[str], str] = str) -> None:
    """Raise UserError for tensors that are missing, too many, of another shape, or not finite.

    `in_file` gives the name that a wanted tensor has in the file.
    """
    missing, extra = (
        sorted({in_file(key) for key in wanted.keys() - found.keys()}),
        sorted(found.keys() - wanted.keys()),
    )
    if missing:
        raise UserError(
            f"{name} lacks {plural(len(missing), 'tensor')}, {missing[0]!r} first; give a whole checkpoint."
        )
    if extra:
        raise UserError(_extra(name, extra))
    for key, tensor in wanted.items():
        if found[key].shape != tensor.shape:
            raise UserError(
                f"The tensor {key!r} of {name} is {list(found[key].shape)}, but must be {list(tensor.shape)} by its "
                "configuration and the other tensors; give a checkpoint and a configuration that belong together."
            )
        if tensor.is_floating_point() and not found[key].is_floating_point():
            raise UserError(
                f"The tensor {in_file(key)!r} of {name} holds {str(found[key].dtype).removeprefix('torch.')}, not "
                "floating-point numbers; give a checkpoint that is not quantised."
            )
        if not torch.isfinite(found[key].float()).all():
            raise UserError(f"The tensor {in_file(key)!r} of {name} has values that are not finite; copy it again.")


def _extra(name: str, keys: list[str]) -> str:
    return (
        f"{name} has {plural(len(keys), 'tensor')} that a CLIP with a vision transformer does not have, {keys[0]!r} "
        "first; give a checkpoint of the image and text towers alone."
    )
