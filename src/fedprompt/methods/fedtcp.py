"""FedTCP (TCP: Yao et al., 2024): class-aware prompts replace context tokens at one deep text block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError
from fedprompt.methods.base import (
    Classifier,
    Method,
    at_least,
    at_most,
    context_templates,
    context_vectors,
    cosine_classifier,
)
from fedprompt.ops.layers import linear, unit
from fedprompt.ops.losses import cosine_distance, objective


class FedTCP(Method):
    """Entering one block, context tokens x become mix G(t0_c) + (1 - mix) x (Yao et al., 2024).

    t0_c is the template's text feature of class c, G = Linear D -> D / reduction, QuickGELU, Linear -> n_class W. The
    loss is CE + pull mean_c (1 - cos(t_c, t0_c)). The context and G are trained and shared: 331,904 parameters
    (W = D = 512).

    n_ctx: number of context vectors, unless `init` is a template.
    init: start of the context: words of n_ctx tokens, a template, "template" (the data set's), or "" (N(0, 0.02^2)).
    n_class: how many of them class-aware tokens replace, at most all of a template's.
    block: the text block, counted from 0, that they enter; at most the last one.
    mix: weight of the class-aware tokens; 0 is FedKgCoOp.
    pull: weight of the distance from the template.
    reduction: G has a hidden width of D / reduction, at least 8.
    """

    reads = ("template",)
    requires = ("text_edits",)

    # differs: in FedMPT's comparison 16 vectors overwrite the class name; here the text has one position per vector

    def __init__(  # noqa: PLR0913  (the paper's seven numbers)
        self,
        clip: Clip,
        *,
        n_ctx: int = 4,
        init: str = "a photo of a",
        n_class: int = 4,
        block: int = 8,
        mix: float = 1.0,
        pull: float = 8.0,
        reduction: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        at_least(1, n_class=n_class, reduction=reduction)
        at_least(0, block=block, mix=mix, pull=pull)
        at_most(1, mix=mix)
        self.context = context_vectors(clip, n_ctx=n_ctx, init=init, generator=generator)
        if n_class > n_ctx:
            raise UserError(f"The option n_class = {n_class} is more than n_ctx = {n_ctx}; give at most n_ctx.")
        n_class = min(n_class, len(self.context))
        self.block, self.mix, self.pull, self.init = min(block, clip.text_blocks - 1), mix, pull, init
        hidden = max(8, clip.dim // reduction)
        self.generate = nn.Sequential(
            linear(clip.dim, hidden, generator=generator),
            QuickGELUActivation(),
            linear(hidden, n_class * clip.text_width, generator=generator),
            nn.Unflatten(1, (n_class, clip.text_width)),  # [C, n, W]
        )

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Encode the class texts once; compare frozen image features with them."""
        return cosine_classifier(clip, self._texts(clip, space), space.kind)

    def loss(
        self, clip: Clip, images: Images, targets: Tensor, space: LabelSpace, *, stream: torch.Generator
    ) -> Tensor:
        """The task's objective plus the mean distance of the class texts from the template's."""
        text = self._texts(clip, space)  # [C, D]
        task = objective(space.kind)(cosine_classifier(clip, text, space.kind)(images), targets)
        return task + self.pull * cosine_distance(text, clip.text_features(space.texts()))

    def _texts(self, clip: Clip, space: LabelSpace) -> Tensor:
        own = self.generate(clip.text_features(space.texts()))  # [C, n, W]
        end = 1 + own.shape[1]

        def enter(block: int, tokens: Tensor) -> Tensor:
            if block != self.block:
                return tokens
            mixed = self.mix * own + (1 - self.mix) * tokens[:, 1:end]
            return torch.cat([tokens[:, :1], mixed, tokens[:, end:]], dim=1)  # [C, T, W]

        prompts = clip.fill(context_templates(space, self.init), ctx=self.context)
        return unit(clip.encode_text(prompts, edit=enter))
