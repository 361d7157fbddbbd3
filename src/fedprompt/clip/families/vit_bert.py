"""A vision transformer with a BERT text tower, as BiomedCLIP (Zhang et al., 2023) has them: BERT is read at its start.

Legend: B images, N texts, T tokens, W width of a tower, D joint width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    BertConfig,
    BertModel,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from fedprompt.clip.backbone import AttentionLayers, Backbone, Capability, Edit, Family
from fedprompt.clip.families.clip import LAYERS, ClassTokenImageTower
from fedprompt.clip.model_towers import ModelTextTower
from fedprompt.clip.prompts import PromptTokenizer, SpecialTokens, require_special_ids
from fedprompt.errors import UserError

LACKS: Mapping[Capability, str] = {
    "text_edits": "its text tower is bidirectional, and such edits are made for causal towers"
}


class ViTBertConfig(PreTrainedConfig):
    """Sizes of the two towers.

    The text projection is "linear", or an "mlp" with one hidden layer, half as wide as both its ends together.
    """

    model_type = "vit_bert"
    sub_configs_defaults = {"vision_config": CLIPVisionConfig, "text_config": BertConfig}  # noqa: RUF012  (as elsewhere)

    text_config: Any = None
    vision_config: Any = None
    projection_dim: int = 512
    text_projection: Literal["mlp", "linear"] = "mlp"
    context_length: int = 256


AutoConfig.register("vit_bert", ViTBertConfig)  # for the tokenizer's loader, which asks for the configuration


class ViTBertModel(PreTrainedModel):
    """transformers' ViT blocks, as CLIP has them, without a first norm and with a bias on patches; and its BERT.

    `text_projection` is Linear, or Linear, GELU, Linear, and `visual_projection` is Linear, all without biases.
    """

    config_class = ViTBertConfig
    base_model_prefix = "vit_bert"
    _supports_sdpa = True

    def __init__(self, sizes: ViTBertConfig) -> None:
        super().__init__(sizes)
        text, vision, dim = sizes.text_config, sizes.vision_config, sizes.projection_dim
        self.vision_model = CLIPVisionModel._from_config(vision)
        self.vision_model.pre_layrnorm = nn.Identity()
        self.vision_model.embeddings.patch_embedding = nn.Conv2d(
            vision.num_channels, vision.hidden_size, vision.patch_size, vision.patch_size
        )
        self.text_model = BertModel._from_config(text, add_pooling_layer=False)
        hidden = (text.hidden_size + dim) // 2
        self.visual_projection = nn.Linear(vision.hidden_size, dim, bias=False)
        if sizes.text_projection == "linear":
            self.text_projection: nn.Module = nn.Linear(text.hidden_size, dim, bias=False)
        else:
            self.text_projection = nn.Sequential(
                nn.Linear(text.hidden_size, hidden, bias=False), nn.GELU(), nn.Linear(hidden, dim, bias=False)
            )
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))
        self.post_init()


@dataclass(frozen=True, eq=False)
class BertTextTower(ModelTextTower):
    """A BERT with learned positions and types, read at its own start token; it does not see padding."""

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The transformer blocks."""
        layers: Sequence[nn.Module] = self.model.text_model.encoder.layer
        return layers

    def encode(self, embeddings: Tensor, end: Tensor, *, edit: Edit | None = None) -> Tensor:
        """[N, D] features of rows whose tokens after `end` [N] are padding."""
        if edit is not None:
            raise UserError(FAMILY.refusal(("text_edits",), "The method"))
        tower = self.model.text_model
        tokens = tower.embeddings(inputs_embeds=embeddings)
        seen = torch.arange(tokens.shape[1], device=tokens.device) <= end[:, None]  # [N, T]
        for block in self.layers:
            tokens = block(tokens, seen[:, None, None])
        features: Tensor = self.model.text_projection(tokens[:, 0])
        return features

    def encode_shared_prefixes(self, embeddings: Tensor, end: Tensor, size: int) -> Tensor:
        """[N, D] features of each text by itself: what follows a prefix changes it in a bidirectional tower."""
        return self.encode(embeddings, end)


def _build(model: Any, tokenizer: Any) -> Backbone:
    text = model.config.text_config
    length = min(model.config.context_length, text.max_position_embeddings)
    special = SpecialTokens.of(tokenizer, vocabulary=text.vocab_size)
    require_special_ids(tokenizer, text)
    own = ((tokenizer.cls_token_id,), (tokenizer.sep_token_id,))
    if (special.before, special.after) != own:
        raise UserError(
            f"The tokenizer puts the ids {[*special.before]} and {[*special.after]} around a sentence, which are not "
            "a class and a separator token, as a BERT reads; use the tokenizer that this backbone was trained with."
        )
    return Backbone(
        BertTextTower(model),
        ClassTokenImageTower(model),
        PromptTokenizer(tokenizer, special, context_length=length),
        dim=model.config.projection_dim,
        scale=float(model.logit_scale.exp()),
    )


FAMILY = Family(
    "ViT and BERT",
    model=ViTBertModel,
    processor=CLIPImageProcessorPil,
    build=_build,
    attention={
        "image": AttentionLayers("vision_model", LAYERS),
        "text": AttentionLayers("text_model", "encoder.layer.{}.attention.self", "query", "value"),
    },
    lacks=LACKS,
)
