"""FedSCPNet (SCPNet: Ding et al., 2023): a graph network over class texts, with edges from CLIP's text similarity."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fedprompt.clip.model import Clip
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import (
    Classifier,
    Method,
    at_least,
    at_most,
    context_templates,
    context_vectors,
    cosine_classifier,
)
from fedprompt.ops.layers import unit
from fedprompt.ops.scoring import REGION_SCALE


class FedSCPNet(Method):
    """t'_c = t_c + [G lrelu(G lrelu(G t W1) W2) W3]_c, logit_c = s <v, unit(t'_c)> (Ding et al., CVPR 2023).

    t_c = g(V, name of c), not normalised. G [C, C] links every class to its most similar ones, by the cosine of the
    template's texts, so it depends on the candidates. V and W1 [D, 2D], W2 [2D, 2D], W3 [2D, D] are trained and shared:
    2,099,200 parameters (W = D = 512). Self-training on missing labels and moving averages of weights are left out.

    n_ctx: number of learned word vectors, unless `init` is a template.
    init: start of V: words of n_ctx tokens, a template, "template" (the data set's), or "" (N(0, 0.02^2)).
    neighbours: classes of a row of G, the class itself included; the paper takes 20 for VOC, 62 for COCO, 50 for NUS.
    spread: weight of the neighbours in a row of G; the rest is the class itself.
    scale: s, of region scores too; the paper takes 10 for VOC and COCO, and CLIP's own for NUS, which is 0 here.
    """

    reads = ("template",)

    # differs: in FedMPT's comparison W1 to W3 keep random values, different at every client; here they train
    # differs: W3 starts at zero, so that training starts from the prompts

    def __init__(  # noqa: PLR0913  (the paper's settings, one option each)
        self,
        clip: Clip,
        *,
        n_ctx: int = 4,
        init: str = "a photo of a",
        neighbours: int = 20,
        spread: float = 0.2,
        scale: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        at_least(1, neighbours=neighbours)
        at_least(0, spread=spread, scale=scale)
        at_most(1, spread=spread)
        self.neighbours, self.spread, self.scale, self.init = neighbours, spread, scale, init
        self.context = context_vectors(clip, n_ctx=n_ctx, init=init, generator=generator)
        wide = 2 * clip.dim
        drawn = [torch.empty(rows, wide) for rows in (clip.dim, wide)]
        for weight in drawn:
            nn.init.uniform_(weight, -(wide**-0.5), wide**-0.5, generator=generator)
        self.weights = nn.ParameterList([*drawn, torch.zeros(wide, clip.dim)])

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Encode and smooth the class texts once; compare frozen image features with them."""
        logits = cosine_classifier(clip, self.texts(clip, space), space.kind)
        full = clip.scale if space.kind == "single" else REGION_SCALE
        return (lambda images: logits(images) * (self.scale / full)) if self.scale else logits

    def texts(self, clip: Clip, space: LabelSpace) -> Tensor:
        """[C, D] unit class texts, smoothed."""
        text = clip.encode_text(clip.fill(context_templates(space, self.init), ctx=self.context))  # [C, D]
        graph = self.graph(clip.text_features(space.texts()))
        first, second, last = self.weights
        hidden = F.leaky_relu(graph @ text @ first, 0.2)  # [C, 2D]
        hidden = F.leaky_relu(graph @ hidden @ second, 0.2)  # [C, 2D]
        return unit(text + graph @ hidden @ last)

    def graph(self, text: Tensor) -> Tensor:
        """[C, C] the graph of unit texts [C, D]; rows sum to one, that of a class without neighbours to 1 - spread."""
        alike = (text @ text.T).clamp(min=0)  # [C, C]
        kept = torch.zeros_like(alike).scatter(1, alike.topk(min(self.neighbours, len(text))).indices, 1)
        others = (alike * kept).fill_diagonal_(0)
        shares = others / others.sum(dim=1, keepdim=True).clamp(min=1e-6)
        return self.spread * shares + (1 - self.spread) * torch.eye(len(text)).to(text)
