"""A tiny random backbone of every family, with a tokenizer of its kind: enough to run methods on all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers import (
    BertTokenizer,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    XLMRobertaTokenizer,
)

from fedprompt.clip.families.vit_bert import ViTBertConfig, ViTBertModel
from fedprompt.clip.feature_cache import FeatureCache
from fedprompt.clip.model import Clip
from fedprompt.testing.tiny import WORDS, draw_weights, tiny_parts, tiny_processor

Parts = tuple[PreTrainedModel, Any, Any]  # model, tokenizer, image processor
TEXT: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
VISION: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3}
IMAGE: dict[str, Any] = {"image_size": 32, "patch_size": 8}
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,_<>'{}"
Sizes = Mapping[str, dict[str, Any]]  # overridden keys of "text" and "vision"


def tiny_backbone(family: str, *, cache: FeatureCache | None = None, batch: int = 1) -> Clip:
    """A random backbone of a family, a key of `FAMILIES`; its weights are the same in every process."""
    return Clip(*tiny_family_parts(family), cache=cache, batch=batch)


@functools.cache
def tiny_family_parts(family: str) -> Parts:
    """What `tiny_backbone` is made of: model, tokenizer and image processor."""
    return FAMILIES[family]({})


def metaclip_2(sizes: Sizes) -> Parts:
    """MetaCLIP 2 with a Unigram tokenizer as XLM-R's."""
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = XLMRobertaTokenizer(vocab=[*special, *_unigrams(), ("<mask>", 0.0)])
    text = TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 40, "bos_token_id": 0, "eos_token_id": 2}
    config = MetaClip2Config(
        text_config=text | sizes.get("text", {}),
        vision_config=VISION | IMAGE | sizes.get("vision", {}),
        projection_dim=24,
    )
    return _drawn(MetaClip2Model, config), tokenizer, tiny_processor(config.vision_config.image_size)


def siglip(sizes: Sizes) -> Parts:
    """SigLIP with a Unigram tokenizer that ends a sentence and pads with the same token."""
    backend = Tokenizer(Unigram([("</s>", 0.0), ("<unk>", 0.0), *_unigrams()], unk_id=1))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", pad_token="</s>")
    return _siglip(tokenizer, sizes)


def siglip2(sizes: Sizes) -> Parts:
    """SigLIP 2 of fixed resolution: SigLIP's towers with a BPE tokenizer as Gemma's."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = ["▁", *LETTERS]
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        grown = "▁"
        for letter in word:
            merges[grown, letter] = None
            grown += letter
    tokens = dict.fromkeys([*special, *letters, *(left + right for left, right in merges)])
    tokenizer = Siglip2Tokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=list(merges), padding_side="right"
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    return _siglip(tokenizer, sizes)


def vit_bert(sizes: Sizes) -> Parts:
    """A vision transformer and a BERT, as BiomedCLIP has them."""
    pieces = [*LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]
    words = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces])
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    text = TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 48}
    config = ViTBertConfig(
        text_config=text | sizes.get("text", {}),
        vision_config=VISION | IMAGE | {"hidden_act": "gelu", "layer_norm_eps": 1e-6} | sizes.get("vision", {}),
        projection_dim=24,
        context_length=40,
    )
    return _drawn(ViTBertModel, config), tokenizer, tiny_processor(config.vision_config.image_size)


FAMILIES: Mapping[str, Callable[[Sizes], Parts]] = {
    "clip": lambda _: tiny_parts(),
    "metaclip_2": metaclip_2,
    "siglip": siglip,
    "siglip2": siglip2,
    "vit_bert": vit_bert,
}


def _siglip(tokenizer: Any, sizes: Sizes) -> Parts:
    text = TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 40, "projection_size": 48}
    text |= {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = SiglipConfig(
        text_config=text | sizes.get("text", {}), vision_config=VISION | IMAGE | sizes.get("vision", {})
    )
    side = config.vision_config.image_size
    processor = SiglipImageProcessorPil(size={"height": side, "width": side})
    model = _drawn(SiglipModel, config)
    for block in model.text_model.encoder.layers:  # sharp attention: a mean over the padding would hide the words
        block.self_attn.q_proj.weight.data *= 4
    return model, tokenizer, processor


def _unigrams() -> list[tuple[str, float]]:
    """Pieces of a Unigram model: every word as one token, and letters to spell others."""
    return [*((f"▁{word}", -2.0) for word in WORDS), ("▁", -9.0), *((letter, -10.0) for letter in LETTERS)]


def _drawn(kind: type[PreTrainedModel], sizes: Any) -> PreTrainedModel:
    with torch.random.fork_rng(devices=()):
        model = kind(sizes)
    draw_weights(model)
    return model
