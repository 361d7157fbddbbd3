"""The sizes of a published backbone without its weights, to build methods on and count their parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedprompt.clip.backbone import AttentionLayers, Tower
from fedprompt.clip.families.clip import FAMILY


@dataclass(frozen=True)
class Sizes:
    """The attributes of a `Clip` that a method's constructor may use."""

    image_width: int
    text_width: int
    dim: int
    image_blocks: int
    text_blocks: int
    patches: int
    scale: float = 100.0
    bias: float = 0.0
    leading: int = 1

    def attention_layers(self, tower: Tower) -> AttentionLayers:
        """The names of the layers that low-rank adapters change, as in a CLIP."""
        return FAMILY.attention[tower]

    def token_embeddings(self, phrase: str) -> Tensor:
        """Zeros in the shape of a phrase's token embeddings, one token per word."""
        return torch.zeros(len(phrase.split()), self.text_width)


VIT_B_16 = Sizes(image_width=768, text_width=512, dim=512, image_blocks=12, text_blocks=12, patches=196)
