"""FedMVP as FedMPT's comparison runs it (Wang et al., 2026): the image looks at the classes and writes one token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedprompt.clip.model import Clip, Encoded
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import Classifier, Method, at_least, cosine_logits, prompted_texts
from fedprompt.ops.layers import CrossAttention, linear, normal
from fedprompt.ops.losses import drift, objective


class FedMVPRegions(Method):
    """token = MLP(CrossAttn(v, t)), image = f([CLS; token; patches]) (Wang et al., 2026, after FedMVP, 2025).

    v is the frozen image feature, t_c = g(V, name of c) the texts of all candidates. All tokens are compared with the
    texts, and the loss adds weight (1 - mean_c cos(t_c, template of c)). No attributes, no LoRA, no mirrored view:
    1,135,424 parameters (W = 768, D = 512), all shared.

    n_ctx: number of learned word vectors V.
    heads: attention heads.
    hidden: width inside the MLP.
    anchor: weight of the pull towards the templates; 0 leaves it out.
    """

    def __init__(
        self,
        clip: Clip,
        *,
        n_ctx: int = 4,
        heads: int = 8,
        hidden: int = 64,
        anchor: float = 0.02,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        at_least(1, n_ctx=n_ctx, hidden=hidden)
        at_least(0, anchor=anchor)
        self.anchor = anchor
        self.ctx = normal(n_ctx, clip.text_width, generator=generator)
        # differs: the release drops out a tenth of the attention, in tests too
        self.look = CrossAttention(clip.dim, heads, generator=generator)
        narrow, widen = (
            linear(*sizes, generator=generator) for sizes in ((clip.dim, hidden), (hidden, clip.image_width))
        )
        self.write = nn.Sequential(narrow, nn.ReLU(), widen)

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Word the classes; every image then takes a pass through the tower."""
        text = prompted_texts(clip, space, self.ctx)
        encode = self._encoder(clip, text)
        return lambda images: cosine_logits(clip, encode(images), text, space.kind)

    def loss(
        self, clip: Clip, images: Images, targets: Tensor, space: LabelSpace, *, stream: torch.Generator
    ) -> Tensor:
        """The task's objective plus the mean distance of the texts from those of the template."""
        text = prompted_texts(clip, space, self.ctx)
        logits = cosine_logits(clip, self._encoder(clip, text)(images), text, space.kind)
        return objective(space.kind)(logits, targets) + self.anchor * drift(text, clip.text_features(space.texts()))

    def _encoder(self, clip: Clip, text: Tensor) -> Callable[[Images], Encoded]:
        # differs: the release takes features as long as CLIP makes them; here all have the length of a normalised layer
        longer = clip.dim**0.5

        def encode(images: Images) -> Encoded:
            queries, context = longer * clip.image_features(images)[:, None], longer * text  # [B, 1, D], [C, D]
            token = self.write(self.look(queries, context, context))  # [B, 1, W]
            embeddings = clip.image_embeddings(images)  # [B, 1 + P, W]
            # differs: the release puts the token in after the tower's first norm, which would spare it the norm
            return clip.encode_image(torch.cat([embeddings[:, :1], token, embeddings[:, 1:]], dim=1))  # [B, 2 + P, W]

        return encode
