"""FedVPT (VPT: Jia et al., 2022): learned tokens in the image tower, at its input or in every block; frozen texts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedprompt.clip.model import Clip, Encoded
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import Classifier, Method, bounded, cosine_logits
from fedprompt.ops.layers import normal


class FedVPT(Method):
    """v = f([CLS; patches; Q_0]), and entering block i the last q tokens become Q_i, 1 <= i < depth (Jia et al., 2022).

    Q_0 is added after the position embeddings and before the first norm. logit_c = s <v, t_c> with the template's
    texts. Trained and shared: 3,072 parameters shallow, 36,864 in twelve blocks (4 tokens, W = 768).

    n_tokens: number q of tokens in a block.
    depth: number of blocks with tokens of their own, at most all of the tower; 1 is shallow VPT.
    """

    reads = ("template",)

    # differs: the released prompts are cast to float16 inside the blocks; here only by `precision`

    def __init__(
        self, clip: Clip, *, n_tokens: int = 4, depth: int = 12, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        bounded(1, n_tokens=n_tokens, depth=depth)
        self.tokens = normal(min(depth, clip.image_blocks), n_tokens, clip.image_width, generator=generator)

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Use the template's texts; images run through the prompted tower."""
        encode, text = self._encoder(clip), clip.text_features(space.texts())
        return lambda images: cosine_logits(clip, encode(images), text, space.kind)

    def _encoder(self, clip: Clip) -> Callable[[Images], Encoded]:
        def enter(block: int, tokens: Tensor) -> Tensor:
            if not 0 < block < len(self.tokens):
                return tokens
            return append(tokens[:, : tokens.shape[1] - self.tokens.shape[1]], self.tokens[block])

        def append(tokens: Tensor, learned: Tensor) -> Tensor:
            return torch.cat([tokens, learned.expand(len(tokens), -1, -1)], dim=1)  # [B, L + P + q, W]

        return lambda images: clip.encode_image(append(clip.image_embeddings(images), self.tokens[0]), edit=enter)
