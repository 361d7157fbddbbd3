"""FedTPG: published sizes, and a context that depends on the set of candidates but not on their order."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.fedtpg import FedTPG
from fedprompt.ops.layers import unit
from fedprompt.seeding import stream
from fedprompt.testing import TinyImages

SPACE = LabelSpace(("dog", "cat", "four_legs", "tree"))


def size(method: nn.Module) -> int:
    return sum(parameter.numel() for parameter in method.parameters())


def test_published_sizes() -> None:
    vit = SimpleNamespace(text_width=512, dim=512)
    assert size(FedTPG(vit)) == 4_206_080
    assert size(FedTPG(vit, self_attention=2)) == 4_206_080 + 2 * 4_203_008
    assert size(FedTPG(vit, n_ctx=16)) == 4_206_080 + 12 * 512


@pytest.mark.parametrize("self_attention", [0, 2])
def test_the_order_of_classes_does_not_matter(tiny_clip: Clip, tiny_images: TinyImages, self_attention: int) -> None:
    method = FedTPG(tiny_clip, self_attention=self_attention, generator=stream(0))
    order, images = (2, 0, 3, 1), Images(tiny_images, (0, 1, 2))
    shuffled = SPACE.take(order)
    assert torch.equal(method.context(tiny_clip, SPACE), method.context(tiny_clip, shuffled))
    logits = method.classifier(tiny_clip, SPACE)(images)
    torch.testing.assert_close(method.classifier(tiny_clip, shuffled)(images), logits[:, order], rtol=1e-5, atol=1e-4)


def test_the_context_follows_the_candidates(tiny_clip: Clip) -> None:
    method = FedTPG(tiny_clip, generator=stream(0))
    assert not torch.allclose(method.context(tiny_clip, SPACE), method.context(tiny_clip, SPACE.take((0, 1))))


def test_the_context_is_the_papers_formula(tiny_clip: Clip) -> None:
    """With PyTorch's own attention, whose parameters ours share."""
    method = FedTPG(tiny_clip, heads=2, generator=stream(0))
    cross, width = method.cross, tiny_clip.text_width
    theirs = nn.MultiheadAttention(width, 2)
    theirs.load_state_dict(
        {
            "in_proj_weight": cross.attention.in_weight,
            "in_proj_bias": cross.attention.in_bias,
            "out_proj.weight": cross.attention.out.weight,
            "out_proj.bias": cross.attention.out.bias,
        }
    )
    names = method.project(tiny_clip.text_features(["dog", "cat", "four legs", "tree"]))
    keys = cross.norm_context(names)
    attended, _ = theirs(cross.norm_queries(method.queries), keys, keys)
    context = attended + cross.feed_forward(attended)
    torch.testing.assert_close(method.context(tiny_clip, SPACE), context)
    prompts = tiny_clip.fill(["<ctx> dog.", "<ctx> cat.", "<ctx> four legs.", "<ctx> tree."], ctx=context)
    images = Images(TinyImages(), (3, 4))
    logits = tiny_clip.scale * tiny_clip.image_features(images) @ unit(tiny_clip.encode_text(prompts)).T
    torch.testing.assert_close(method.classifier(tiny_clip, SPACE)(images), logits, rtol=1e-5, atol=1e-4)
