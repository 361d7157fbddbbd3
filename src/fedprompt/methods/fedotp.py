"""FedOTP (Li et al., 2024): a global and a private context share the patches of an image by partial transport."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import NOTHING, Classifier, Method, at_least, at_most, prompted_texts
from fedprompt.ops.layers import normal
from fedprompt.ops.sinkhorn import at_most as no_more_than
from fedprompt.ops.sinkhorn import exactly, sinkhorn


class FedOTP(Method):
    """logit_c = s sum_pj T_pj <x_p, t_jc>, T moving mass from patches p to contexts j at cost 1 - <x_p, t_jc> (2024).

    A patch gives at most 1 / P, each context takes exactly mass / 2; T carries no gradient (Li et al., CVPR 2024).
    Context 0 [n_ctx, W] is shared, context 1 stays with its client: 8,192 of 16,384 parameters travel (W = 512).
    Multi-label logits are those against a text about nothing, under the same plan.

    n_ctx: word vectors of a context.
    mass: share of the patches that is explained; it scales the logits too.
    entropy: softness of the plan; the paper takes 0.1 for ViT-B/16 and 0.01 for ResNet-50.
    """

    personal: ClassVar[tuple[str, ...]] = ("own",)

    # differs: the release iterates on exponentials, whose NaN ends in a crash later on; here on logarithms

    def __init__(
        self,
        clip: Clip,
        *,
        n_ctx: int = 16,
        mass: float = 0.8,
        entropy: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        at_least(1, n_ctx=n_ctx)
        at_least(0.001, mass=mass, entropy=entropy)
        at_most(1, mass=mass)
        self.mass, self.entropy = mass, entropy
        self.context = normal(n_ctx, clip.text_width, generator=generator)
        self.own = normal(n_ctx, clip.text_width, generator=generator)

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Encode both texts of every class once; what is left is a transport for each image and class."""
        text = torch.stack([prompted_texts(clip, space, context) for context in (self.context, self.own)])  # [2, C, D]
        nothing = clip.text_features((NOTHING,))[0]  # [D]

        def classify(images: Images) -> Tensor:
            patches = clip.patch_features(images)  # [B, P, D]
            # Patches lie next to each other in memory: the transport's sums over two contexts would crawl otherwise.
            cosines = torch.einsum("bpd,jcd->bcjp", patches, text).mT  # [B, C, P, 2]
            plan = self.plan(cosines)
            if space.kind == "multi":
                cosines = cosines - (patches @ nothing)[:, None, :, None]
            return clip.scale * (plan * cosines).sum(dim=(-1, -2))  # [B, C]

        return classify

    def plan(self, cosines: Tensor) -> Tensor:
        """The partial plans for cosines [..., P, 2], of the same shape."""
        rows = torch.full_like(cosines[..., 0], 1 / cosines.shape[-2])  # [..., P]
        columns = torch.full_like(cosines[..., 0, :], self.mass / cosines.shape[-1])  # [..., 2]
        # A plan of the whole mass has no choice but to take all that the patches have.
        rule = no_more_than if self.mass < 1 else exactly
        return sinkhorn(1 - cosines, rows, columns, entropy=self.entropy, row_rule=rule)
