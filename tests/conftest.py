"""Shared fixtures: a random CLIP of a few thousand weights with its own tokenizer, and pictures that live in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from fedprompt.clip.feature_cache import FeatureCache
from fedprompt.clip.model import Clip

WORDS = ("a", "an", "the", "photo", "of", "dog", "cat", "car", "horse", "tree", "which", "has", "is", "legs", "four")


def tiny_tokenizer(words: Sequence[str] = WORDS) -> CLIPTokenizer:
    """CLIP's own byte-level BPE where each of `words` is one token and other words are spelt; eos is the last id."""
    letters = list(bytes_to_unicode().values())
    vocab = dict.fromkeys([*letters, *(letter + "</w>" for letter in letters)])
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges[pieces[0], pieces[1]] = None
            pieces[:2] = [pieces[0] + pieces[1]]
            vocab[pieces[0]] = None
    ids = {token: number for number, token in enumerate([*vocab, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=ids, merges=list(merges))


def tiny_processor(image_size: int = 32) -> CLIPImageProcessorPil:
    """CLIP's preprocessing at another size."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )


def tiny_model(
    tokenizer: CLIPTokenizer, *, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, dim: int = 24
) -> CLIPModel:
    """A random tower pair in which no two widths agree; every tensor is drawn from one addressed generator."""
    text_sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 40,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision_sizes: dict[str, Any] = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 8,
    }
    config = CLIPConfig(
        text_config=text_sizes | (text or {}), vision_config=vision_sizes | (vision or {}), projection_dim=dim
    )
    model = CLIPModel(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("logit_scale"):
                weight.fill_(3.0)
            elif weight.ndim == 1 and not name.endswith("class_embedding"):
                weight.add_(0.1 * noise)
            else:
                weight.copy_(noise / weight[0].numel() ** 0.5)
    return model


@dataclass(frozen=True)
class Pictures:
    """Random pictures of various sizes, made when opened; `opened` lists the rows that were decoded, in order."""

    count: int = 12
    opened: list[int] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        return f"random pictures {self.count}"

    def __len__(self) -> int:
        return self.count

    def open(self, row: int) -> Image.Image:
        self.opened.append(row)
        generator = torch.Generator().manual_seed(row)
        coarse = torch.randint(256, (5, 6 + row % 3, 3), generator=generator, dtype=torch.uint8)
        return Image.fromarray(coarse.numpy()).resize((40 + row, 36), Image.Resampling.BILINEAR)

    def describe(self, row: int) -> str:
        return f"random picture {row}"


class ForgetfulCache(FeatureCache):
    """A cache that loses a random half of its rows before every look-up."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def fetch(self, *request: Any, **options: Any) -> torch.Tensor:
        self.forget(0.5, self.generator)
        return super().fetch(*request, **options)


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> None:
    """Small tensors are faster on one thread; what has real dimensions uses what there is."""
    torch.set_num_threads(os.cpu_count() or 1 if request.node.get_closest_marker("large") else 1)


@pytest.fixture(scope="session")
def tiny_parts() -> tuple[CLIPModel, CLIPTokenizer, CLIPImageProcessorPil]:
    """What `Clip` is made of, to build one with another cache or batch."""
    tokenizer = tiny_tokenizer()
    return tiny_model(tokenizer), tokenizer, tiny_processor()


@pytest.fixture(scope="session")
def tiny_clip(tiny_parts: tuple[CLIPModel, CLIPTokenizer, CLIPImageProcessorPil]) -> Clip:
    """A random CLIP: 32 px, 16 patches, widths 48 (image), 32 (text) and 24 (joint), 40 tokens, 3 + 3 blocks."""
    return Clip(*tiny_parts)


@pytest.fixture
def tiny_images() -> Pictures:
    """Twelve random pictures in memory; wrap rows of it in `Images`."""
    return Pictures()


@pytest.fixture
def forgetful_cache() -> FeatureCache:
    """A cache that loses a random half of its rows before every look-up: results must not change by a bit."""
    return ForgetfulCache()
