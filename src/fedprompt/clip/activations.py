"""Activation checkpointing (Chen et al., 2016) of blocks: those that do not fit are computed again for the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

Run = Callable[[Tensor], Tensor]


def recomputed_block(run: Run, tokens: Tensor) -> Tensor:
    """run(tokens), whose gradients computed from what `run` gives a second time: to the last bit the same, if it is.

    Unlike `fedprompt.ops.layers.recomputed`, `run` may depend on trained tensors, and what follows the last tensor that
    the gradient needs, such as a block's last product, is not computed again.
    """
    result: Tensor = checkpoint(run, tokens, use_reentrant=False, preserve_rng_state=False)
    return result


def blocks_that_fit(budget: float, *, blocks: int, kept: int, entering: int) -> int:
    """How many of `blocks` blocks may keep their activations in `budget` bytes: the last ones, which are freed first.

    A block's activations take `kept` bytes; of one that is computed again only the tokens `entering` it are kept.
    """
    if blocks * kept <= budget:
        return blocks
    return max(0, min(blocks, int((budget - blocks * entering) // max(1, kept - entering))))


def bytes_kept(run: Run, tokens: Tensor, frozen: Iterable[nn.Parameter]) -> int:
    """The bytes that autograd keeps for the gradient of run(tokens), frozen weights aside, measured on one row."""
    memory: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        memory.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage())
        return tensor

    row = tokens[:1].detach().clone().requires_grad_()
    with torch.enable_grad(), saved_tensors_hooks(note, lambda tensor: tensor):
        run(row)
    weights = {weight.untyped_storage().data_ptr() for weight in frozen}
    return len(tokens) * sum(storage.nbytes() for address, storage in memory.items() if address not in weights)
