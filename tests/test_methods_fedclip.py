"""FedCLIP: a constant gate is zero-shot CLIP, and the released contrast counts images of one class as strangers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError
from fedprompt.methods.fedclip import FedCLIP
from fedprompt.methods.zeroshot import ZeroShot
from fedprompt.seeding import stream
from fedprompt.testing import TinyImages
from vit import VIT, size

SPACE = LabelSpace(("dog", "cat", "four_legs"))
IMAGES = Images(TinyImages(), (0, 1, 2))


def constant(clip: Clip, **options: str) -> FedCLIP:
    method = FedCLIP(clip, generator=stream(0), **options)
    nn.init.zeros_(method.gate[2].weight)
    nn.init.zeros_(method.gate[2].bias)
    return method


def test_published_size() -> None:
    assert size(FedCLIP(VIT)) == 525_312


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_a_constant_gate_is_zero_shot(tiny_clip: Clip, kind: str) -> None:
    space = LabelSpace(SPACE.names, kind)
    ours, theirs = (m.classifier(tiny_clip, space)(IMAGES) for m in (constant(tiny_clip), ZeroShot(tiny_clip)))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-3)


def test_the_gate_reads_the_feature_as_it_is(tiny_clip: Clip) -> None:
    method = FedCLIP(tiny_clip, generator=stream(0))
    raw = tiny_clip.encode_image(tiny_clip.image_embeddings(IMAGES)).image
    assert not torch.allclose(raw.norm(dim=1), torch.ones(3), atol=0.1)
    gated = nn.functional.normalize(method.gate(raw) * raw, dim=1)
    expected = tiny_clip.scale * gated @ tiny_clip.text_features(SPACE.texts()).T
    torch.testing.assert_close(method.classifier(tiny_clip, SPACE)(IMAGES), expected, rtol=1e-5, atol=1e-4)


def test_the_released_contrast(tiny_clip: Clip) -> None:
    method = constant(tiny_clip, objective="in_batch_contrastive")

    def loss(*targets: int, space: LabelSpace = SPACE) -> float:
        images = IMAGES.take(range(len(targets)))
        return method.loss(tiny_clip, images, torch.tensor(targets), space, stream=stream(0)).item()

    assert loss(1) == 0  # a batch of one image teaches nothing
    logits = ZeroShot(tiny_clip).classifier(tiny_clip, SPACE)(IMAGES)[:2, [1, 1]]  # the caption of both is "cat"
    assert loss(1, 1) == pytest.approx((math.log(2) - logits.T.log_softmax(dim=1).diag().mean().item()) / 2, rel=1e-5)
    with pytest.raises(UserError, match="in_batch_contrastive"):
        loss(1, space=LabelSpace(SPACE.names, "multi"))
