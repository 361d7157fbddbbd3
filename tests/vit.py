"""The sizes of ViT-B/16 without its weights, to count a method's parameters with."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

VIT = SimpleNamespace(
    image_width=768,
    text_width=512,
    dim=512,
    image_blocks=12,
    text_blocks=12,
    patches=196,
    scale=100.0,
    words=lambda phrase: torch.zeros(len(phrase.split()), 512),
)


def size(method: nn.Module) -> int:
    return sum(parameter.numel() for parameter in method.parameters())


def shared_size(method: nn.Module) -> int:
    personal = method.personal
    return sum(parameter.numel() for name, parameter in method.named_parameters() if not name.startswith(personal))
