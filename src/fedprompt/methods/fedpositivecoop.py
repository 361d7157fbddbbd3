"""FedPositiveCoOp (PositiveCoOp: Rawlekar et al., 2025): a learned positive prompt, a negative embedding per class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedprompt.clip.model import Clip
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import (
    NEUTRAL_TEXT,
    Classifier,
    Method,
    at_least,
    context_templates,
    context_vectors,
    frozen_tokens,
    pair_logits,
)
from fedprompt.ops.layers import normal, unit


class FedPositiveCoOp(Method):
    """A pair head on image regions: t+_c = g(V, name of c) (+ R_c), t-_c = N_c (PositiveCoOp: Rawlekar et al., 2025).

    V [n_ctx, W] and the tables N, R [C, D] of the training classes are trained and shared: 18,432 parameters for 20
    classes, 28,672 with R (W = D = 512). A class without a row is scored against the mean row. Every client
    sends every row but only those that hold its class train it, so uniform averaging moves rare rows slowly.

    n_ctx: number of learned word vectors, unless `init` is a template.
    init: start of V: words of n_ctx tokens, a template, "template" (the data set's), or "" (N(0, 0.02^2)).
    classes: names of the classes with a row, in this order; a run fills in its training classes.
    residual: whether there is a table R, which starts at zero.
    context_rate: factor on the learning rate of V; the tables use the full rate.
    """

    # differs: FedMPT's comparison leaves the tables at random initial values, different at every client
    # differs: R starts at zero; N(0, 1) would dominate the texts

    def __init__(  # noqa: PLR0913  (two sizes, a table, a switch, and where the context starts)
        self,
        clip: Clip,
        *,
        n_ctx: int = 16,
        init: str = "",
        classes: tuple[str, ...] = (),
        residual: bool = False,
        context_rate: float = 0.01,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        at_least(0, context_rate=context_rate)
        self.rows = {name: row for row, name in enumerate(classes)}
        self.context_rate, self.init = context_rate, init
        self.context = context_vectors(clip, n_ctx=n_ctx, init=init, generator=generator)
        self.negative = normal(len(classes), clip.dim, std=1.0, generator=generator)
        self.residual = nn.Parameter(torch.zeros(len(classes), clip.dim)) if residual else None

    def learning_rate_factor(self, name: str) -> float:
        """The context learns more slowly than the tables."""
        return self.context_rate if name == "context" else 1.0

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Encode the positive texts and look up the negative ones once; compare frozen regions with both."""
        positive = clip.encode_text(clip.fill(context_templates(space, self.init), ctx=self.context))  # [C, D]
        if self.residual is not None:
            positive = positive + self._look_up(self.residual, space, torch.zeros_like(positive[0]))
        # Without any trained row, a neutral text stands for the absence of a class.
        other = self.negative.mean(dim=0) if self.rows else clip.text_features((NEUTRAL_TEXT,))[0]  # [D]
        positive, negative = unit(positive), unit(self._look_up(self.negative, space, other))
        return lambda images: pair_logits(frozen_tokens(clip, images), positive, negative)

    def _look_up(self, table: Tensor, space: LabelSpace, other: Tensor) -> Tensor:
        """[C, D] the rows of the space's classes, `other` for those without one."""
        return torch.stack([table[self.rows[name]] if name in self.rows else other for name in space.names])
