"""FedCoCoOp (CoCoOp: Zhou et al., 2022): a learned context, shifted per image by a small network, averaged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import Classifier, Method, at_least, context_templates, context_vectors, cosine_classifier
from fedprompt.ops.layers import linear, recomputed, unit

TEXTS_AT_ONCE = 256  # texts encoded together; at ViT-B/16 their activations are about a gigabyte


class FedCoCoOp(Method):
    """V_b = V + h(v_b), logit_bc = s <v_b, unit(g(V_b, name of c))>, h = Linear, ReLU, Linear (Zhou et al., 2022).

    A step encodes B C texts, so images are processed in groups, and a group's activations are recomputed for the
    gradients instead of kept. V and h are trained and shared: 35,360 parameters (W = D = 512).

    n_ctx: number of learned word vectors, unless `init` is a template.
    init: start of V: words of n_ctx tokens, a template, "template" (the data set's), or "" (N(0, 0.02^2)).
    reduction: h has a hidden width of D / reduction, at least 8.
    """

    # differs: CoCoOp's release trains h in float16 with batches of one image; here float32 and any batch

    def __init__(
        self,
        clip: Clip,
        *,
        n_ctx: int = 4,
        init: str = "a photo of a",
        reduction: int = 16,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        at_least(1, reduction=reduction)
        hidden = max(8, clip.dim // reduction)
        self.init = init
        self.context = context_vectors(clip, n_ctx=n_ctx, init=init, generator=generator)
        self.shift = nn.Sequential(
            linear(clip.dim, hidden, generator=generator),
            nn.ReLU(),
            linear(hidden, clip.text_width, generator=generator),
        )

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Return a classifier that encodes the texts per image: they depend on it."""
        texts = context_templates(space, self.init)

        def encode(contexts: Tensor) -> Tensor:
            rows = contexts.repeat_interleave(len(texts), dim=0)  # [B*C, n, W]
            features = clip.encode_text(clip.fill(texts * len(contexts), ctx=rows))
            return unit(features).reshape(len(contexts), len(texts), -1)  # [B, C, D]

        def classify(images: Images) -> Tensor:
            groups = torch.split(torch.arange(len(images)), max(1, TEXTS_AT_ONCE // len(texts)))
            again = len(groups) > 1 and torch.is_grad_enabled()
            logits = []
            for group in map(images.take, groups):
                contexts = self.context + self.shift(clip.image_features(group))[:, None]  # [B, n, W]
                text = recomputed(lambda x, _: encode(x), contexts) if again else encode(contexts)
                logits.append(cosine_classifier(clip, text, space.kind)(group))
            return torch.cat(logits)  # [B, C]

        return classify
