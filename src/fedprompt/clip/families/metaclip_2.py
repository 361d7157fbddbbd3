"""MetaCLIP 2 (Chuang et al., 2025): CLIP's towers with a multilingual tokenizer, read at the end token's id."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import MetaClip2Model

from fedprompt.clip.backbone import Backbone
from fedprompt.clip.families import clip
from fedprompt.clip.prompts import PromptTokenizer, require_vocabulary


def _build(model: Any, tokenizer: Any) -> Backbone:
    text = model.config.text_config
    require_vocabulary(tokenizer, text.vocab_size)
    special = clip.end_token_rows(tokenizer, vocabulary=text.vocab_size, read=text.eos_token_id)
    return clip.causal_pair(model, PromptTokenizer(tokenizer, special, context_length=text.max_position_embeddings))


FAMILY = replace(clip.FAMILY, title="MetaCLIP 2", model=MetaClip2Model, build=_build)
