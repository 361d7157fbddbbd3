"""The sizes of a published backbone without its weights: enough to build a method on and to count what it trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """What a method's constructor may ask a `Clip`."""

    image_width: int
    text_width: int
    dim: int
    image_blocks: int
    text_blocks: int
    patches: int
    scale: float = 100.0

    def words(self, phrase: str) -> Tensor:
        """Zeros in the shape of a phrase's embeddings, a token a word."""
        return torch.zeros(len(phrase.split()), self.text_width)


VIT_B_16 = Sizes(image_width=768, text_width=512, dim=512, image_blocks=12, text_blocks=12, patches=196)
