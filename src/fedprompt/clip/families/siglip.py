"""SigLIP (Zhai et al., 2023) and SigLIP 2 of fixed resolution (Tschannen et al., 2025): no class token, no causal mask.

Legend: B images, P patches, N texts, T tokens, W width of a tower, D joint width.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import SiglipImageProcessorPil, SiglipModel

from fedprompt.clip.backbone import AttentionLayers, Backbone, Capability, Edit, Encoded, Family
from fedprompt.clip.model_towers import LastBlockEncoded, ModelImageTower, ModelTextTower
from fedprompt.clip.prompts import PromptTokenizer, SpecialTokens, require_special_ids
from fedprompt.clip.towers import block_output_at, run_blocks
from fedprompt.errors import UserError

LACKS: Mapping[Capability, str] = {
    "text_edits": "its text tower is bidirectional and has no start token, and such edits are made for causal towers",
    "value_attention": "an attention pooling head reads its patches, not a projection of each",
}


@dataclass(frozen=True, eq=False)
class BidirectionalTextTower(ModelTextTower):
    """A text tower without a mask: rows of one length with their padding, read at the last token."""

    def encode(self, embeddings: Tensor, end: Tensor, *, edit: Edit | None = None) -> Tensor:
        """[N, D] features of rows that are padded to the context length; `end` is their last place."""
        if edit is not None:
            raise UserError(FAMILY.refusal(("text_edits",), "The method"))
        tower = self.model.text_model
        positions: Tensor = tower.embeddings.position_embedding.weight
        tokens = run_blocks(self.layers[:-1], embeddings + positions[: embeddings.shape[1]])
        state = block_output_at(self.layers[-1], tokens, end)  # [N, W], a causal mask here hides nothing
        features: Tensor = tower.head(tower.final_layer_norm(state))
        return features

    def encode_shared_prefixes(self, embeddings: Tensor, end: Tensor, size: int) -> Tensor:
        """[N, D] features of each text by itself: what follows a prefix changes it in a bidirectional tower."""
        return self.encode(embeddings, end)


@dataclass(frozen=True)
class PooledEncoded(LastBlockEncoded):
    """Features read by attention pooling: of all tokens for the image, of a token alone for each patch."""

    norm: nn.Module
    head: Any  # transformers' attention pooling head

    @functools.cached_property
    def image(self) -> Tensor:
        """[B, D] from all tokens, added ones too."""
        features: Tensor = self.head(self.norm(self.output))
        return features

    @functools.cached_property
    def patches(self) -> Tensor:
        """[B, T, D] from each token, added ones too."""
        return pool_each(self.head, self.norm(self.output))


def pool_each(head: Any, tokens: Tensor) -> Tensor:
    """[..., W] what the attention pooling head gives for each token [..., W] alone: then its attention is all on it."""
    # differs: SigLIP defines no features of patches; a pooling head read one token at a time is as MaskCLIP (2022) does
    attention = head.attention
    weight, bias = (part.chunk(3)[2] for part in (attention.in_proj_weight, attention.in_proj_bias))  # of the values
    state = attention.out_proj(F.linear(tokens, weight, bias))
    result: Tensor = state + head.mlp(head.layernorm(state))
    return result


@dataclass(frozen=True, eq=False)
class PooledImageTower(ModelImageTower):
    """A vision transformer without class token or first norm, read by an attention pooling head."""

    leading: int = 0

    def enter(self, embeddings: Tensor) -> Tensor:
        """[B, T, W] the embeddings as they are."""
        return embeddings

    def read(self, tokens: Tensor) -> Encoded:
        """The features of tokens [B, T, W] that enter the last block."""
        vision = self.model.vision_model
        return PooledEncoded(tokens, self.layers[-1], vision.post_layernorm, vision.head)

    def value_attention(self, block: int, tokens: Tensor) -> Tensor:
        """Not offered."""
        raise UserError(FAMILY.refusal(("value_attention",), "The method"))

    def project(self, tokens: Tensor) -> Tensor:
        """[..., D] tokens through the last norm and, each alone, the pooling head."""
        vision = self.model.vision_model
        return pool_each(vision.head, vision.post_layernorm(tokens))


def _build(model: Any, tokenizer: Any) -> Backbone:
    text, vision = model.config.text_config, model.config.vision_config
    if not vision.vision_use_head:
        raise UserError(
            "The image tower has no pooling head (vision_use_head is false), so it gives no image features; use the "
            "whole SigLIP."
        )
    length = text.max_position_embeddings
    special = SpecialTokens.of(tokenizer, vocabulary=text.vocab_size, length=length)
    require_special_ids(tokenizer, text)
    if special.before:
        raise UserError(
            f"The tokenizer begins a sentence with the ids {list(special.before)}, but SigLIP has no start token; use "
            "the tokenizer that this backbone was trained with."
        )
    return Backbone(
        BidirectionalTextTower(model),
        PooledImageTower(model),
        PromptTokenizer(tokenizer, special, context_length=length),
        dim=text.projection_size,
        scale=float(model.logit_scale.exp()),
        bias=float(model.logit_bias),
    )


LAYERS = "encoder.layers.{}.self_attn"
FAMILY = Family(
    "SigLIP",
    model=SiglipModel,
    processor=SiglipImageProcessorPil,
    build=_build,
    attention={"image": AttentionLayers("vision_model", LAYERS), "text": AttentionLayers("text_model", LAYERS)},
    lacks=LACKS,
)
