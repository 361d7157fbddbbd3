"""FedMaPLe (MaPLe: Khattak et al., 2023): deep prompts in both towers, the image prompts projected from the text."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError
from fedprompt.methods.base import (
    Classifier,
    Method,
    at_least,
    bounded,
    context_templates,
    context_words,
    cosine_logits,
)
from fedprompt.ops.layers import linear, normal, unit


class FedMaPLe(Method):
    """Text block i < depth reads V_i, image block i reads F_i(V_i); logit_c = s <v, t_c> (Khattak et al., 2023).

    V_0 replaces the first n_ctx words before the class name, V_i the same positions entering block i. F_0(V_0) is
    appended to the patches after position embeddings, F_i(V_i) replaces it entering block i; later blocks keep their
    tokens. All V_i and F_i = Linear W_text -> W_image are trained and shared: 3,555,072 parameters at ViT-B/16.

    n_ctx: learned vectors per block, at most as many as `init` has tokens; with a template, at most all of its words.
    init: words before the name: a phrase, a template, "template" (the data set's), or "" (V_0 alone, N(0, 0.02^2)).
    depth: blocks that are prompted, at most those that both towers have.
    """

    requires = ("text_edits",)

    def __init__(
        self,
        clip: Clip,
        *,
        n_ctx: int = 2,
        init: str = "a photo of a",
        depth: int = 9,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        at_least(1, depth=depth)
        bounded(1, n_ctx=n_ctx)
        self.init, words = init, context_words(clip, init)  # [T, W]
        if 0 < len(words) < n_ctx and "{}" not in init:
            raise UserError(
                f'The option n_ctx = {n_ctx} is too large: init = "{init}" has {len(words)} tokens; lower it.'
            )
        depth = min(depth, clip.text_blocks, clip.image_blocks)
        first = (
            nn.Parameter(words[:n_ctx].clone()) if len(words) else normal(n_ctx, clip.text_width, generator=generator)
        )
        self.rest = nn.Buffer(words[n_ctx:], persistent=False)  # [T - n, W], the frozen words between V_0 and the name
        deeper = [normal(len(first), clip.text_width, generator=generator) for _ in range(1, depth)]
        self.words = nn.ParameterList([first, *deeper])
        couplers = [linear(clip.text_width, clip.image_width, generator=generator) for _ in range(min(depth, 2))]
        copies = [copy.deepcopy(couplers[1]) for _ in range(2, depth)]  # deeper couplers have equal initial values
        self.couplers = nn.ModuleList([*couplers, *copies])

    def texts(self, clip: Clip, space: LabelSpace) -> Tensor:
        """[C, D] unit features of the class texts."""
        prompts = clip.fill(context_templates(space, self.init), ctx=torch.cat([self.words[0], self.rest]))  # [T, W]

        def enter(block: int, tokens: Tensor) -> Tensor:
            if not 0 < block < len(self.words):
                return tokens
            learned = self.words[block].expand(len(tokens), -1, -1)
            return torch.cat([tokens[:, :1], learned, tokens[:, 1 + learned.shape[1] :]], dim=1)  # [C, T, W]

        return unit(clip.encode_text(prompts, edit=enter))

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Encode the class texts and project the image prompts once; images run through the prompted tower."""
        text = self.texts(clip, space)
        coupled = [couple(learned) for couple, learned in zip(self.couplers, self.words, strict=True)]  # [n, W] each

        def append(tokens: Tensor, block: int) -> Tensor:
            return torch.cat([tokens, coupled[block].expand(len(tokens), -1, -1)], dim=1)  # [B, L + P + n, W]

        def enter(block: int, tokens: Tensor) -> Tensor:
            return append(tokens[:, : -len(coupled[0])], block) if 0 < block < len(coupled) else tokens

        def classify(images: Images) -> Tensor:
            encoded = clip.encode_image(append(clip.image_embeddings(images), 0), edit=enter)
            return cosine_logits(clip, encoded, text, space.kind)

        return classify
