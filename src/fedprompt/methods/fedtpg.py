"""FedTPG (Qiu et al., 2024): a shared prompt generator computes the context from the candidate class names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedprompt.clip.model import Clip
from fedprompt.data.labels import LabelSpace, readable_name
from fedprompt.methods.base import (
    Classifier,
    Method,
    at_least,
    at_most,
    bounded,
    context_words,
    cosine_classifier,
    prompted_texts,
)
from fedprompt.ops.layers import CrossAttention, CrossBlock, GatedFeedForward, linear, normal


class FedTPG(Method):
    """A = CrossAttn(LN(Q), LN(K), LN(K)), V = A + FFN(A), and V is the context of every class (Qiu et al., 2024).

    Q [n_ctx, W] are learned queries, K [C, D] the frozen features of all candidates' bare names, so the context depends
    on the task. All 4,206,080 parameters (W = D = 512) are trained and shared.

    n_ctx: number of context vectors, unless `init` is a template.
    init: what V is added to: words of n_ctx tokens, a template, "template" (the data set's), or "" for nothing.
    heads: attention heads.
    self_attention: number of further blocks in which the context vectors attend to one another.
    """

    # differs: the release trains in pure float16, where late SGD updates vanish; what is trained is float32 here

    def __init__(
        self,
        clip: Clip,
        *,
        n_ctx: int = 4,
        init: str = "",
        heads: int = 4,
        self_attention: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        width = clip.text_width
        bounded(1, n_ctx=n_ctx)
        at_least(0, self_attention=self_attention)
        at_most(100, self_attention=self_attention)
        self.init, start = init or None, context_words(clip, init, n_ctx=n_ctx)
        self.start = nn.Buffer(start, persistent=False)  # [n, W], frozen
        self.queries = normal(len(start) or n_ctx, width, generator=generator)
        # In the paper's backbone the text width equals the joint width; other backbones need a projection.
        self.project = nn.Identity() if clip.dim == width else linear(clip.dim, width, generator=generator)
        self.cross = CrossBlock(width, heads, generator=generator)
        self.blocks = nn.Sequential(*(SelfBlock(width, heads, generator=generator) for _ in range(self_attention)))

    def context(self, clip: Clip, space: LabelSpace) -> Tensor:
        """The context [n_ctx, W] for these candidates; it does not depend on their order, not even in the last bit."""
        names = clip.text_features(sorted(readable_name(name) for name in space.names))  # [C, D]
        context: Tensor = self.blocks(self.cross(self.queries, self.project(names)))  # [n, W]
        return self.start + context if len(self.start) else context

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Compute the context and encode all candidates' texts once; compare frozen image features with them."""
        text = prompted_texts(clip, space, self.context(clip, space), self.init)
        return cosine_classifier(clip, text, space.kind)


class SelfBlock(nn.Module):
    """x + SelfAttn(LN(x)), then x + FFN(x): 4,203,008 parameters at W = 512."""

    def __init__(self, width: int, heads: int, *, generator: torch.Generator | None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads, generator=generator)
        self.feed_forward = GatedFeedForward(width, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return [T, W] from [T, W]."""
        normed = self.norm(x)
        x = x + self.attention(normed, normed, normed)
        result: Tensor = x + self.feed_forward(x)
        return result
