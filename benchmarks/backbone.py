"""A CLIP of ViT-B/16's dimensions with random weights (speed does not depend on them), and its modes of encoding."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from fedprompt.clip.feature_cache import FeatureCache
from fedprompt.clip.model import Clip
from fedprompt.clip.precision import Precision
from fedprompt.clip.prompts import Layout, Prompts
from fedprompt.data.dataset import Examples
from fedprompt.data.images import Images
from fedprompt.data.labels import Kind, LabelSpace
from fedprompt.demo import weights_folder

SIZES = {
    "vit-b-16": (
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        224,
        16,
        77,
    ),
    "vit-l-14": (
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
        224,
        14,
        77,
    ),
    "tiny": (
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        32,
        8,
        40,
    ),
}


class WholeTexts(Clip):
    """Encodes every text from its first token, without shared prefixes."""

    def encode_shared_prefixes(self, prompts: Prompts, size: int) -> Tensor:
        return self.encode_text(prompts)


class AsReleased(WholeTexts):
    """Encodes like published code: no cache, and every text at the full context length."""

    def _text_rows(self, rows: Sequence[Sequence[int]]) -> Tensor:
        filler = [self.tokenizer.special.pad] * self.context_length
        return super()._text_rows([[*row, *filler][: self.context_length] for row in rows])

    def _compute_layout(self, texts: tuple[str, ...], lengths: tuple[tuple[str, int], ...]) -> Layout:
        layout = super()._compute_layout(texts, lengths)
        room = self.context_length - layout.ids.shape[1]
        return Layout(
            torch.nn.functional.pad(layout.ids, (0, room), value=self.tokenizer.special.pad), layout.end, layout.slots
        )


MODES = {
    "ours": lambda parts, **given: Clip(*parts, cache=FeatureCache(memory_bytes=8 << 30), **given),
    "whole texts": lambda parts, **given: WholeTexts(*parts, cache=FeatureCache(memory_bytes=8 << 30), **given),
    "cache off": lambda parts, **given: Clip(*parts, cache=FeatureCache(memory_bytes=0), **given),
    "as released": lambda parts, **given: AsReleased(*parts, cache=FeatureCache(memory_bytes=0), **given),
}


def make_clip(size: str, mode: str, *, batch: int, precision: Precision = "float32") -> Clip:
    """A random backbone of that size in that mode; frozen passes encode `batch` images at once in every mode."""
    vision, pixels, patch, context = SIZES[size]
    tokenizer = CLIPTokenizer.from_pretrained(weights_folder())
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": context, **special}
    if size == "tiny":
        text |= vision
    config = CLIPConfig(text_config=text, vision_config={**vision, "image_size": pixels, "patch_size": patch})
    processor = CLIPImageProcessorPil(size={"shortest_edge": pixels}, crop_size={"height": pixels, "width": pixels})
    return MODES[mode]((CLIPModel(config), tokenizer, processor), batch=batch, precision=precision)


class Grey:
    """A source of images that differ in brightness; decoding costs almost nothing, because it is not measured."""

    fingerprint = "grey"

    def __init__(self, shades: Sequence[int], pixels: int) -> None:
        self.shades, self.pixels = shades, pixels

    def __len__(self) -> int:
        return len(self.shades)

    def open(self, row: int) -> Image.Image:
        return Image.new("RGB", (self.pixels, self.pixels), (self.shades[row] % 256, 40, 90))

    def take(self, rows: Sequence[int]) -> Grey:
        return Grey([self.shades[row] for row in rows], self.pixels)

    def describe(self, row: int) -> str:
        return f"row {row}"


@functools.cache
def make_examples(images: int, classes: int, attributes: int, pixels: int, *, kind: Kind = "single") -> Examples:
    """Examples with attributes per class, a third of them shared; multi-label images have three labels."""
    names = tuple(f"thing number {label}" for label in range(classes))
    phrases = {
        name: tuple(
            f"{'a shared' if part % 3 == 0 else f'its own {label}'} detail {part}" for part in range(attributes)
        )
        for label, name in enumerate(names)
    }
    rows = tuple(range(images))
    targets = torch.arange(images) % classes
    if kind == "multi":
        targets = torch.stack([(targets + shift) % classes for shift in range(3)])  # [3, B]
        targets = torch.nn.functional.one_hot(targets, classes).amax(dim=0)
    return Examples(Images(Grey(rows, pixels), rows), targets, LabelSpace(names, kind, attributes=phrases))
