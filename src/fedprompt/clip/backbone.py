"""The protocol of a backbone: what an image and a text tower of a contrastive pair offer, whatever their family.

Legend: B images, P patches, N texts, T tokens, W width of a tower, D joint width, L leading tokens of the image tower.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from fedprompt.clip.prompts import PromptTokenizer
from fedprompt.errors import UserError

Edit = Callable[[int, Tensor], Tensor]  # (block index, tokens entering it) -> tokens
Tower = Literal["image", "text"]
Capability = Literal["text_edits", "value_attention"]

# What only some families offer, and how it is said of a method that needs it.
CAPABILITIES: Mapping[Capability, str] = {
    "text_edits": "changes tokens between the blocks of the text tower",
    "value_attention": "reads patches by value-value attention",
}


class Encoded(Protocol):
    """Image and patch features of the image tower, not normalised; each is computed on first use."""

    @property
    def tokens(self) -> Tensor:
        """[B, T, W] entering the last block."""

    @property
    def image(self) -> Tensor:
        """[B, D] the pooled reading, as the family pools: appended tokens take part in it."""

    @property
    def output(self) -> Tensor:
        """[B, T, W] all tokens that leave the last block."""

    @property
    def patches(self) -> Tensor:
        """[B, T - L, D] the reading of every token but the leading ones, including added tokens."""


class TextTower(Protocol):
    """A text tower whose input and, if the family offers it, deeper tokens can be edited; rows are one text each."""

    @property
    def width(self) -> int:
        """W."""

    @property
    def blocks(self) -> int:
        """The number of transformer blocks."""

    def embed(self, ids: Tensor) -> Tensor:
        """[..., W] embeddings of token ids, without positions."""

    def encode(self, embeddings: Tensor, end: Tensor, *, edit: Edit | None = None) -> Tensor:
        """[N, D] features, not normalised, of embeddings [N, T, W]; `end` [N] is as in `Prompts`.

        `edit(k, tokens)` may change the tokens entering block k; UserError if the family has no such edits.
        """

    def encode_shared_prefixes(self, embeddings: Tensor, end: Tensor, size: int) -> Tensor:
        """`encode` where every `size` consecutive texts share a prefix, which a causal tower reads only once."""


class ImageTower(Protocol):
    """An image tower that takes further tokens in any block and reads them with the others."""

    @property
    def width(self) -> int:
        """W."""

    @property
    def blocks(self) -> int:
        """The number of transformer blocks."""

    @property
    def patches(self) -> int:
        """P."""

    @property
    def leading(self) -> int:
        """L, the tokens before the patches (class token, registers): none in some families."""

    @property
    def side(self) -> int:
        """The side in pixels of the square images that it reads."""

    def embed(self, pixels: Tensor) -> Tensor:
        """[B, L + P, W] embeddings with positions of images [B, 3, H, W]."""

    def enter(self, embeddings: Tensor) -> Tensor:
        """[B, T, W] the tokens entering block 0: through the first norm, where a family has one."""

    def run(self, tokens: Tensor, *, start: int, stop: int, edit: Edit | None = None) -> Tensor:
        """[B, T, W] tokens through the blocks from `start` to before `stop`."""

    def read(self, tokens: Tensor) -> Encoded:
        """The features of tokens [B, T, W] that enter the last block."""

    def value_attention(self, block: int, tokens: Tensor) -> Tensor:
        """[B, T, W] output of value-value attention in a block; UserError if the family has none."""

    def project(self, tokens: Tensor) -> Tensor:
        """[..., D] the readings of single tokens [..., W] that left the last block."""


@dataclass(frozen=True)
class AttentionLayers:
    """The names in a model of the query and value layers of one tower's blocks, which low-rank adapters change."""

    root: str  # "vision_model"
    path: str  # from the root, with {} for the block: "encoder.layers.{}.self_attn"
    queries: str = "q_proj"
    values: str = "v_proj"

    def of(self, block: int) -> tuple[str, str]:
        """The names of a block's query and value layers."""
        stem = f"{self.root}.{self.path.format(block)}"
        return f"{stem}.{self.queries}", f"{stem}.{self.values}"


def layers_pattern(layers: tuple[AttentionLayers, ...]) -> str:
    """A regular expression for the names of all these layers; towers that name them alike share an alternative."""
    alike: dict[str, list[str]] = {}
    for one in layers:
        path = re.escape(one.path).replace(r"\{\}", r"\d+")
        alike.setdefault(rf"\.{path}\.({one.queries}|{one.values})", []).append(one.root)
    return "|".join(f"({'|'.join(roots)}){rest}" for rest, roots in alike.items())


@dataclass(frozen=True, eq=False)
class Backbone:
    """An opened pair of towers: logits are `scale * cosine + bias`, which a softmax or a sigmoid takes."""

    text: TextTower
    image: ImageTower
    tokenizer: PromptTokenizer
    dim: int  # D
    scale: float
    bias: float = 0.0


@dataclass(frozen=True)
class Family:
    """A kind of backbone: the classes of transformers that hold it, and what it lacks.

    `build(model, tokenizer)` makes the towers; it raises UserError if the tokenizer does not belong to the model.
    `lacks` says of each capability that it does not have why, in words that follow "since".
    """

    title: str
    model: type[PreTrainedModel]
    processor: type[Any]
    build: Callable[[Any, Any], Backbone]
    attention: Mapping[Tower, AttentionLayers]
    lacks: Mapping[Capability, str] = field(default_factory=dict)

    def refusal(self, needs: tuple[Capability, ...], method: str) -> str:
        """Why a method that needs these capabilities does not run on this family, in a sentence; "" if it does."""
        for need in needs:
            if need in self.lacks:
                return (
                    f"{method} {CAPABILITIES[need]}, which a {self.title} backbone does not offer, since "
                    f"{self.lacks[need]}; choose another method, or a CLIP backbone."
                )
        return ""


def square_side(size: Any, what: str) -> int:
    """The side of a square that a configuration gives as a number or as two; UserError for another shape."""
    sides = {int(side) for side in size} if isinstance(size, (list, tuple)) else {int(size)}
    if len(sides) != 1:
        raise UserError(f"The image tower's {what} is {size}, but only square ones are read; use another backbone.")
    return sides.pop()
