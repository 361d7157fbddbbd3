"""CLIP (Radford et al., 2021): a causal text tower read at its end token, an image tower read at its class token.

Legend: B images, P patches, N texts, T tokens, W width of a tower, D joint width.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPModel

from fedprompt.clip.backbone import AttentionLayers, Backbone, Edit, Encoded, Family
from fedprompt.clip.model_towers import LastBlockEncoded, ModelImageTower, ModelTextTower
from fedprompt.clip.prompts import SPARE, PromptTokenizer, SpecialTokens, other_vocabulary, plain_text
from fedprompt.clip.towers import block_output_at, run_blocks, run_shared_prefixes, value_value_attention
from fedprompt.errors import UserError


@dataclass(frozen=True, eq=False)
class CausalTextTower(ModelTextTower):
    """A causal text tower with learned positions, read at the end token through a norm and a projection."""

    def encode(self, embeddings: Tensor, end: Tensor, *, edit: Edit | None = None) -> Tensor:
        """[N, D] features at the end tokens, which move with tokens that an edit inserts."""
        blocks = self.layers
        tokens = run_blocks(blocks[:-1], self._placed(embeddings), edit=edit, causal=True)
        last = len(blocks) - 1
        tokens = edit(last, tokens) if edit else tokens
        end = end + (tokens.shape[1] - embeddings.shape[1])  # tokens that an edit inserted come before the end token
        return self._project(block_output_at(blocks[last], tokens, end))

    def encode_shared_prefixes(self, embeddings: Tensor, end: Tensor, size: int) -> Tensor:
        """[N, D] features, equal to those of `encode` up to rounding."""
        return self._project(run_shared_prefixes(self.layers, self._placed(embeddings), end, size))

    def _placed(self, embeddings: Tensor) -> Tensor:
        """[N, T, W] embeddings with those of their positions."""
        positions: Tensor = self.model.text_model.embeddings.position_embedding.weight
        return embeddings + positions[: embeddings.shape[1]]

    def _project(self, state: Tensor) -> Tensor:
        features: Tensor = self.model.text_projection(self.model.text_model.final_layer_norm(state))
        return features


@dataclass(frozen=True)
class ClassTokenEncoded(LastBlockEncoded):
    """Features read from single tokens of the last block through a norm and a projection: the class token's first."""

    head: nn.Module  # the last norm and the projection W -> D

    @functools.cached_property
    def image(self) -> Tensor:
        """[B, D] from the class token."""
        features: Tensor = self.head(block_output_at(self.block, self.tokens))
        return features

    @functools.cached_property
    def patches(self) -> Tensor:
        """[B, T - 1, D] from all other tokens, including added ones."""
        features: Tensor = self.head(self.output[:, 1:])
        return features


@dataclass(frozen=True, eq=False)
class ClassTokenImageTower(ModelImageTower):
    """A vision transformer with a class token in front, read at it through a norm and a projection."""

    leading: int = 1

    def enter(self, embeddings: Tensor) -> Tensor:
        """[B, T, W] embeddings through the first norm."""
        tokens: Tensor = self.model.vision_model.pre_layrnorm(embeddings)
        return tokens

    def read(self, tokens: Tensor) -> Encoded:
        """The features of tokens [B, T, W] that enter the last block."""
        vision = self.model.vision_model
        head = nn.Sequential(vision.post_layernorm, self.model.visual_projection)
        return ClassTokenEncoded(tokens, self.layers[-1], head)

    def value_attention(self, block: int, tokens: Tensor) -> Tensor:
        """[B, T, W] output of value-value attention in a block."""
        return value_value_attention(self.layers[block], tokens)

    def project(self, tokens: Tensor) -> Tensor:
        """[..., D] tokens through the last norm and the projection."""
        features: Tensor = self.model.visual_projection(self.model.vision_model.post_layernorm(tokens))
        return features


def causal_pair(model: Any, tokenizer: PromptTokenizer) -> Backbone:
    """A causal text tower and an image tower with a class token, both with a projection."""
    return Backbone(
        CausalTextTower(model),
        ClassTokenImageTower(model),
        tokenizer,
        dim=model.config.projection_dim,
        scale=float(model.logit_scale.exp()),
    )


def end_token_rows(tokenizer: Any, *, vocabulary: int, read: int) -> SpecialTokens:
    """A start and an end token around each sentence; `read` is the id of the token that the tower is read at.

    Raises UserError if the tokenizer has others, or ids that the tower does not embed.
    """
    if len(tokenizer) < vocabulary - SPARE:
        raise UserError(other_vocabulary(tokenizer, vocabulary))
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if start is None or end != read or end >= vocabulary:
        raise UserError(
            f"The text tower knows {vocabulary} token ids and is read at id {read}, but the tokenizer starts a "
            f"sentence with id {start} and ends it with {end}; use the tokenizer that this backbone was trained with, "
            "or correct text_config.eos_token_id in config.json."
        )
    return SpecialTokens((start,), (end,), pad=end)  # a causal tower never sees the padding


def _build(model: Any, tokenizer: Any) -> Backbone:
    text = model.config.text_config
    # OpenAI's configurations say 2 for historical reasons; those towers are read at the largest id of the row.
    read = tokenizer.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id
    special = end_token_rows(tokenizer, vocabulary=text.vocab_size, read=read)
    length = text.max_position_embeddings
    return causal_pair(model, PromptTokenizer(tokenizer, special, context_length=length, clean=plain_text))


LAYERS = "encoder.layers.{}.self_attn"
FAMILY = Family(
    "CLIP",
    model=CLIPModel,
    processor=CLIPImageProcessorPil,
    build=_build,
    attention={
        "image": AttentionLayers("vision_model", LAYERS),
        "text": AttentionLayers("text_model", LAYERS),
    },
)
