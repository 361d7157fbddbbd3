"""What towers of transformers' models have in common, whatever their family: sizes, embeddings and blocks.

Legend: B images, L leading tokens, P patches, N texts, T tokens, W width of a tower, D joint width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fedprompt.clip.backbone import Edit, square_side
from fedprompt.clip.towers import run_blocks


@dataclass(frozen=True, eq=False)
class ModelTextTower:
    """The `text_model` of a model, and its sizes by `text_config`."""

    model: Any

    @property
    def width(self) -> int:
        """W."""
        width: int = self.model.config.text_config.hidden_size
        return width

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The transformer blocks."""
        layers: Sequence[nn.Module] = self.model.text_model.encoder.layers
        return layers

    @property
    def blocks(self) -> int:
        """The number of transformer blocks."""
        return len(self.layers)

    def embed(self, ids: Tensor) -> Tensor:
        """[..., W] embeddings of token ids, without positions."""
        embeddings: Tensor = self.model.text_model.get_input_embeddings()(ids)
        return embeddings


@dataclass(frozen=True, eq=False)
class ModelImageTower:
    """The `vision_model` of a model, and its sizes by `vision_config`; `leading` is L."""

    model: Any
    leading: int

    @property
    def width(self) -> int:
        """W."""
        width: int = self.model.config.vision_config.hidden_size
        return width

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The transformer blocks."""
        layers: Sequence[nn.Module] = self.model.vision_model.encoder.layers
        return layers

    @property
    def blocks(self) -> int:
        """The number of transformer blocks."""
        return len(self.layers)

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
        """[B, L + P, W] embeddings with positions."""
        embeddings: Tensor = self.model.vision_model.embeddings(pixels)
        return embeddings

    def run(self, tokens: Tensor, *, start: int, stop: int, edit: Edit | None = None) -> Tensor:
        """[B, T, W] tokens through the blocks from `start` to before `stop`."""
        return run_blocks(self.layers[start:stop], tokens, start=start, edit=edit)


@dataclass(frozen=True)
class LastBlockEncoded:
    """Tokens that enter the last block; features are read from what leaves it."""

    tokens: Tensor  # [B, T, W] entering the last block
    block: nn.Module

    @functools.cached_property
    def output(self) -> Tensor:
        """[B, T, W] all tokens that leave the last block."""
        states: Tensor = self.block(self.tokens, None)
        return states
