"""FedMaPLe: its words at their start are the template's, and every prompted block reads its own words and tokens."""

from __future__ import annotations

import pytest
import torch

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError
from fedprompt.methods.fedmaple import FedMaPLe
from fedprompt.ops.layers import unit
from fedprompt.seeding import stream
from fedprompt.testing import TinyImages
from vit import VIT, size

SPACE = LabelSpace(("dog", "cat", "four_legs"))
IMAGES = Images(TinyImages(), (0, 1, 2))


def test_published_sizes() -> None:
    assert size(FedMaPLe(VIT)) == 3_555_072
    assert size(FedMaPLe(VIT, depth=3)) == 1_185_024


@pytest.mark.parametrize("n_ctx", [1, 2, 3, 4])
def test_a_shallow_start_is_zero_shot(tiny_clip: Clip, n_ctx: int) -> None:
    method = FedMaPLe(tiny_clip, n_ctx=n_ctx, depth=1, generator=stream(0))
    torch.testing.assert_close(method.texts(tiny_clip, SPACE), tiny_clip.text_features(SPACE.texts()))


def test_deeper_couplers_start_alike(tiny_clip: Clip) -> None:
    first, second, third = FedMaPLe(tiny_clip, generator=stream(0)).couplers
    assert torch.equal(second.weight, third.weight) and not torch.equal(first.weight, second.weight)


def test_the_image_side_is_the_papers_formula(tiny_clip: Clip) -> None:
    method = FedMaPLe(tiny_clip, generator=stream(0))
    vision = tiny_clip.model.vision_model
    coupled = [couple(words).expand(3, -1, -1) for couple, words in zip(method.couplers, method.words, strict=True)]
    states = vision.pre_layrnorm(torch.cat([tiny_clip.image_embeddings(IMAGES), coupled[0]], dim=1))
    for number, block in enumerate(vision.encoder.layers):
        states = block(states if not number else torch.cat([states[:, :-2], coupled[number]], dim=1), None)
    image = unit(tiny_clip.model.visual_projection(vision.post_layernorm(states[:, 0])))
    expected = tiny_clip.scale * image @ method.texts(tiny_clip, SPACE).T
    torch.testing.assert_close(method.classifier(tiny_clip, SPACE)(IMAGES), expected, rtol=1e-5, atol=1e-3)


def test_the_text_side_is_the_papers_formula(tiny_clip: Clip) -> None:
    method = FedMaPLe(tiny_clip, generator=stream(0))
    text = tiny_clip.model.text_model
    prompts = tiny_clip.fill(["<ctx> of a dog."], ctx=method.words[0])
    states = prompts.embeddings + text.embeddings.position_embedding.weight[: prompts.embeddings.shape[1]]
    for number, block in enumerate(text.encoder.layers):
        if number:
            states[:, 1:3] = method.words[number]
        states = block(states, None, is_causal=True)
    expected = unit(tiny_clip.model.text_projection(text.final_layer_norm(states[:, -1])))
    torch.testing.assert_close(method.texts(tiny_clip, LabelSpace(("dog",))), expected, rtol=1e-5, atol=1e-5)


def test_more_vectors_than_words_are_refused(tiny_clip: Clip) -> None:
    with pytest.raises(UserError, match="n_ctx = 5 is too large"):
        FedMaPLe(tiny_clip, n_ctx=5)
