"""FedVPT: no tokens are zero-shot CLIP, and depth one is shallow VPT written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.fedvpt import FedVPT
from fedprompt.methods.zeroshot import ZeroShot
from fedprompt.ops.layers import unit
from fedprompt.seeding import stream
from fedprompt.testing import TinyImages
from vit import VIT, size

SPACE = LabelSpace(("dog", "cat", "four_legs"))
IMAGES = Images(TinyImages(), (0, 1, 2))


def test_published_sizes() -> None:
    assert [size(FedVPT(VIT, n_tokens=count, depth=1)) for count in (4, 8)] == [3_072, 6_144]
    assert [size(FedVPT(VIT, n_tokens=count)) for count in (4, 8)] == [36_864, 73_728]


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("depth", [1, 3])
def test_no_tokens_are_zero_shot(tiny_clip: Clip, kind: str, depth: int) -> None:
    method, space = FedVPT(tiny_clip, depth=depth), LabelSpace(SPACE.names, kind)
    method.tokens = nn.Parameter(method.tokens.detach()[:, :0])
    ours, theirs = (m.classifier(tiny_clip, space)(IMAGES) for m in (method, ZeroShot(tiny_clip)))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-3)


def features(clip: Clip, tokens: torch.Tensor, depth: int) -> torch.Tensor:
    """Deep VPT block by block on transformers' own modules; tokens [depth, q, W]."""
    vision = clip.model.vision_model
    states = torch.cat([clip.image_embeddings(IMAGES), tokens[0].expand(3, -1, -1)], dim=1)
    states = vision.pre_layrnorm(states)
    for number, block in enumerate(vision.encoder.layers):
        if 0 < number < depth:
            states = torch.cat([states[:, : 1 + clip.patches], tokens[number].expand(3, -1, -1)], dim=1)
        states = block(states, None)
    return unit(clip.model.visual_projection(vision.post_layernorm(states[:, 0])))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_blocks_below_depth_get_their_own_tokens(tiny_clip: Clip, depth: int) -> None:
    method = FedVPT(tiny_clip, n_tokens=2, depth=depth, generator=stream(0))
    nn.init.normal_(method.tokens, generator=stream(1))
    expected = tiny_clip.scale * features(tiny_clip, method.tokens, depth) @ tiny_clip.text_features(SPACE.texts()).T
    logits = method.classifier(tiny_clip, SPACE)(IMAGES)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-3)


def test_deep_of_one_block_is_shallow(tiny_clip: Clip) -> None:
    assert FedVPT(tiny_clip, depth=1).tokens.shape == (1, 4, tiny_clip.image_width)
    assert FedVPT(tiny_clip).tokens.shape[0] == tiny_clip.image_blocks
