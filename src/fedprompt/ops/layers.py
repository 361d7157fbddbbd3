"""Layers shared by several methods: initialisers, cross-attention, LoRA; initial values come from a given generator.

Legend: B images, T queries, N context entries, W width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone reads)
from torch import Generator, Tensor, nn

from fedprompt.errors import UserError

Adapt = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]  # (queries, keys, values) -> the same


def unit(x: Tensor) -> Tensor:
    """Scale the last axis to length one; a zero vector stays zero."""
    return F.normalize(x, dim=-1)


def normal(*shape: int, std: float = 0.02, generator: Generator | None) -> nn.Parameter:
    """A parameter drawn from N(0, std^2)."""
    return nn.Parameter(torch.empty(shape).normal_(0.0, std, generator=generator))


def linear(inputs: int, outputs: int, *, generator: Generator | None) -> nn.Linear:
    """A linear layer with PyTorch's default initial distribution, U(-1/sqrt(inputs), 1/sqrt(inputs))."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device=torch.get_default_device())
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=generator)
    return layer


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The layer with its weights and bias set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def convolution(inputs: int, outputs: int, size: int, *, generator: Generator | None) -> nn.Conv2d:
    """A convolution without bias that keeps the spatial size, with PyTorch's default initial distribution."""
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False, device="meta").to_empty(
        device=torch.get_default_device()
    )
    bound = (inputs * size**2) ** -0.5
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    return layer


def recomputed(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Gradient checkpointing: run(x) without keeping activations; computed again for the gradient with respect to x.

    `run` must not depend on anything else that is trained. Unlike this function, `torch.utils.checkpoint` keeps the
    nodes of the graph, small blocks that fragment the freed memory, so that memory grows with every call.
    """
    result: Tensor = _Recomputed.apply(run, x)  # type: ignore[no-untyped-call]
    return result


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        ctx.run = run
        ctx.save_for_backward(x)
        return run(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            result = ctx.run(x)
        return None, torch.autograd.grad(result, x, gradients)[0]


class CrossAttention(nn.Module):
    """Multi-head attention of queries [..., T, W] over one context [N, W] that the whole batch shares.

    Parameters and initial distribution are those of `nn.MultiheadAttention`. Unlike there, the context is projected
    once instead of once per image, which saves most of the work with hundreds of attributes.
    """

    def __init__(self, width: int, heads: int = 4, *, generator: Generator | None = None) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise UserError(f"heads = {heads} does not divide the width {width} of the tower; choose a divisor of it.")
        self.heads = heads
        self.in_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width), generator=generator))
        self.in_bias = nn.Parameter(torch.zeros(3 * width))
        self.out = linear(width, width, generator=generator)
        nn.init.zeros_(self.out.bias)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return [..., T, W] from queries [..., T, W], keys [N, W] and values [N, W]."""
        q, k, v = (self._project(part, x) for part, x in enumerate((queries, keys, values)))
        mixed = F.scaled_dot_product_attention(q, k, v)[0]  # [H, B*T, W/H]
        mixed = mixed.transpose(0, 1).reshape(queries.shape)  # [..., T, W]
        result: Tensor = self.out(mixed)
        return result

    def weights(self, queries: Tensor, keys: Tensor) -> Tensor:
        """The attention weights [H, ..., T, N] of each head; rows sum to one."""
        q, k = self._project(0, queries), self._project(1, keys)
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # [1, H, B*T, N]
        weights = logits.softmax(dim=-1)
        attention: Tensor = weights.reshape(self.heads, *queries.shape[:-1], len(keys))  # [H, ..., T, N]
        return attention

    def _project(self, part: int, x: Tensor) -> Tensor:
        weight, bias = self.in_weight.chunk(3)[part], self.in_bias.chunk(3)[part]
        # The context is the same for every image, so the queries of all images form one long sequence.
        heads = F.linear(x, weight, bias).reshape(1, -1, self.heads, len(weight) // self.heads)  # [1, L, H, W/H]
        return heads.transpose(1, 2)


class LowRank(nn.Module):
    """LoRA (Hu et al., 2022) on the inputs of an attention's projections: x + x A_x B_x, initially the identity.

    An instance is an `Adapt`; 36,864 parameters at W = 768 and rank 8.
    """

    def __init__(self, width: int, rank: int, *, generator: Generator | None = None) -> None:
        super().__init__()
        self.down = normal(3, width, rank, generator=generator)  # A
        self.up = nn.Parameter(torch.zeros(3, rank, width))  # B

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three inputs [..., W], each with its own low-rank change."""
        q, k, v = (x + x @ down @ up for x, down, up in zip((queries, keys, values), self.down, self.up, strict=True))
        return q, k, v


class GatedFeedForward(nn.Module):
    """LayerNorm, Linear W -> 8W split into (u, g), u * gelu(g), Linear 4W -> W; the caller adds the residual."""

    def __init__(self, width: int, *, generator: Generator | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = linear(width, 8 * width, generator=generator)
        self.narrow = linear(4 * width, width, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of x's shape [..., W]."""
        value, gate = self.widen(self.norm(x)).chunk(2, dim=-1)  # 2 x [..., 4W]
        result: Tensor = self.narrow(value * F.gelu(gate))
        return result


class CrossBlock(nn.Module):
    """The prompt generator of FedTPG and FedMVP: queries attend to a context, then a gated feed-forward.

    The queries have no residual connection: the result depends on the context alone. 4,204,032 parameters at W = 512.
    """

    def __init__(self, width: int, heads: int = 4, *, generator: Generator | None = None) -> None:
        super().__init__()
        self.norm_queries = nn.LayerNorm(width)
        self.norm_context = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads, generator=generator)
        self.feed_forward = GatedFeedForward(width, generator=generator)

    def forward(self, queries: Tensor, context: Tensor, *, adapt: Adapt | None = None) -> Tensor:
        """Return [..., T, W] from queries [..., T, W] and a context [N, W]; `adapt` edits the projections' inputs."""
        attended: Tensor = self.attention(*self._inputs(queries, context, adapt))
        result: Tensor = attended + self.feed_forward(attended)
        return result

    def weights(self, queries: Tensor, context: Tensor, *, adapt: Adapt | None = None) -> Tensor:
        """The attention weights of queries to context entries, [H, ..., T, N], for reports."""
        adapted_queries, keys, _ = self._inputs(queries, context, adapt)
        return self.attention.weights(adapted_queries, keys)

    def _inputs(self, queries: Tensor, context: Tensor, adapt: Adapt | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k = self.norm_queries(queries), self.norm_context(context)
        # differs: the FedMVP release leaves the values un-normalised, here the keys serve as values
        return adapt(q, k, k) if adapt is not None else (q, k, k)
