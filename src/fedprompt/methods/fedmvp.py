"""FedMVP (Singha et al., 2025): visual prompts per image, by cross-attention of its patches to class attributes."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fedprompt.clip.model import Clip, Encoded
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import Attention, Classifier, Method, at_least, bounded, class_texts, cosine_logits, one_of
from fedprompt.ops.diagnostics import Diagnostic, feature_diagnostics, prompt_diagnostics
from fedprompt.ops.layers import CrossBlock, LowRank, linear, normal, unit
from fedprompt.ops.losses import objective

LEARNED_KEYS = 16  # learned keys for conditioning = "image"; the paper gives no number


class FedMVP(Method):
    """p = pool_m(PromptFormer(patches, attributes)), v = f([CLS; patches; p]) (Singha et al., 2025, arXiv 2504.20860).

    logit_c = s mean_j <v, t_cj> over the attribute sentences of class c. The loss adds alpha (1 - cos(v, f(flip(x)))),
    which keeps v near frozen CLIP. Once its loss is low enough, a client trains and sends only LoRA factors: 36,864
    parameters instead of the PromptFormer's 9,845,760 (W = 768, D = 512). Multi-label tasks compare all tokens with the
    texts and use the asymmetric loss in place of cross-entropy.

    n_tokens: number m of prompts appended to the patches; the paper tries 1, 2, 4, 8 and 16.
    attribute_text: patches attend to "bare" attributes ("four legs") or to a whole "sentence" about the class.
    consistency: weight alpha of the pull towards frozen CLIP; 0 leaves it out.
    flip: mirror the frozen view at random per "image" or for the whole "batch".
    lora: whether there are LoRA factors, and a phase that trains nothing else.
    lora_rank: their rank.
    sigma: cross-entropy on the first pass of a round below which a client enters that phase for good.
    conditioning: prompts depend on "both", the "image" alone (learned keys) or the "text" alone (learned queries).
    heads: attention heads.
    """

    personal: ClassVar[tuple[str, ...]] = ("phase", "cross_entropy_sum")
    reads = ("template", "attributes")

    def __init__(  # noqa: PLR0913  (the paper's ablations, one option each)
        self,
        clip: Clip,
        *,
        n_tokens: int = 4,
        attribute_text: Literal["bare", "sentence"] = "bare",
        consistency: float = 10.0,
        flip: Literal["image", "batch"] = "image",
        lora: bool = True,
        lora_rank: int = 8,
        sigma: float = 0.5,
        conditioning: Literal["both", "image", "text"] = "both",
        heads: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        width = clip.image_width
        bounded(1, n_tokens=n_tokens, lora_rank=lora_rank)
        at_least(0, consistency=consistency, sigma=sigma)
        one_of(("bare", "sentence"), attribute_text=attribute_text)
        one_of(("image", "batch"), flip=flip)
        one_of(("both", "image", "text"), conditioning=conditioning)
        self.n_tokens, self.attribute_text, self.conditioning = n_tokens, attribute_text, conditioning
        self.consistency, self.flip, self.sigma = consistency, flip, sigma
        if conditioning == "image":
            self.keys = normal(LEARNED_KEYS, width, generator=generator)
        else:
            self.project = linear(clip.dim, width, generator=generator)
        if conditioning == "text":
            self.queries = normal(n_tokens, width, generator=generator)
        self.promptformer = CrossBlock(width, heads, generator=generator)
        # differs: the release draws both factors at random and tests without LoRA; here the start is the identity
        # differs: the paper leaves open on which side of the LayerNorms LoRA stands; here between norms and projections
        self.lora = LowRank(width, lora_rank, generator=generator) if lora else None
        self.unaccounted = "begins LoRA by the images' loss; set method.lora = false" if lora and sigma else ""
        self.phase = nn.Buffer(torch.zeros((), dtype=torch.bool))  # true: LoRA only, from here on
        self.cross_entropy_sum = nn.Buffer(torch.zeros(2))  # sum of cross-entropies and number of images in this epoch

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Project the attributes of all candidate classes once; images run through the prompted tower."""
        context, text = self._context(clip, space), class_texts(clip, space)
        return lambda images: cosine_logits(clip, self._encode(clip, images, context), text, space.kind)

    def loss(
        self, clip: Clip, images: Images, targets: Tensor, space: LabelSpace, *, stream: torch.Generator
    ) -> Tensor:
        """The task's objective plus the distance from the frozen feature of the image or of its mirror image."""
        encoded = self._encode(clip, images, self._context(clip, space))
        task = objective(space.kind)(cosine_logits(clip, encoded, class_texts(clip, space), space.kind), targets)
        self.cross_entropy_sum.add_(torch.stack([task.detach(), torch.ones_like(task)]), alpha=len(images))
        if not self.consistency:
            return task
        # differs: the release draws one coin for the whole batch; flip = "batch" does that
        coins = torch.rand(len(images) if self.flip == "image" else 1, generator=stream).expand(len(images)) < 0.5
        frozen = clip.image_features(images.flipped(coins))  # [B, D]
        return task + self.consistency * (1 - (unit(encoded.image) * frozen).sum(dim=-1).mean())

    def trainable(self) -> tuple[str, ...]:
        """The PromptFormer's names, or the LoRA factors' once the client is in its second phase."""
        return tuple(name for name in super().trainable() if name.startswith("lora") == bool(self.phase))

    def end_epoch(self, epoch: int) -> None:
        """Enter the LoRA phase for good if the mean cross-entropy of a round's first pass is below sigma."""
        # differs: the release compares sigma with the total loss of one batch, consistency included
        total, count = self.cross_entropy_sum.tolist()
        if self.lora is not None and epoch == 0 and total < self.sigma * count:
            self.phase.fill_(1)
        self.cross_entropy_sum.zero_()

    def attention(self, clip: Clip, images: Images, space: LabelSpace) -> Attention | None:
        """Attention of patches to attributes; None where the conditioning leaves out patches or attributes."""
        if self.conditioning != "both":
            return None
        context, patches = self._context(clip, space), clip.image_embeddings(images)[:, clip.leading :]
        return Attention(self.promptformer.weights(patches, context, adapt=self.lora), self._attributes(space))

    def diagnostics(self, clip: Clip, images: Images, space: LabelSpace) -> tuple[Diagnostic, ...]:
        """Those of its attention, how far prompts depend on image and position, and how far features have moved."""
        context = self._context(clip, space)
        prompts = self._prompts(clip, clip.image_embeddings(images)[:, clip.leading :], context)
        features = unit(self._encode(clip, images, context).image)  # [B, D]
        moved = feature_diagnostics(features, clip.image_features(images))
        return (*super().diagnostics(clip, images, space), *prompt_diagnostics(prompts), *moved)

    def _attributes(self, space: LabelSpace) -> tuple[tuple[str, str], ...]:
        """N pairs (text, class), sorted so that order does not matter; no attributes: the template text."""
        bare = [space.attributes.get(name) or (text,) for name, text in zip(space.names, space.texts(), strict=True)]
        groups = bare if self.attribute_text == "bare" else space.attribute_texts()
        return tuple(sorted((text, name) for name, group in zip(space.names, groups, strict=True) for text in group))

    def _context(self, clip: Clip, space: LabelSpace) -> Tensor:
        """The keys and values before their norm, [N, W]."""
        if self.conditioning == "image":
            return self.keys
        return self.project(clip.text_features([text for text, _ in self._attributes(space)]))  # type: ignore[no-any-return]

    def _prompts(self, clip: Clip, patches: Tensor, context: Tensor) -> Tensor:
        queries = self.queries if self.conditioning == "text" else patches  # [m, W] or [B, P, W]
        attended = clip.run_within_budget(lambda x: self.promptformer(x, context, adapt=self.lora), queries)
        pool = F.adaptive_avg_pool1d(attended.new_ones(attended.shape[-2]).diag(), self.n_tokens).T  # [m, P]
        return (pool @ attended).expand(len(patches), -1, -1)  # [B, m, W]

    def _encode(self, clip: Clip, images: Images, context: Tensor) -> Encoded:
        embeddings = clip.image_embeddings(images)  # [B, L + P, W]
        prompts = self._prompts(clip, embeddings[:, clip.leading :], context)  # [B, m, W]
        return clip.encode_image(torch.cat([embeddings, prompts], dim=1))  # [B, L + P + m, W]
