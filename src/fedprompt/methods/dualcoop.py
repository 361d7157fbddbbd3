"""DualCoOp (Sun et al., 2022), federated: learned positive and negative contexts for multi-label recognition."""

from __future__ import annotations

import torch

from fedprompt.clip.model import Clip
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import Classifier, Method, context_templates, context_vectors, frozen_tokens, pair_logits
from fedprompt.ops.layers import normal, unit


class DualCoOp(Method):
    """logit_c = z+_c - z-_c: region scores of t+_c = g(V+, name of c) and t-_c, both weighted by t+ (Sun et al., 2022).

    V+ and V- [n_ctx, W] serve all classes, so p_c = exp(z+_c) / (exp(z+_c) + exp(z-_c)); 16,384 parameters at W = 512,
    all shared. Single-label tasks compare the image feature instead of the tokens.

    n_ctx: number of learned word vectors in each of the two contexts, unless `init` is a template.
    init: start of V+: words of n_ctx tokens, a template, "template" (the data set's), or "" (N(0, 0.02^2)).
    """

    def __init__(
        self, clip: Clip, *, n_ctx: int = 16, init: str = "", generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.init = init
        self.present = context_vectors(clip, n_ctx=n_ctx, init=init, generator=generator)
        self.absent = normal(len(self.present), clip.text_width, generator=generator)

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Encode the positive and the negative prompt of every class once; the rest is per image."""
        both = torch.stack([self.present, self.absent]).repeat_interleave(len(space), dim=0)  # [2*C, n_ctx, W]
        prompts = clip.fill(context_templates(space, self.init) * 2, ctx=both)
        present, absent = unit(clip.encode_text(prompts)).chunk(2)  # 2 x [C, D]
        if space.kind == "single":
            return lambda images: clip.scale * clip.image_features(images) @ (present - absent).T  # [B, C]
        return lambda images: pair_logits(frozen_tokens(clip, images), present, absent)
