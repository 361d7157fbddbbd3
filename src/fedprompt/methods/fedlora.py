"""FedLoRA (LoRA: Hu et al., 2022; CLIP-LoRA: Zanella and Ben Ayed, 2024): low-rank adapters in both towers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fedprompt.clip.model import Clip, Tower, layers_pattern
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import (
    NEUTRAL_TEXT,
    Classifier,
    Method,
    at_least,
    bounded,
    cosine_classifier,
    one_of,
    pair_logits,
    require_packages,
    with_bias,
)
from fedprompt.ops.layers import unit

CHANGED: tuple[Tower, ...] = ("image", "text")


class FedLoRA(Method):
    """W x becomes W x + alpha / rank B A x for the queries and values of every block (LoRA: Hu et al., 2022).

    Prompts are the template's. A [rank, W] is drawn, B [W, rank] starts at zero; both are trained and shared, 245,760
    parameters at ViT-B/16, and averaged separately, not as their product. Image features can be cached only with
    towers = "text". The adapter's folder has a folder `peft` that `peft.PeftModel.from_pretrained` opens.

    rank: rank of the changes.
    alpha: scale of the changes, times the rank.
    towers: which towers change, "both", "image" or "text".
    """

    reads = ("template",)
    needs: ClassVar[tuple[str, ...]] = ("peft",)

    def __init__(
        self,
        clip: Clip,
        *,
        rank: int = 4,
        alpha: int = 8,
        towers: Literal["both", "image", "text"] = "both",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require_packages(FedLoRA)
        bounded(1, rank=rank)
        at_least(1, alpha=alpha)
        one_of(("both", "image", "text"), towers=towers)
        self.rank, self.alpha = rank, alpha
        sizes = {"image": (clip.image_blocks, clip.image_width), "text": (clip.text_blocks, clip.text_width)}
        self.layers = {tower: clip.attention_layers(tower) for tower in CHANGED if towers in ("both", tower)}
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for tower in self.layers:
            blocks, width = sizes[tower]
            drawn = torch.empty(blocks, 2, rank, width)  # of queries and values
            nn.init.uniform_(drawn, -(width**-0.5), width**-0.5, generator=generator)  # as PEFT draws
            self.down[tower] = drawn
            self.up[tower] = torch.zeros(blocks, 2, width, rank)

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Encode the template's texts with the adapted text tower once; images run through the adapted image tower."""
        text, neutral = clip.text_features(space.texts()), clip.text_features((NEUTRAL_TEXT,))
        if "text" in self.down:
            with clip.adapted(self._changes("text")):
                text = unit(clip.encode_text(clip.fill(space.texts())))  # [C, D]
        if "image" not in self.down:
            return cosine_classifier(clip, text, space.kind)

        def classify(images: Images) -> Tensor:
            embeddings = clip.image_embeddings(images)
            with clip.adapted(self._changes("image")):
                encoded = clip.encode_image(embeddings)
                image = unit(encoded.image)
                if space.kind == "single":
                    return with_bias(clip, clip.scale * image @ text.T)  # [B, C]
                tokens = torch.cat([image[:, None], unit(encoded.patches)], dim=1)  # [B, 1 + P, D]
            return pair_logits(tokens, text, neutral)

        return classify

    def exports(self, backbone: str) -> Mapping[str, str | bytes]:
        """The same changes as a PEFT adapter."""
        from peft import LoraConfig  # an optional package, and slow to import

        settings = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=layers_pattern(tuple(self.layers.values())),
            base_model_name_or_path=backbone,
            inference_mode=True,
        )
        tensors = {}
        for name, down, up in self._layers():
            tensors[f"base_model.model.{name}.lora_A.weight"] = down.detach().cpu().contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = up.detach().cpu().contiguous()
        return {
            "peft/adapter_model.safetensors": save(tensors, metadata={"format": "pt"}),
            "peft/adapter_config.json": json.dumps(settings.to_dict(), indent=2, default=list, allow_nan=False) + "\n",  # type: ignore[no-untyped-call]
        }

    def _layers(self, *only: Tower) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Every adapted layer's name in the backbone with its A [rank, W] and B [W, rank]."""
        for tower in only or self.layers:
            for block, factors in enumerate(zip(self.down[tower], self.up[tower], strict=True)):
                yield from zip(self.layers[tower].of(block), *factors, strict=True)

    def _changes(self, tower: Tower) -> dict[str, Callable[[Tensor], Tensor]]:
        scale = self.alpha / self.rank

        def change(down: Tensor, up: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda x: scale * x @ down.T @ up.T

        return {name: change(down, up) for name, down, up in self._layers(tower)}
