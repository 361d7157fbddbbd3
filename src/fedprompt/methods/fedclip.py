"""FedCLIP (Lu et al., 2023): an attention adapter that re-weights the channels of the frozen image feature."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError
from fedprompt.methods.base import NEUTRAL_TEXT, Classifier, Method, frozen_tokens, one_of, pair_logits, with_bias
from fedprompt.ops.layers import linear, unit


class FedCLIP(Method):
    """a(v) = softmax(W2 tanh(W1 v + b1) + b2), logit_c = s cos(a(v) * v, t_c) with frozen texts (Lu et al., 2023).

    v is the image feature before it is scaled to length one. Multi-label tasks gate the channels of every region by
    a(v). W1, W2 [D, D] and their biases are trained and shared: 525,312 parameters (D = 512).

    objective: "classes" is the cross-entropy over the client's classes; "in_batch_contrastive" is the released
        symmetric loss between images and their captions, in which two images of one class are negatives.
    """

    reads = ("template",)

    # differs: the release trains in_batch_contrastive, where images of one class are negatives; here it is an option
    # differs: the release writes "a picture of a {}"; here the data set's template

    def __init__(
        self,
        clip: Clip,
        *,
        objective: Literal["classes", "in_batch_contrastive"] = "classes",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        one_of(("classes", "in_batch_contrastive"), objective=objective)
        self.objective = objective
        self.gate = nn.Sequential(
            linear(clip.dim, clip.dim, generator=generator),
            nn.Tanh(),
            linear(clip.dim, clip.dim, generator=generator),
            nn.Softmax(dim=-1),
        )

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Use the template's texts; per image, the classifier runs the adapter on the frozen feature."""
        text = clip.text_features(space.texts())  # [C, D]
        if space.kind == "single":
            return lambda images: with_bias(clip, clip.scale * self._gated(clip, images) @ text.T)  # [B, C]
        neutral = clip.text_features((NEUTRAL_TEXT,))

        def regions(images: Images) -> Tensor:
            gate = self.gate(clip.image_projections(images))[:, None]  # [B, 1, D]
            return pair_logits(unit(gate * frozen_tokens(clip, images)), text, neutral)

        return regions

    def loss(
        self, clip: Clip, images: Images, targets: Tensor, space: LabelSpace, *, stream: torch.Generator
    ) -> Tensor:
        """The task's objective, or the contrastive loss between the batch's images and captions."""
        if self.objective == "classes":
            return super().loss(clip, images, targets, space, stream=stream)
        if space.kind != "single":
            raise UserError('The objective = "in_batch_contrastive" needs one caption per image; use "classes".')
        captions = clip.text_features(space.texts())[targets]  # [B, D]
        logits = clip.scale * self._gated(clip, images) @ captions.T  # [B, B]
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    def _gated(self, clip: Clip, images: Images) -> Tensor:
        features = clip.image_projections(images)  # [B, D]
        return unit(self.gate(features) * features)
