"""The forward passes of OpenAI's and open_clip's models by their published formulas, on their own tensors.

Written apart from the families, to compare what a converted model computes with what the checkpoint says.
Legend: B images, N texts, T tokens, W width of a tower, D joint width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fedprompt.clip.checkpoints.config import OpenClipConfig
from fedprompt.clip.checkpoints.reading import Tensors


def image_features(tensors: Tensors, about: OpenClipConfig, pixels: Tensor) -> Tensor:
    """[B, D] features of images [B, 3, H, W], not normalised."""
    found = {key: tensor.float() for key, tensor in tensors.items() if key.startswith("visual.")}
    if about.bert:
        return _timm_features(found, pixels, about.heads[0])
    patches = F.conv2d(pixels, found["visual.conv1.weight"], stride=found["visual.conv1.weight"].shape[-1])
    tokens = _with_class(found["visual.class_embedding"], patches) + found["visual.positional_embedding"]
    tokens = _norm(tokens, found, "visual.ln_pre")
    blocks, number = "visual.transformer.resblocks", 0
    while f"{blocks}.{number}.ln_1.weight" in found:
        tokens = _block(tokens, found, f"{blocks}.{number}", about, heads=about.heads[0])
        number += 1
    return _norm(tokens[:, 0], found, "visual.ln_post") @ found["visual.proj"]


def text_features(tensors: Tensors, about: OpenClipConfig, ids: Tensor) -> Tensor:
    """[N, D] features of token ids [N, T] of one length without padding, not normalised."""
    if about.bert:
        own = {key: one.float() for key, one in tensors.items() if key.startswith("text.")}
        return _bert_features(own, ids, about.heads[1])
    found = {key.removeprefix("text."): one.float() for key, one in tensors.items() if not key.startswith("visual.")}
    tokens = found["token_embedding.weight"][ids] + found["positional_embedding"][: ids.shape[1]]
    mask = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
    blocks, number = "transformer.resblocks", 0
    while f"{blocks}.{number}.ln_1.weight" in found:
        tokens = _block(tokens, found, f"{blocks}.{number}", about, heads=about.heads[1], mask=mask)
        number += 1
    end = ids.argmax(dim=-1)
    return _norm(tokens, found, "ln_final")[torch.arange(len(ids)), end] @ found["text_projection"]


def _block(
    tokens: Tensor, found: Tensors, name: str, about: OpenClipConfig, *, heads: int, mask: Tensor | None = None
) -> Tensor:
    """x + attention(norm(x)), then x + MLP(norm(x)), of Radford et al. (2021)."""
    joined = F.linear(
        _norm(tokens, found, f"{name}.ln_1"), found[f"{name}.attn.in_proj_weight"], found[f"{name}.attn.in_proj_bias"]
    )
    attended = _attention(*joined.chunk(3, dim=-1), heads=heads, mask=mask)
    tokens = tokens + _linear(attended, found, f"{name}.attn.out_proj")
    hidden = _linear(_norm(tokens, found, f"{name}.ln_2"), found, f"{name}.mlp.c_fc")
    hidden = F.gelu(hidden) if about.activation == "gelu" else hidden * torch.sigmoid(1.702 * hidden)
    return tokens + _linear(hidden, found, f"{name}.mlp.c_proj")


def _timm_features(found: Tensors, pixels: Tensor, heads: int) -> Tensor:
    """[B, D] of a vision transformer of timm, read at its class token through a norm and a projection."""
    trunk = "visual.trunk"
    kernel = found[f"{trunk}.patch_embed.proj.weight"]
    patches = F.conv2d(pixels, kernel, found[f"{trunk}.patch_embed.proj.bias"], stride=kernel.shape[-1])
    tokens = _with_class(found[f"{trunk}.cls_token"].flatten(), patches) + found[f"{trunk}.pos_embed"]
    number = 0
    while f"{trunk}.blocks.{number}.norm1.weight" in found:
        name = f"{trunk}.blocks.{number}"
        joined = _linear(_norm(tokens, found, f"{name}.norm1", eps=1e-6), found, f"{name}.attn.qkv")
        attended = _attention(*joined.chunk(3, dim=-1), heads=heads)
        tokens = tokens + _linear(attended, found, f"{name}.attn.proj")
        hidden = F.gelu(_linear(_norm(tokens, found, f"{name}.norm2", eps=1e-6), found, f"{name}.mlp.fc1"))
        tokens = tokens + _linear(hidden, found, f"{name}.mlp.fc2")
        number += 1
    return _norm(tokens[:, 0], found, f"{trunk}.norm", eps=1e-6) @ found["visual.head.proj.weight"].T


def _bert_features(found: Tensors, ids: Tensor, heads: int) -> Tensor:
    """[N, D] of a BERT (Devlin et al., 2019), read at its first token through one or two layers."""
    bert, table = "text.transformer", "text.transformer.embeddings"
    tokens = found[f"{table}.word_embeddings.weight"][ids] + found[f"{table}.token_type_embeddings.weight"][0]
    tokens = tokens + found[f"{table}.position_embeddings.weight"][: ids.shape[1]]
    tokens = _norm(tokens, found, f"{table}.LayerNorm", eps=1e-12)
    number = 0
    while f"{bert}.encoder.layer.{number}.output.dense.weight" in found:
        name = f"{bert}.encoder.layer.{number}"
        parts = (_linear(tokens, found, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
        attended = _linear(_attention(*parts, heads=heads), found, f"{name}.attention.output.dense")
        tokens = _norm(tokens + attended, found, f"{name}.attention.output.LayerNorm", eps=1e-12)
        hidden = F.gelu(_linear(tokens, found, f"{name}.intermediate.dense"))
        hidden = _linear(hidden, found, f"{name}.output.dense")
        tokens = _norm(tokens + hidden, found, f"{name}.output.LayerNorm", eps=1e-12)
        number += 1
    if "text.proj.weight" in found:
        return tokens[:, 0] @ found["text.proj.weight"].T
    return F.gelu(tokens[:, 0] @ found["text.proj.0.weight"].T) @ found["text.proj.2.weight"].T


def _attention(query: Tensor, key: Tensor, value: Tensor, *, heads: int, mask: Tensor | None = None) -> Tensor:
    """softmax(q k / sqrt(width)) v per head, [B, T, W]."""
    query, key, value = (
        one.view(*one.shape[:2], heads, -1).transpose(1, 2) for one in (query, key, value)
    )  # [B, heads, T, width]
    scores = query @ key.mT / query.shape[-1] ** 0.5
    weights = (scores if mask is None else scores + mask).softmax(dim=-1)
    found: Tensor = weights @ value
    return found.transpose(1, 2).flatten(2)


def _with_class(token: Tensor, patches: Tensor) -> Tensor:
    """[B, 1 + P, W] a class token [W] before patches [B, W, rows, columns]."""
    flat = patches.flatten(2).mT
    return torch.cat([token.expand(len(flat), 1, -1), flat], dim=1)


def _linear(tokens: Tensor, found: Tensors, name: str) -> Tensor:
    return F.linear(tokens, found[f"{name}.weight"], found[f"{name}.bias"])


def _norm(tokens: Tensor, found: Tensors, name: str, *, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], found[f"{name}.weight"], found[f"{name}.bias"], eps)
