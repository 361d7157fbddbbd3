"""Gradients through frozen towers; those too small for float16 by loss scaling (Micikevicius et al., 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SCALE = 2.0**16  # the first factor on a loss; powers of two change no digit
STEP = 16.0  # by which it is lowered while a gradient is not finite


def gradients(loss: Tensor, parameters: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor | None]:
    """The gradient of a scalar loss for each parameter, None where the loss does not depend on it.

    `dtype` is that of the towers. In float16 the gradient is that of 2^16 times the loss, divided by it; when it
    overflows, the backward pass is repeated with a smaller factor. So no batch is left out, and a gradient depends on
    its batch alone: neither on the batches before, nor, with privacy of samples, on other images.
    """
    # differs: usual scalers skip the batch after an overflow, and raise the scale after 2,000 batches without one
    scale = SCALE if dtype == torch.float16 else 1.0
    while scale > 1:
        found = torch.autograd.grad(loss * scale, parameters, allow_unused=True, retain_graph=True)
        if all(gradient is None or bool(gradient.isfinite().all()) for gradient in found):
            return [gradient if gradient is None else gradient / scale for gradient in found]
        scale /= STEP
    return list(torch.autograd.grad(loss, parameters, allow_unused=True))
