"""RAM's adapter (Tan et al., 2025): convolutions over the grid of patches, conditioned on the class texts.

Legend: B images, P patches, S the grid's side, C classes, W tower width, D joint width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor, nn

from fedprompt.errors import UserError
from fedprompt.ops.layers import convolution


class RegionAdapter(nn.Module):
    """Two convolutions of the grid, each followed by attention to the class texts, mixed by a gate per position.

    4,330,532 parameters at W = 768, D = 512, the paper's number: it does not say which layers have biases; here the
    convolutions have none and every norm has scale and shift.
    """

    def __init__(self, width: int, dim: int, *, generator: Generator | None) -> None:
        super().__init__()
        sizes = (1, 3)
        self.branches = nn.ModuleList(convolution(width, dim, size, generator=generator) for size in sizes)
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(32, dim), dim) for _ in sizes)
        self.queries = nn.ModuleList(nn.LayerNorm(dim) for _ in sizes)
        self.keys = nn.LayerNorm(dim)
        self.gate = convolution(2, 2, 3, generator=generator)
        self.out = convolution(dim, width, 1, generator=generator)

    def forward(self, patches: Tensor, text: Tensor) -> Tensor:
        """Return [B, P, W] from patches [B, P, W] and texts [C, D]; UserError unless the patches form a square."""
        side = math.isqrt(patches.shape[1])
        if side**2 != patches.shape[1]:
            raise UserError(f"{patches.shape[1]} patches form no square grid; use a backbone for square images.")
        grid = patches.mT.reshape(len(patches), -1, side, side)  # [B, W, S, S]
        keys = self.keys(text)
        mixed = []
        for convolve, norm, query in zip(self.branches, self.norms, self.queries, strict=True):
            branch = F.gelu(norm(convolve(grid)))  # [B, D, S, S]
            match = query(branch.flatten(2).mT) @ keys.T * keys.shape[1] ** -0.5  # [B, P, C]
            mixed.append(branch + (match.softmax(dim=-1) @ keys).mT.reshape(branch.shape))  # [B, D, S, S]
        stacked = torch.cat(mixed, dim=1)  # [B, 2D, S, S]
        summary = torch.stack([stacked.mean(dim=1), stacked.amax(dim=1)], dim=1)  # [B, 2, S, S]
        gate = self.gate(summary).sigmoid()[:, :, None]  # [B, 2, 1, S, S]
        result: Tensor = self.out(mixed[0] * gate[:, 0] + mixed[1] * gate[:, 1]).flatten(2).mT
        return result
