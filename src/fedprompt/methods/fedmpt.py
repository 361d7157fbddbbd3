"""FedMPT (Wang et al., 2026): multi-label prompts under several conditions of label co-occurrence."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace, readable_name
from fedprompt.errors import UserError
from fedprompt.methods.base import (
    NEUTRAL_TEXT,
    Classifier,
    Explanation,
    Method,
    at_least,
    bounded,
    context_templates,
    context_vectors,
    one_of,
)
from fedprompt.ops.layers import linear, normal, unit, zeroed
from fedprompt.ops.scoring import adapted_cosines
from fedprompt.ops.sinkhorn import sinkhorn

PUBLISHED_CONDITIONS = ("spatial layout", "object pose", "background", "lighting and weather", "object scale")


class FedMPT(Method):
    """p_c = sum_k w_k psi_kc with psi_kc = C sum_m P_k[m, c] S_k[m, c] (Wang et al., 2026, arXiv 2605.28347).

    S_k = softmax_c(s <X_k[m], T_kc> / tau). Condition k adapts the patches, X_k = unit(X + X D_k U_k), and has
    its own class texts, T_kc = g("[L_k] condition [L'] class."). P_k is the entropic transport at cost 1 - S_k from
    patches, weighted by their largest class score, to classes, weighted equally; the gate w depends on the image.
    192,709 parameters at W = D = 512.

    n_conditions: how many of the label space's conditions to use, its first ones.
    condition_words: whether texts name the conditions; if not, learned vectors alone tell them apart.
    condition_ctx: learned vectors L_k before each condition; 0 leaves them out.
    class_ctx: learned vectors L' before the class, the same for all classes and conditions; 0 leaves them out.
    init: start of L': words of class_ctx tokens, a template, "template" (the data set's), or "" (N(0, 0.02^2)).
    adapters: whether conditions adapt the patches.
    rank: of the adapters; the paper's overfit above 32.
    transport: whether patches are transported; if not, patch weights are the same for all labels.
    tau: temperature of the softmax S.
    entropy: regulariser lambda of the transport.
    unroll: whether gradients flow through the transport plan; otherwise it is a constant.
    evidence: psi averages the "softmax" S; or the "similarity", in a sigmoid with learned scale and bias.
    gate: whether a gate weights the conditions per image; if not, all count equally.
    gate_input: the gate reads the "image" feature or the mean of the "patches".
    """

    reads = ("conditions",)

    def __init__(  # noqa: PLR0913  (the paper's ablations, one option each)
        self,
        clip: Clip,
        *,
        n_conditions: int = 5,
        condition_words: bool = True,
        condition_ctx: int = 4,
        class_ctx: int = 4,
        init: str = "",
        adapters: bool = True,
        rank: int = 32,
        transport: bool = True,
        tau: float = 4.0,
        entropy: float = 0.2,
        unroll: bool = False,
        evidence: Literal["softmax", "similarity"] = "softmax",
        gate: bool = True,
        gate_input: Literal["image", "patches"] = "image",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        bounded(1, n_conditions=n_conditions, rank=rank)
        bounded(0, condition_ctx=condition_ctx, class_ctx=class_ctx)
        at_least(1e-3, tau=tau, entropy=entropy)
        one_of(("softmax", "similarity"), evidence=evidence)
        one_of(("image", "patches"), gate_input=gate_input)
        self.tau, self.unroll, self.gate_input, self.words = tau, unroll, gate_input, condition_words
        self.entropy = entropy if transport else torch.inf  # then a plan is the product of its marginals
        self.condition_ctx = normal(n_conditions, condition_ctx, clip.text_width, generator=generator)
        self.init = init if class_ctx else ""
        self.class_ctx = context_vectors(clip, n_ctx=class_ctx, init=self.init, generator=generator, least=0)
        self.down = normal(n_conditions, clip.dim, rank, generator=generator) if adapters else None
        self.up = nn.Parameter(torch.zeros(n_conditions, rank, clip.dim)) if adapters else None
        narrow, weigh = linear(clip.dim, 32, generator=generator), linear(32, n_conditions, generator=generator)
        self.gate = nn.Sequential(narrow, zeroed(weigh)) if gate else None
        self.squash = nn.Parameter(torch.tensor([clip.scale, 1.0]).log()) if evidence == "similarity" else None

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Encode every class under every condition once. Logits are logit(p), or log p for single-label tasks."""
        if len(space) == 1 and self.squash is None:
            raise UserError('A softmax over one label is always 1; add labels, or set method.evidence = "similarity".')
        text, conditions = self.texts(clip, space), self.conditions(space)

        def classify(images: Images) -> Tensor:
            view = self._view(clip, images, text, conditions)
            present = (view.gate[..., None] * view.evidence).sum(dim=1).clamp(1e-30, 1 - 1e-7)  # [B, C]
            return present.log() if space.kind == "single" else present.logit()

        return classify

    @torch.no_grad()
    def explain(self, clip: Clip, images: Images, space: LabelSpace) -> Explanation:
        """Gate, evidence and plans for these images; a column of a plan is the heat map of a label."""
        return self._view(clip, images, self.texts(clip, space), self.conditions(space))

    def conditions(self, space: LabelSpace) -> tuple[str, ...]:
        """The K conditions under which this space's labels are recognised."""
        known, wanted = space.conditions or PUBLISHED_CONDITIONS, len(self.condition_ctx)
        if len(known) < wanted:
            raise UserError(f"n_conditions = {wanted} but there are only {len(known)}: {', '.join(known)}; lower it.")
        return known[:wanted]

    def texts(self, clip: Clip, space: LabelSpace) -> Tensor:
        """Unit features [K, C, D] of all classes under all conditions."""
        classes = context_templates(space, self.init)
        texts = [f"<own> {readable_name(c) * self.words} {text}" for c in self.conditions(space) for text in classes]
        own = self.condition_ctx.repeat_interleave(len(space), dim=0)  # [K*C, condition_ctx, W]
        prompts = clip.fill(texts, own=own, ctx=self.class_ctx)
        features = clip.encode_shared_prefixes(prompts, len(space))  # [K*C, D], the texts of a condition share a prefix
        return unit(features).view(-1, len(space), clip.dim)  # [K, C, D]

    def evidence(self, clip: Clip, patches: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Evidence [B, K, C] of texts [K, C, D] in unit patches [B, P, D], and the plans [B, K, P, C] that weigh it."""
        cosines, classes = adapted_cosines(patches, text, self.down, self.up), text.shape[1]
        scores = clip.scale / self.tau * cosines  # [B, K, P, C]
        shares, claims = scores.softmax(dim=-1), scores.amax(dim=-1).softmax(dim=-1)  # [B, K, P, C], [B, K, P]
        alike = torch.full_like(text[0, :, 0], 1 / classes)  # [C]
        plans = sinkhorn(1 - shares, claims, alike, entropy=self.entropy, unroll=self.unroll)
        if self.squash is None:
            return classes * (plans * shares).sum(dim=-2), plans
        # differs: the paper gives no zero point for a similarity; here it is that of a neutral text
        neutral = clip.text_features((NEUTRAL_TEXT,)).to(text).expand(len(text), -1, -1)  # [K, 1, D]
        zero = adapted_cosines(patches, neutral, self.down, self.up)  # [B, K, P, 1]
        similarity = classes * (plans * (cosines - zero)).sum(dim=-2)  # [B, K, C]
        return (self.squash[0].exp() * similarity + self.squash[1]).sigmoid(), plans

    def _view(self, clip: Clip, images: Images, text: Tensor, conditions: tuple[str, ...]) -> Explanation:
        patches = clip.patch_features(images)
        evidence, plans = self.evidence(clip, patches, text)
        read = clip.image_features(images) if self.gate_input == "image" else patches.mean(dim=1)  # [B, D]
        gate = read.new_zeros(len(read), len(text)) if self.gate is None else self.gate(read)
        return Explanation(conditions, gate.softmax(dim=-1), evidence, plans)
