"""Losses: cross-entropy for single-label tasks, the asymmetric loss for multi-label ones, and terms of methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def objective(kind: Literal["single", "multi"]) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a task on (logits [B, C], targets): targets are [B] positions, or [B, C] in {1, 0, -1 unknown}."""
    return F.cross_entropy if kind == "single" else asymmetric_loss


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    positive_focus: float = 1.0,
    negative_focus: float = 2.0,
    margin: float = 0.05,
    weight: float = 0.02,
) -> Tensor:
    """Asymmetric loss (Ridnik et al., 2021) as in FedMPT's comparison: `weight` times the sum over batch and classes.

    `logits` [B, C] are logits of sigmoid(z) (of a pair head: z+ - z-), `targets` [B, C] in {1, 0, -1}. Negatives with a
    probability below `margin` cost nothing; the focusing weights carry no gradient.
    """
    # differs: the release drops unknown labels (-1) in its pair version only, here they never count
    present = logits.sigmoid()
    absent = ((-logits).sigmoid() + margin).clamp(max=1.0)  # sigmoid(-z) keeps the digits that 1 - sigmoid(z) loses
    focus = torch.where(targets == 1, (1 - present) ** positive_focus, (1 - absent) ** negative_focus).detach()
    likelihood = torch.where(targets == 1, present, absent).clamp(min=1e-6).log()
    return -weight * (focus * likelihood * (targets != -1)).sum()


def cosine_distance(text: Tensor, anchor: Tensor) -> Tensor:
    """Mean cosine distance, 1 - cosine, of unit class texts [C, D] from their anchors [C, D] (KgCoOp, 2023)."""
    return 1 - (text * anchor).sum(dim=-1).mean()


def pair_contrastive_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean over true pairs of -log softmax over all pairs of the batch (RAM, 2025): scores [B, C], targets {1, 0, -1}.

    Unknown pairs are left out; without a true pair the loss is zero.
    """
    log_probabilities = scores.masked_fill(targets == -1, -torch.inf).flatten().log_softmax(dim=0)  # [B*C]
    pairs = log_probabilities[targets.flatten() == 1]
    return -pairs.sum() / max(len(pairs), 1)
