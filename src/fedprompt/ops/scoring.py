"""How pictures are compared with texts when one global feature is not enough."""

from __future__ import annotations

from torch import Tensor


def region_scores(
    patches: Tensor, text: Tensor, *, focus: Tensor | None = None, alpha: float = 20.0, beta: float = 5.0
) -> Tensor:
    """Multi-label scores [B, C] of unit-norm tokens [B, T, D] against unit-norm texts [C, D] or [B, C, D].

    Every class looks where it is top_k (DualCoOp, 2022): softmax over tokens of alpha * cosine, then beta times the
    weighted mean. A pair head scores its negative texts with the positive ones' weights: pass those as `focus`.
    """
    # differs: most of the FedMPT release normalises over the tokens; callers hand in tokens normalised over channels
    scores = alpha * patches @ text.mT  # [B, T, C]
    attention = scores if focus is None else alpha * patches @ focus.mT  # [B, T, C]
    return beta * (attention.softmax(dim=1) * scores).sum(dim=1)
