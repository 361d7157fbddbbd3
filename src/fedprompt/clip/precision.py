"""Towers in half precision behind the same protocol: tensors that enter and leave them are float32.

Legend: B images, N texts, T tokens, W width of a tower, D joint width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from fedprompt.clip.backbone import Backbone, Edit, Encoded, ImageTower, TextTower

Tower = TypeVar("Tower", TextTower, ImageTower)
Precision = Literal["float32", "bfloat16", "float16"]
DTYPES: Mapping[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def with_float32_edges(backbone: Backbone, dtype: torch.dtype) -> Backbone:
    """The backbone whose towers compute in `dtype` and take and give float32; its weights must be in `dtype`.

    Methods train, measure and aggregate in float32 whatever the precision of the towers.
    """
    return replace(backbone, text=HalfTextTower(backbone.text, dtype), image=HalfImageTower(backbone.image, dtype))


def half_changes(
    changes: Mapping[str, Callable[[Tensor], Tensor]], dtype: torch.dtype
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions of layers' inputs in float32 as functions of inputs in `dtype`."""

    def halved(change: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return change(x.float()).to(dtype)

    return {name: functools.partial(halved, change) for name, change in changes.items()}


def _half_edit(edit: Edit | None, dtype: torch.dtype) -> Edit | None:
    return edit and (lambda block, tokens: edit(block, tokens.float()).to(dtype))


@dataclass(frozen=True, eq=False)
class HalfTower(Generic[Tower]):
    """A tower of half precision; its tensors are converted on the way in and out."""

    tower: Tower
    dtype: torch.dtype

    @property
    def width(self) -> int:
        """W."""
        return self.tower.width

    @property
    def blocks(self) -> int:
        """The number of transformer blocks."""
        return self.tower.blocks


class HalfTextTower(HalfTower[TextTower]):
    """A `TextTower` of half precision."""

    def embed(self, ids: Tensor) -> Tensor:
        """[..., W] embeddings of token ids."""
        return self.tower.embed(ids).float()

    def encode(self, embeddings: Tensor, end: Tensor, *, edit: Edit | None = None) -> Tensor:
        """[N, D] features."""
        return self.tower.encode(embeddings.to(self.dtype), end, edit=_half_edit(edit, self.dtype)).float()

    def encode_shared_prefixes(self, embeddings: Tensor, end: Tensor, size: int) -> Tensor:
        """[N, D] features of texts of which every `size` consecutive ones share a prefix."""
        return self.tower.encode_shared_prefixes(embeddings.to(self.dtype), end, size).float()


@dataclass(frozen=True)
class HalfEncoded:
    """Features of an image tower of half precision; as elsewhere, each is computed on first use."""

    encoded: Encoded

    @functools.cached_property
    def tokens(self) -> Tensor:
        """[B, T, W] entering the last block."""
        return self.encoded.tokens.float()

    @functools.cached_property
    def image(self) -> Tensor:
        """[B, D] the pooled reading."""
        return self.encoded.image.float()

    @functools.cached_property
    def output(self) -> Tensor:
        """[B, T, W] all tokens that leave the last block."""
        return self.encoded.output.float()

    @functools.cached_property
    def patches(self) -> Tensor:
        """[B, T - L, D] the reading of every token but the leading ones."""
        return self.encoded.patches.float()


class HalfImageTower(HalfTower[ImageTower]):
    """An `ImageTower` of half precision; what one call gives in float32, the next one takes without rounding."""

    @property
    def patches(self) -> int:
        """The number of patches."""
        return self.tower.patches

    @property
    def leading(self) -> int:
        """The number of tokens before the patches."""
        return self.tower.leading

    @property
    def side(self) -> int:
        """The side in pixels of its images."""
        return self.tower.side

    def embed(self, pixels: Tensor) -> Tensor:
        """[B, T, W] embeddings with positions."""
        return self.tower.embed(pixels.to(self.dtype)).float()

    def enter(self, embeddings: Tensor) -> Tensor:
        """[B, T, W] the tokens entering block 0."""
        return self.tower.enter(embeddings.to(self.dtype)).float()

    def run(self, tokens: Tensor, *, start: int, stop: int, edit: Edit | None = None) -> Tensor:
        """[B, T, W] tokens through the blocks from `start` to before `stop`."""
        edit = _half_edit(edit, self.dtype)
        return self.tower.run(tokens.to(self.dtype), start=start, stop=stop, edit=edit).float()

    def read(self, tokens: Tensor) -> Encoded:
        """The features of tokens [B, T, W] that enter the last block."""
        return HalfEncoded(self.tower.read(tokens.to(self.dtype)))

    def value_attention(self, block: int, tokens: Tensor) -> Tensor:
        """[B, T, W] output of value-value attention in a block."""
        return self.tower.value_attention(block, tokens.to(self.dtype)).float()

    def project(self, tokens: Tensor) -> Tensor:
        """[..., D] the readings of single tokens."""
        return self.tower.project(tokens.to(self.dtype)).float()
