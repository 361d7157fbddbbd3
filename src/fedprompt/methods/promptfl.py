"""PromptFL (Guo et al., 2022): CoOp's learned context, averaged by the server."""

from __future__ import annotations

import torch

from fedprompt.clip.model import Clip
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import Classifier, Method, context_vectors, cosine_classifier, prompted_texts


class PromptFL(Method):
    """logit_c = s <v, unit(g(V, name of c))>, with V [n_ctx, W] trained and shared (Guo et al., 2022; CoOp, 2022).

    n_ctx: number of learned word vectors, unless `init` is a template.
    init: start of V: words of n_ctx tokens, a template, "template" (the data set's), or "" (N(0, 0.02^2)).
    """

    # differs: CoOp's class-specific contexts are left out; clients with different classes could not average them

    def __init__(
        self, clip: Clip, *, n_ctx: int = 4, init: str = "a photo of a", generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.init = init
        self.context = context_vectors(clip, n_ctx=n_ctx, init=init, generator=generator)

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Encode the learned context with the class names once; compare frozen image features with the result."""
        return cosine_classifier(clip, prompted_texts(clip, space, self.context, self.init), space.kind)
