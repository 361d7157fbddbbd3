"""FedRAM (RAM: Tan et al., 2025): value-value patch features with adapters, matched to labels by optimal transport."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import Classifier, Method, at_least, bounded
from fedprompt.ops.layers import normal, unit
from fedprompt.ops.losses import objective, pair_contrastive_loss
from fedprompt.ops.regions import RegionAdapter
from fedprompt.ops.sinkhorn import sinkhorn

ADAPTED = 3  # the last image blocks, whose patches are adapted
MASS_TEMPERATURE, KNOWLEDGE = 0.1, 0.05  # softmax temperature of the patches' masses; teacher's weight in the cost
ENTROPY_TRAINING, ENTROPY = 0.15, 0.10


class FedRAM(Method):
    """p = (softmax <v, t> / tau_g + softmax sum_p T_pc <y_p, t_c> / tau_l) / 2 (Tan et al., CVPR 2025).

    y are patch features by value-value attention, plus what adapters make of the outputs of the last three blocks and
    the class texts; v is the image feature, with learned tokens appended. T transports patches to labels at cost
    1 - softmax_c(s <y_p, t_c>), in training guided by a frozen teacher that knows the true labels; T has no gradient.
    Texts get learned tokens in their last blocks. Multi-label training contrasts all true pairs of a batch with all
    pairs. 13,022,318 parameters at ViT-B/16, two of them temperatures; all shared. p is a distribution over the labels:
    rank by it instead of thresholding at 0.5.

    n_image: tokens appended to the patches in an adapted block.
    n_text: tokens before the words in a prompted text block.
    text_depth: text blocks that are prompted, the last ones; 6 in FedMPT's comparison, 3 in the paper for COCO.
    tau: initial temperature of the local scores; the paper takes 2e-3 for COCO and 2e-4 for NUS.
    """

    reads = ("template",)
    requires = ("text_edits", "value_attention")

    # differs: group norm stands for batch norm, whose running statistics are no parameters to average
    # differs: FedMPT's comparison applies one more sigmoid to p and keeps the temperatures fixed
    # differs: a learned temperature counts as at least a tenth of its start, since a step could make it negative
    # differs: one optimiser for all; the release has AdamW and SGD, warm-up and averaged weights

    def __init__(
        self,
        clip: Clip,
        *,
        n_image: int = 8,
        n_text: int = 4,
        text_depth: int = 6,
        tau: float = 2e-3,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        bounded(1, n_image=n_image, n_text=n_text, text_depth=text_depth)
        at_least(1e-5, tau=tau)
        self.start = torch.tensor([1 / clip.scale, tau])  # tau_g and tau_l
        adapted = min(ADAPTED, clip.image_blocks)
        self.adapters = nn.ModuleList(
            RegionAdapter(clip.image_width, clip.dim, generator=generator) for _ in range(adapted)
        )
        self.image_tokens = normal(adapted, n_image, clip.image_width, generator=generator)
        self.text_tokens = normal(min(text_depth, clip.text_blocks), n_text, clip.text_width, generator=generator)
        self.temperatures = nn.Parameter(self.start.clone())

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Encode the texts once; images run through the adapted blocks and a transport. Logits are those of p."""
        text = self._texts(clip, space)

        def classify(images: Images) -> Tensor:
            views = torch.stack(self._scores(clip, images, text))  # [2, B, C]
            probabilities = views.softmax(dim=-1).mean(dim=0).clamp(1e-9, 1 - 1e-6)  # [B, C]
            return probabilities.log() if space.kind == "single" else probabilities.logit()

        return classify

    def loss(
        self, clip: Clip, images: Images, targets: Tensor, space: LabelSpace, *, stream: torch.Generator
    ) -> Tensor:
        """The global and local scores' cross-entropy: per image for single-label tasks, else over the batch's pairs."""
        present = F.one_hot(targets, len(space)) if space.kind == "single" else targets
        teacher = self._teacher(clip, images, space, present)
        views = self._scores(clip, images, self._texts(clip, space), teacher=teacher)
        compare = objective("single") if space.kind == "single" else pair_contrastive_loss
        return compare(views[0], targets) + compare(views[1], targets)

    def _texts(self, clip: Clip, space: LabelSpace) -> Tensor:
        first, count = clip.text_blocks - len(self.text_tokens), self.text_tokens.shape[1]

        def enter(block: int, tokens: Tensor) -> Tensor:
            if block < first:
                return tokens
            learned = self.text_tokens[block - first].expand(len(tokens), -1, -1)
            rest = tokens[:, 1 if block == first else 1 + count :]  # without those of the block before
            return torch.cat([tokens[:, :1], learned, rest], dim=1)  # [C, T + n, W]

        return clip.encode_text(clip.fill(space.texts()), edit=enter)

    def _views(self, clip: Clip, images: Images, text: Tensor) -> tuple[Tensor, Tensor]:
        """Unit features of the image [B, D] and of its patches [B, P, D], given texts [C, D] that are not normalised.

        Only the adapted blocks run.
        """
        first, seen = clip.image_blocks - len(self.adapters), clip.leading + clip.patches
        patches = [clip.value_tokens(images, first)[:, clip.leading :]]  # [B, P, W], then each block's addition

        def enter(block: int, tokens: Tensor) -> Tensor:
            tokens, place = tokens[:, :seen], block - first
            if place:  # what enters a block is the output of the one before
                patches.append(self.adapters[place - 1](tokens[:, clip.leading :], text))
            patches.append(clip.value_attention(block, tokens)[:, clip.leading :])
            learned = self.image_tokens[place].expand(len(tokens), -1, -1)
            return torch.cat([tokens, learned], dim=1)  # [B, L + P + n, W]

        start = clip.image_tokens(images, first) if first else clip.image_embeddings(images)
        encoded = clip.encode_image(start, start=first, edit=enter)
        patches.append(self.adapters[-1](encoded.output[:, clip.leading : seen], text))
        return unit(encoded.image), unit(clip.project_image(torch.stack(patches).sum(dim=0)))

    def _scores(
        self, clip: Clip, images: Images, text: Tensor, *, teacher: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Global and local scores [B, C]; a teacher [B, P, C] gives log-probabilities of a label at a patch."""
        image, patches = self._views(clip, images, text)
        text = unit(text)
        cosines = patches @ text.T  # [B, P, C]
        cost = 1 - (clip.scale * cosines).softmax(dim=-1)
        cost = cost if teacher is None else cost - KNOWLEDGE * teacher
        masses = (cosines.amax(dim=-1) / MASS_TEMPERATURE).softmax(dim=-1)  # [B, P]
        alike = torch.full_like(cosines[:, 0], 1 / len(text))  # [B, C]
        plan = sinkhorn(cost, masses, alike, entropy=ENTROPY if teacher is None else ENTROPY_TRAINING)
        tau_global, tau_local = self._taus()
        return image @ text.T / tau_global, (plan * cosines).sum(dim=1) / tau_local

    def _taus(self) -> Tensor:
        """The two temperatures [2]; the gradient passes through the bound."""
        least = self.start.to(self.temperatures) / 10
        return self.temperatures + (self.temperatures.clamp(min=least) - self.temperatures).detach()

    def _teacher(self, clip: Clip, images: Images, space: LabelSpace, present: Tensor) -> Tensor:
        values = clip.value_tokens(images, clip.image_blocks)[:, clip.leading :]  # [B, P, W]
        cosines = unit(clip.project_image(values)) @ clip.text_features(space.texts()).T  # [B, P, C]
        knowledge = (20 * (clip.scale * cosines).softmax(dim=-1)).log_softmax(dim=1)
        return torch.where((present == 0)[:, None], knowledge.min(), knowledge)
