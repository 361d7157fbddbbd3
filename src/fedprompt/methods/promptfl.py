"""PromptFL (Guo et al., 2022): one learned context in front of every class name, CoOp's prompt averaged by a server."""

from __future__ import annotations

import torch

from fedprompt.clip.model import Clip
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import Classifier, Method, cosine_classifier, prompted_texts, word_vectors


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
        self.context = word_vectors(clip, n_ctx=n_ctx, init=init, generator=generator)

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Put the context in front of the class names and score images against these prompts."""
        return cosine_classifier(clip, prompted_texts(clip, space, self.context), space.kind)
