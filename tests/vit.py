"""Counting what methods train at the sizes of ViT-B/16, where the papers count."""

from __future__ import annotations

from torch import nn

from fedprompt.clip.sizes import VIT_B_16 as VIT

__all__ = ["VIT", "shared_size", "size"]


def size(method: nn.Module) -> int:
    return sum(parameter.numel() for parameter in method.parameters())


def shared_size(method: nn.Module) -> int:
    personal = method.personal
    return sum(parameter.numel() for name, parameter in method.named_parameters() if not name.startswith(personal))
