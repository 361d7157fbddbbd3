"""The embedded CLIP: a small transformers folder with every word of the data sets, and its pretraining."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from fedprompt.demo import weights_folder
from fedprompt.demo.emoji import emoji
from fedprompt.demo.pretraining.model import CONTEXT
from fedprompt.demo.scenes import scenes


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(weights_folder(), local_files_only=True)


def test_the_folder_loads_in_transformers_and_is_small():
    folder = weights_folder()
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 8 * 2**20
    model = CLIPModel.from_pretrained(folder, local_files_only=True)
    assert model.dtype == torch.float16
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())


def test_every_sentence_round_trips(tokenizer):
    for space in (emoji(train=0, test=1).space, scenes(train=0, test=1).space):
        sentences = [sentence for own in space.attribute_texts() for sentence in own]
        phrases = [phrase for own in space.attributes.values() for phrase in own]
        for text in [*space.texts(), *sentences, *phrases, *space.conditions]:
            ids = tokenizer(text).input_ids
            assert len(ids) <= CONTEXT
            assert tokenizer.eos_token_id not in ids[:-1], f"{text!r} has an unknown piece"
            assert tokenizer.decode(ids[1:-1]).replace(" ", "") == text.replace(" ", "")
