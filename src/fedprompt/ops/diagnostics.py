"""Diagnostics: figures on what the parts of a trained method do, each with a sentence on how to read it.

Legend: B images, P patches, N texts, H heads, m prompt vectors, W width, D joint width, K conditions, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Diagnostic:
    """One figure that is no score, and what its values mean."""

    name: str
    value: float
    meaning: str  # full sentences


def entropy_share(weights: Tensor) -> float:
    """The mean entropy of distributions [..., N] over that of the uniform one, in [0, 1]; NaN for N = 1."""
    entropies = torch.special.entr(weights.double()).sum(dim=-1)  # [...]
    return float(entropies.mean()) / math.log(weights.shape[-1]) if weights.shape[-1] > 1 else math.nan


def relative_spread(vectors: Tensor, dim: int) -> float:
    """How far vectors [..., W] lie from their mean over one dimension, over their length; root mean squares, in [0, 1].

    NaN where all vectors are zero.
    """
    vectors = vectors.double()
    distances = (vectors - vectors.mean(dim=dim, keepdim=True)).square().sum(dim=-1).mean()
    return float((distances / vectors.square().sum(dim=-1).mean()).sqrt())


def attention_diagnostics(weights: Tensor) -> tuple[Diagnostic, ...]:
    """Of attention weights [H, B, P, N] of patches to texts."""
    return (
        Diagnostic(
            "attention entropy",
            entropy_share(weights),
            "Mean entropy of the attention over its maximum. At 1 every patch attends to all texts alike, so prompts "
            "depend neither on patches nor on single texts.",
        ),
    )


def prompt_diagnostics(prompts: Tensor) -> tuple[Diagnostic, ...]:
    """Of prompt vectors [B, m, W]."""
    return (
        Diagnostic(
            "prompt spread over images",
            relative_spread(prompts, 0),
            "Root mean square distance of prompts from their mean over images, over their length. At 0 every image "
            "gets the same prompts.",
        ),
        Diagnostic(
            "prompt spread over positions",
            relative_spread(prompts, 1),
            "The same over the prompts of an image. At 0 they are copies of one vector.",
        ),
    )


def feature_diagnostics(features: Tensor, frozen: Tensor) -> tuple[Diagnostic, ...]:
    """Of unit image features [B, D] and those of the frozen backbone [B, D]."""
    return (
        Diagnostic(
            "cosine to the frozen feature",
            float((features * frozen).double().sum(dim=-1).mean()),
            "Mean cosine of the image feature with that of the frozen CLIP. At 1 training has not moved it.",
        ),
    )


def condition_diagnostics(
    conditions: Sequence[str], gate: Tensor, evidence: Tensor, plans: Tensor
) -> tuple[Diagnostic, ...]:
    """Of gate weights [B, K], evidence [B, K, C] and transport plans [B, K, P, C]."""
    strongest = (gate[..., None] * evidence).double()  # [B, K, C]
    best = strongest.sum(dim=1).argmax(dim=-1)  # [B]
    found = strongest[torch.arange(len(best)), :, best]  # [B, K]
    shares = (found / found.sum(dim=1, keepdim=True)).mean(dim=0)  # [K]
    columns = plans.mT / plans.sum(dim=-2)[..., None]  # [B, K, C, P]
    return (
        Diagnostic(
            "gate entropy",
            entropy_share(gate),
            "Mean entropy of the gate's weights over its maximum. At 1 all conditions count alike for every image, as "
            "without a gate.",
        ),
        Diagnostic(
            "plan entropy",
            entropy_share(columns),
            "Mean entropy of where a label's mass comes from over its maximum. At 1 every patch counts alike for every "
            "label, as without transport.",
        ),
        *(
            Diagnostic(
                f"evidence under {condition}",
                share,
                "Share of the condition in the probability of an image's most probable label, mean over images. "
                f"{1 / len(conditions):.0%} each if conditions do not differ.",
            )
            for condition, share in zip(conditions, shares.tolist(), strict=True)
        ),
    )
