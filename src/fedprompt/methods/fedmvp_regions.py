"""FedMVP as in FedMPT's comparison (Wang et al., 2026): one visual prompt, by cross-attention to class texts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedprompt.clip.model import Clip, Encoded
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import Classifier, Method, at_least, bounded, context_vectors, cosine_logits, prompted_texts
from fedprompt.ops.layers import CrossAttention, linear
from fedprompt.ops.losses import cosine_distance, objective


class FedMVPRegions(Method):
    """token = MLP(CrossAttn(v, t)), image = f([CLS; token; patches]) (Wang et al., 2026, after FedMVP, 2025).

    v is the frozen image feature, t_c = g(V, name of c) the texts of all candidates. All tokens are compared with the
    texts, and the loss adds weight (1 - mean_c cos(t_c, template of c)). No attributes, no LoRA, no mirrored view:
    1,135,424 parameters (W = 768, D = 512), all shared.

    n_ctx: number of learned word vectors V, unless `init` is a template.
    init: start of V: words of n_ctx tokens, a template, "template" (the data set's), or "" (N(0, 0.02^2)).
    heads: attention heads.
    hidden: hidden width of the MLP.
    anchor: weight of the pull towards the templates; 0 leaves it out.
    """

    reads = ("template",)

    def __init__(  # noqa: PLR0913  (four sizes, and where the context starts)
        self,
        clip: Clip,
        *,
        n_ctx: int = 4,
        init: str = "",
        heads: int = 8,
        hidden: int = 64,
        anchor: float = 0.02,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        bounded(1, hidden=hidden)
        at_least(0, anchor=anchor)
        self.anchor, self.init = anchor, init
        self.ctx = context_vectors(clip, n_ctx=n_ctx, init=init, generator=generator)
        # differs: the release applies dropout of 0.1 to the attention, in tests too
        self.look = CrossAttention(clip.dim, heads, generator=generator)
        narrow, widen = (
            linear(*sizes, generator=generator) for sizes in ((clip.dim, hidden), (hidden, clip.image_width))
        )
        self.write = nn.Sequential(narrow, nn.ReLU(), widen)

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Encode the class texts once; images run through the prompted tower."""
        text = prompted_texts(clip, space, self.ctx, self.init)
        encode = self._encoder(clip, text)
        return lambda images: cosine_logits(clip, encode(images), text, space.kind)

    def loss(
        self, clip: Clip, images: Images, targets: Tensor, space: LabelSpace, *, stream: torch.Generator
    ) -> Tensor:
        """The task's objective plus the mean distance of the texts from those of the template."""
        text = prompted_texts(clip, space, self.ctx, self.init)
        logits = cosine_logits(clip, self._encoder(clip, text)(images), text, space.kind)
        anchors = clip.text_features(space.texts())
        return objective(space.kind)(logits, targets) + self.anchor * cosine_distance(text, anchors)

    def _encoder(self, clip: Clip, text: Tensor) -> Callable[[Images], Encoded]:
        # differs: the release takes features at CLIP's own length; here all have that of a layer-normalised vector
        length = clip.dim**0.5

        def encode(images: Images) -> Encoded:
            queries, context = length * clip.image_features(images)[:, None], length * text  # [B, 1, D], [C, D]
            token = self.write(self.look(queries, context, context))  # [B, 1, W]
            embeddings, first = clip.image_embeddings(images), clip.leading  # [B, L + P, W]
            # differs: the release inserts the token after the tower's first norm; here it passes through the norm
            parts = [embeddings[:, :first], token, embeddings[:, first:]]
            return clip.encode_image(torch.cat(parts, dim=1))  # [B, L + 1 + P, W]

        return encode
