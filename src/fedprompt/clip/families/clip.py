"""CLIP (Radford et al., 2021): a causal text tower read at its end token, an image tower read at its class token.

Legend: B images, P patches, N texts, T tokens, W width of a tower, D joint width.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPModel

from fedprompt.clip.backbone import AttentionLayers, Backbone, Edit, Encoded, Family, square_side
from fedprompt.clip.prompts import PromptTokenizer, SpecialTokens, plain_text
from fedprompt.clip.towers import block_output_at, run_blocks, run_shared_prefixes, value_value_attention
from fedprompt.errors import UserError


@dataclass(frozen=True, eq=False)
class CausalTextTower:
    """A causal text tower with learned positions, read at the end token through a norm and a projection."""

    model: Any

    @property
    def width(self) -> int:
        """W."""
        width: int = self.model.config.text_config.hidden_size
        return width

    @property
    def blocks(self) -> int:
        """The number of transformer blocks."""
        return len(self.model.text_model.encoder.layers)

    def embed(self, ids: Tensor) -> Tensor:
        """[..., W] embeddings of token ids."""
        embeddings: Tensor = self.model.text_model.embeddings.token_embedding(ids)
        return embeddings

    def encode(self, embeddings: Tensor, end: Tensor, *, edit: Edit | None = None) -> Tensor:
        """[N, D] features at the end tokens, which move with tokens that an edit inserts."""
        blocks = self.model.text_model.encoder.layers
        tokens = run_blocks(blocks[:-1], self._placed(embeddings), edit=edit, causal=True)
        last = len(blocks) - 1
        tokens = edit(last, tokens) if edit else tokens
        end = end + (tokens.shape[1] - embeddings.shape[1])  # tokens that an edit inserted come before the end token
        return self._project(block_output_at(blocks[last], tokens, end))

    def encode_shared_prefixes(self, embeddings: Tensor, end: Tensor, size: int) -> Tensor:
        """[N, D] features, equal to those of `encode` up to rounding."""
        blocks = self.model.text_model.encoder.layers
        return self._project(run_shared_prefixes(blocks, self._placed(embeddings), end, size))

    def _placed(self, embeddings: Tensor) -> Tensor:
        """[N, T, W] embeddings with those of their positions."""
        positions: Tensor = self.model.text_model.embeddings.position_embedding.weight
        return embeddings + positions[: embeddings.shape[1]]

    def _project(self, state: Tensor) -> Tensor:
        features: Tensor = self.model.text_projection(self.model.text_model.final_layer_norm(state))
        return features


@dataclass(frozen=True)
class ClassTokenEncoded:
    """Features read from single tokens of the last block through a norm and a projection: the class token's first."""

    tokens: Tensor  # [B, T, W] entering the last block
    block: nn.Module
    head: nn.Module  # the last norm and the projection W -> D

    @functools.cached_property
    def image(self) -> Tensor:
        """[B, D] from the class token."""
        features: Tensor = self.head(block_output_at(self.block, self.tokens))
        return features

    @functools.cached_property
    def output(self) -> Tensor:
        """[B, T, W] all tokens that leave the last block."""
        states: Tensor = self.block(self.tokens, None)
        return states

    @functools.cached_property
    def patches(self) -> Tensor:
        """[B, T - 1, D] from all other tokens, including added ones."""
        features: Tensor = self.head(self.output[:, 1:])
        return features


@dataclass(frozen=True, eq=False)
class ClassTokenImageTower:
    """A vision transformer with a class token in front, read at it through a norm and a projection."""

    model: Any
    leading: int = 1

    @property
    def width(self) -> int:
        """W."""
        width: int = self.model.config.vision_config.hidden_size
        return width

    @property
    def blocks(self) -> int:
        """The number of transformer blocks."""
        return len(self.model.vision_model.encoder.layers)

    @property
    def patches(self) -> int:
        """P."""
        count: int = self.model.vision_model.embeddings.num_patches
        return count

    @property
    def side(self) -> int:
        """The side in pixels of its images."""
        return square_side(self.model.config.vision_config.image_size, "image_size")

    def embed(self, pixels: Tensor) -> Tensor:
        """[B, 1 + P, W] class and patch embeddings with positions."""
        embeddings: Tensor = self.model.vision_model.embeddings(pixels)
        return embeddings

    def enter(self, embeddings: Tensor) -> Tensor:
        """[B, T, W] embeddings through the first norm."""
        tokens: Tensor = self.model.vision_model.pre_layrnorm(embeddings)
        return tokens

    def run(self, tokens: Tensor, *, start: int, stop: int, edit: Edit | None = None) -> Tensor:
        """[B, T, W] tokens through the blocks from `start` to before `stop`."""
        return run_blocks(self.model.vision_model.encoder.layers[start:stop], tokens, start=start, edit=edit)

    def read(self, tokens: Tensor) -> Encoded:
        """The features of tokens [B, T, W] that enter the last block."""
        vision = self.model.vision_model
        head = nn.Sequential(vision.post_layernorm, self.model.visual_projection)
        return ClassTokenEncoded(tokens, vision.encoder.layers[-1], head)

    def value_attention(self, block: int, tokens: Tensor) -> Tensor:
        """[B, T, W] output of value-value attention in a block."""
        return value_value_attention(self.model.vision_model.encoder.layers[block], tokens)

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
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if start is None or end != read or end >= vocabulary:
        raise UserError(
            f"The text tower knows {vocabulary} token ids and is read at id {read}, but the tokenizer starts a "
            f"sentence with id {start} and ends it with {end}; use the tokenizer that this backbone was "
            "trained with, or correct text_config.eos_token_id in config.json."
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
