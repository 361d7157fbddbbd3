"""FedPGP (Cui et al., 2024): a global context plus a personal low-rank correction, with a contrastive loss."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import (
    Classifier,
    Method,
    at_least,
    bounded,
    context_vectors,
    cosine_classifier,
    prompted_texts,
)
from fedprompt.ops.layers import normal
from fedprompt.ops.losses import objective


class FedPGP(Method):
    """Context V + U W: V [n_ctx, D] is shared, U [n_ctx, rank] and W [rank, D] stay with their client (2024).

    t from V + U W classifies, tG from V alone stays near the template's t0: the loss adds contrast times the mean over
    classes of -log(e^g / (e^g + e^p)), g = cos(t0, tG) / temperature, p = cos(tG, t) / temperature (Cui et al., ICML
    2024). 8,192 of 10,304 parameters travel (width 512).

    n_ctx: number of context vectors, unless `init` is a template.
    init: start of V: words of n_ctx tokens, a template, "template" (the data set's), or "" (N(0, 0.02^2)).
    rank: rank of the personal correction; the paper takes 4 or 8.
    contrast: weight of the contrastive loss; the released script takes 0.5.
    temperature: temperature of the contrastive loss.
    """

    personal: ClassVar[tuple[str, ...]] = ("left", "right")
    reads = ("template",)

    # differs: the release takes the placeholder string "X X ... name." as anchor; here the data set's template
    # differs: FedMPT's comparison averages U and W too, and its contrast compares classes with each other

    def __init__(  # noqa: PLR0913  (the paper's four numbers, and where the context starts)
        self,
        clip: Clip,
        *,
        n_ctx: int = 16,
        init: str = "",
        rank: int = 4,
        contrast: float = 0.5,
        temperature: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        bounded(1, rank=rank)
        at_least(0, contrast=contrast)
        at_least(0.01, temperature=temperature)
        self.contrast, self.temperature, self.init = contrast, temperature, init
        self.context = context_vectors(clip, n_ctx=n_ctx, init=init, generator=generator)
        self.left = normal(len(self.context), rank, generator=generator)
        self.right = normal(rank, clip.text_width, generator=generator)

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Encode the corrected context with the class names once; compare frozen image features with the result."""
        return cosine_classifier(clip, self._texts(clip, space), space.kind)

    def loss(
        self, clip: Clip, images: Images, targets: Tensor, space: LabelSpace, *, stream: torch.Generator
    ) -> Tensor:
        """The task's objective plus the contrastive loss."""
        text = self._texts(clip, space)  # [C, D]
        common = prompted_texts(clip, space, self.context, self.init)  # [C, D]
        task = objective(space.kind)(cosine_classifier(clip, text, space.kind)(images), targets)
        near = (common * clip.text_features(space.texts())).sum(dim=-1)  # [C]
        far = (common * text).sum(dim=-1)  # [C]
        return task + self.contrast * F.softplus((far - near) / self.temperature).mean()

    def _texts(self, clip: Clip, space: LabelSpace) -> Tensor:
        return prompted_texts(clip, space, self.context + self.left @ self.right, self.init)
