"""Scores of an image's regions: multi-label logits from all tokens, and cosines of patches with low-rank changes."""

from __future__ import annotations

import torch
from torch import Tensor

ALPHA, BETA = 20.0, 5.0  # sharpness of the attention to tokens, and the factor on what it reads
REGION_SCALE = ALPHA * BETA  # the factor of a region score on cosines, that of CLIP's logits


def region_scores(
    patches: Tensor, text: Tensor, *, focus: Tensor | None = None, alpha: float = ALPHA, beta: float = BETA
) -> Tensor:
    """Multi-label scores [B, C] of unit-norm tokens [B, T, D] against unit-norm texts [C, D] or [B, C, D].

    Each class weights tokens by their similarity (DualCoOp, 2022): softmax over tokens of alpha * cosine, then beta
    times the weighted mean. A pair head weights tokens for its negative texts by the positive ones: pass those as
    `focus`.
    """
    # differs: most of the FedMPT release normalises over the tokens; here tokens are normalised over channels
    scores = alpha * patches @ text.mT  # [B, T, C]
    attention = scores if focus is None else alpha * patches @ focus.mT  # [B, T, C]
    return beta * (attention.softmax(dim=1) * scores).sum(dim=1)


def adapted_cosines(patches: Tensor, text: Tensor, down: Tensor | None, up: Tensor | None) -> Tensor:
    """Cosines [B, K, P, C] of unit texts [K, C, D] with unit patches [B, P, D] after K low-rank changes of these.

    Change k is x + x down_k up_k with down [K, D, R] and up [K, R, D]; None leaves the patches as they are. The changed
    patches [B, K, P, D] are large and are not computed.
    """
    products = torch.einsum("bpd,kcd->bkpc", patches, text)  # [B, K, P, C]
    if down is None or up is None:
        return products
    low = torch.einsum("bpd,kdr->bkpr", patches, down)  # [B, K, P, R]
    high = torch.einsum("bpd,krd->bkpr", patches, up)  # [B, K, P, R]
    squares = 1 + (low * (2 * high + low @ (up @ up.mT))).sum(dim=-1, keepdim=True)  # [B, K, P, 1]
    return (products + low @ (up @ text.mT)) * squares.clamp(min=1e-6).rsqrt()
