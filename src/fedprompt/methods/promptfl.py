"""PromptFL (Guo et al., 2022): one learned context in front of every class name, CoOp's prompt averaged by a server."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedprompt.clip.model import Clip
from fedprompt.data.labels import LabelSpace, words
from fedprompt.errors import UserError
from fedprompt.methods.base import Classifier, Method, at_least, cosine_classifier
from fedprompt.ops.layers import normal, unit


class PromptFL(Method):
    """logit_c = s <v, unit(g(V, name of c))>, with V [n_ctx, W] trained and shared (Guo et al., 2022; CoOp, 2022).

    n_ctx: number of learned word vectors.
    init: words whose embeddings V starts from, as many tokens as n_ctx; "" draws V from N(0, 0.02^2).
    """

    # differs: CoOp's class-specific contexts are left out; clients that hold different classes could not average them

    def __init__(
        self, clip: Clip, *, n_ctx: int = 4, init: str = "a photo of a", generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        at_least(1, n_ctx=n_ctx)
        self.context = _embedded(clip, init, n_ctx) if init else normal(n_ctx, clip.text_width, generator=generator)

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Put the context in front of the class names and score images against these prompts."""
        prompts = clip.fill([f"<ctx> {words(name)}." for name in space.names], ctx=self.context)
        return cosine_classifier(clip, unit(clip.encode_text(prompts)), space.kind)  # text is [C, D]


def _embedded(clip: Clip, phrase: str, n_ctx: int) -> Tensor:
    embeddings = clip.words(phrase)  # [n, W]
    if len(embeddings) != n_ctx:
        raise UserError(
            f'The option init = "{phrase}" has {len(embeddings)} tokens but n_ctx = {n_ctx}; '
            'make them equal, or write init = "" for a random start.'
        )
    return nn.Parameter(embeddings.clone())
