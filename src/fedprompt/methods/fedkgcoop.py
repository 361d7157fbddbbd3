"""FedKgCoOp (KgCoOp: Yao et al., 2023): PromptFL with a penalty on the distance from the hand-written prompts."""

from __future__ import annotations

import torch
from torch import Tensor

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import Classifier, Method, at_least, context_vectors, cosine_classifier, prompted_texts
from fedprompt.ops.losses import cosine_distance, objective


class FedKgCoOp(Method):
    """PromptFL with the loss CE + pull mean_c (1 - cos(t_c, t0_c)), t0 the template's texts (Yao et al., 2023).

    The mean is over a client's own classes. V [n_ctx, W] is trained and shared: 2,048 parameters (W = 512).

    n_ctx: number of learned word vectors, unless `init` is a template.
    init: start of V: words of n_ctx tokens, a template, "template" (the data set's), or "" (N(0, 0.02^2)).
    pull: weight of the distance from the template; 0 is PromptFL.
    """

    reads = ("template",)

    # differs: in FedMPT's comparison the weight 0.02 of the asymmetric loss multiplies the pull too

    def __init__(
        self,
        clip: Clip,
        *,
        n_ctx: int = 4,
        init: str = "a photo of a",
        pull: float = 8.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        at_least(0, pull=pull)
        self.pull, self.init = pull, init
        self.context = context_vectors(clip, n_ctx=n_ctx, init=init, generator=generator)

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Encode the learned context with the class names once; compare frozen image features with the result."""
        return cosine_classifier(clip, prompted_texts(clip, space, self.context, self.init), space.kind)

    def loss(
        self, clip: Clip, images: Images, targets: Tensor, space: LabelSpace, *, stream: torch.Generator
    ) -> Tensor:
        """The task's objective plus the mean distance of the class texts from the template's."""
        text = prompted_texts(clip, space, self.context, self.init)  # [C, D]
        task = objective(space.kind)(cosine_classifier(clip, text, space.kind)(images), targets)
        return task + self.pull * cosine_distance(text, clip.text_features(space.texts()))
