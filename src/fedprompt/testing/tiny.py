"""A tiny random CLIP and random images in memory: enough to run every code path of a method within milliseconds."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from fedprompt.clip.feature_cache import FeatureCache
from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Dataset
from fedprompt.data.labels import Kind, LabelSpace
from fedprompt.seeding import stream

WORDS = ("a", "an", "the", "photo", "of", "dog", "cat", "car", "horse", "tree", "which", "has", "is", "legs", "four")
BASE = ("dog", "cat", "car", "tree", "the horse", "round tree", "old car", "four legs")
NEW = ("horse", "a_round_tree")
DOMAINS = ("photo", "sketch", "painting")  # clients do not train on the last one
EACH = {"train": 4, "val": 1, "test": 1}  # images per class and domain


def tiny_clip(*, cache: FeatureCache | None = None, batch: int = 1) -> Clip:
    """A random CLIP: 32 px, 16 patches, widths 48 (image), 32 (text) and 24 (joint), 40 tokens, 3 + 3 blocks.

    Its weights are the same in every process, and no two of its widths agree. All of them share the towers.
    """
    return Clip(*tiny_parts(), cache=cache, batch=batch)


@functools.cache
def tiny_parts() -> tuple[CLIPModel, CLIPTokenizer, CLIPImageProcessorPil]:
    """What `tiny_clip` is made of: model, tokenizer and image processor of transformers."""
    tokenizer = tiny_tokenizer()
    return tiny_model(tokenizer), tokenizer, tiny_processor()


def tiny_tokenizer(words: Sequence[str] = WORDS) -> CLIPTokenizer:
    """CLIP's byte-level BPE in which each of `words` is one token and other words are spelt; eos is the last id."""
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
    """CLIP's preprocessing at another image size."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )


def tiny_model(
    tokenizer: CLIPTokenizer,
    *,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
    dim: int = 24,
) -> CLIPModel:
    """A random pair of towers for this tokenizer; `text` and `vision` override keys of transformers' configurations."""
    text_sizes: Mapping[str, Any] = {
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
    vision_sizes: Mapping[str, Any] = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 8,
    }
    config = CLIPConfig(
        text_config={**text_sizes, **(text or {})},
        vision_config={**vision_sizes, **(vision or {})},
        projection_dim=dim,
    )
    model = CLIPModel(config)
    draw_weights(model)
    return model


def draw_weights(model: torch.nn.Module) -> None:
    """Draw every tensor anew from one generator, in place."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("logit_scale"):
                weight.fill_(3.0)
            elif name.endswith(".bias"):  # which transformers draws at random for SigLIP
                weight.copy_(0.1 * noise)
            elif weight.ndim == 1 and not name.endswith("class_embedding"):
                weight.add_(0.1 * noise)
            else:
                weight.copy_(noise / weight[0].numel() ** 0.5)


@dataclass(frozen=True)
class TinyImages:
    """An `ImageSource` of random images of various sizes, drawn when opened.

    `numbers` say which random images the rows are; `opened` lists the rows that were decoded, in order.
    """

    numbers: Sequence[int] = range(12)
    opened: list[int] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """The numbers of the images."""
        return f"random images {list(self.numbers)}"

    def __len__(self) -> int:
        return len(self.numbers)

    def open(self, row: int) -> Image.Image:
        """Draw one image: RGB, 36 pixels high, and the wider the higher its number."""
        self.opened.append(row)
        number = self.numbers[row]
        generator = torch.Generator().manual_seed(number)
        coarse = torch.randint(256, (5, 6 + number % 3, 3), generator=generator, dtype=torch.uint8)
        return Image.fromarray(coarse.numpy()).resize((40 + number, 36), Image.Resampling.BILINEAR)

    def take(self, rows: Sequence[int]) -> TinyImages:
        """A source of these images alone."""
        return TinyImages([self.numbers[row] for row in rows])

    def describe(self, row: int) -> str:
        """The number of the image."""
        return f"random image {self.numbers[row]}"


def tiny_images(count: int = 12) -> TinyImages:
    """Random images in memory; `Images(tiny_images(), rows)` is a batch of them."""
    return TinyImages(range(count))


def tiny_dataset(kind: Kind = "single") -> Dataset:
    """180 random images of 10 classes (8 base, 2 new) in three domains, of which clients do not train on the last.

    Per class and domain 4 images are for training, 1 for validation and 1 for testing. With `kind` "multi" an image has
    two or three further labels at random, and each label is unknown with probability 1/20.
    """
    names = (*BASE, *NEW)
    rows = [
        (label, domain, split)
        for domain in DOMAINS
        for label in range(len(names))
        for split, count in EACH.items()
        for _ in range(count)
    ]
    labels = torch.tensor([label for label, _, _ in rows])
    return Dataset(
        name="tiny",
        source=tiny_images(len(rows)),
        space=LabelSpace(names, kind=kind, attributes={"dog": ("four legs",), "car": ("is round",)}),
        targets=labels if kind == "single" else _several_labels(labels, len(names)),
        splits=tuple(split for _, _, split in rows),
        domains=tuple(domain for _, domain, _ in rows),
        base=tuple(range(len(BASE))),
        new=tuple(range(len(BASE), len(names))),
        unseen_domains=DOMAINS[-1:],
    )


def _several_labels(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """[N, C] int8 targets in {1, 0, -1 unknown} in which these labels [N], and others at random, are present."""
    generator = stream(0, "tiny labels")
    targets = (torch.rand(len(labels), classes, generator=generator) < 0.25).to(torch.int8)
    targets[torch.rand(targets.shape, generator=generator) < 0.05] = -1
    targets[torch.arange(len(labels)), labels] = 1
    return targets


class ForgetfulCache(FeatureCache):
    """A feature cache that loses a random half of its rows before every look-up: no result may change by a bit."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def fetch(self, *request: Any, **options: Any) -> torch.Tensor:
        """Forget, then look up or compute as always."""
        self.forget(0.5, self.generator)
        return super().fetch(*request, **options)
