"""Region scores: multi-label logits from all tokens of an image instead of one global feature."""

from __future__ import annotations

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
