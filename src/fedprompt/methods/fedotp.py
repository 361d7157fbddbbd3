"""FedOTP (Li et al., 2024): a global and a local prompt matched to image patches by partial optimal transport."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import (
    NEUTRAL_TEXT,
    Classifier,
    Method,
    at_least,
    at_most,
    context_vectors,
    prompted_texts,
)
from fedprompt.ops.sinkhorn import balanced, partial, sinkhorn

TOLERANCE, ITERATIONS = 1e-6, 10_000  # of the transported mass, which logits multiply by CLIP's scale, about 100


class FedOTP(Method):
    """logit_c = s sum_pj T_pj <x_p, t_jc>, T the transport from patches p to contexts j at cost 1 - <x_p, t_jc> (2024).

    A patch gives at most 1 / P, each context takes exactly mass / 2; T carries no gradient (Li et al., CVPR 2024).
    Context 0 [n_ctx, W] is shared, context 1 stays with its client: 8,192 of 16,384 parameters travel (W = 512).
    Multi-label logits subtract the score of a neutral text under the same plan.

    n_ctx: number of vectors per context, unless `init` is a template.
    init: start of both contexts: words of n_ctx tokens, a template, "template" (the data set's), or "" (N(0, 0.02^2)).
    mass: share of the patches' mass that is transported; it scales the logits too.
    entropy: entropic regularisation of the plan; the paper takes 0.1 for ViT-B/16 and 0.01 for ResNet-50.
    """

    personal: ClassVar[tuple[str, ...]] = ("own",)

    # differs: the release iterates on exponentials, which can become NaN, and stops after 100 iterations or a change
    # of 0.01; here on logarithms where exponentials could become NaN, and until the plan no longer changes

    def __init__(
        self,
        clip: Clip,
        *,
        n_ctx: int = 16,
        init: str = "",
        mass: float = 0.8,
        entropy: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        at_least(0.001, mass=mass, entropy=entropy)
        at_most(1, mass=mass)
        self.mass, self.entropy, self.init = mass, entropy, init
        self.context = context_vectors(clip, n_ctx=n_ctx, init=init, generator=generator)
        self.own = context_vectors(clip, n_ctx=n_ctx, init=init, generator=generator)

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Encode both texts of every class once; per image and class, the classifier solves a transport."""
        contexts = (self.context, self.own)
        text = torch.stack([prompted_texts(clip, space, one, self.init) for one in contexts], dim=1)  # [C, 2, D]
        neutral = clip.text_features((NEUTRAL_TEXT,))[0]  # [D]

        def classify(images: Images) -> Tensor:
            patches = clip.patch_features(images)  # [B, P, D]
            # Keep patches contiguous in memory: the transport's sums over two contexts are slow otherwise.
            cosines = (text.flatten(0, 1) @ patches.mT).reshape(len(patches), *text.shape[:2], -1).mT  # [B, C, P, 2]
            plan = self.plan(cosines)
            if space.kind == "multi":
                cosines = cosines - (patches @ neutral)[:, None, :, None]
            return clip.scale * (plan * cosines).sum(dim=(-1, -2))  # [B, C]

        return classify

    def plan(self, cosines: Tensor) -> Tensor:
        """The partial plans for cosines [..., P, 2], of the same shape."""
        rows = torch.full_like(cosines[..., 0], 1 / cosines.shape[-2])  # [..., P]
        columns = torch.full_like(cosines[..., 0, :], self.mass / cosines.shape[-1])  # [..., 2]
        # A plan of the whole mass takes all of every patch.
        rule = partial if self.mass < 1 else balanced
        return sinkhorn(
            1 - cosines,
            rows,
            columns,
            entropy=self.entropy,
            row_rule=rule,
            tolerance=TOLERANCE,
            iterations=ITERATIONS,
        )
