"""DualCoOp: its size, the pair head written out, and a pair of equals that cannot decide."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import Kind, LabelSpace
from fedprompt.methods.dualcoop import DualCoOp
from fedprompt.ops.layers import unit
from fedprompt.seeding import stream
from fedprompt.testing import TinyImages

NAMES = ("dog", "cat", "four_legs")
IMAGES = Images(TinyImages(), (0, 3, 4))


def test_published_size() -> None:
    assert sum(parameter.numel() for parameter in DualCoOp(SimpleNamespace(text_width=512)).parameters()) == 16_384


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_equal_contexts_decide_nothing(tiny_clip: Clip, kind: Kind) -> None:
    method = DualCoOp(tiny_clip, generator=stream(0))
    method.absent.data.copy_(method.present)
    logits = method.classifier(tiny_clip, LabelSpace(NAMES, kind))(IMAGES)
    torch.testing.assert_close(logits, torch.zeros(3, 3), rtol=0, atol=1e-4)


def test_it_is_the_pair_head(tiny_clip: Clip) -> None:
    """Regions are weighed by the positive text, for both texts; the logit is that of the pair's softmax."""
    method, texts = DualCoOp(tiny_clip, n_ctx=3, generator=stream(0)), ("<ctx> dog.", "<ctx> cat.", "<ctx> four legs.")
    present, absent = (
        unit(tiny_clip.encode_text(tiny_clip.fill(texts, ctx=context))) for context in (method.present, method.absent)
    )
    tokens = torch.cat([tiny_clip.image_features(IMAGES)[:, None], tiny_clip.patch_features(IMAGES)], dim=1)
    weights = (20 * tokens @ present.T).softmax(dim=1)
    pair = torch.stack([100 * (weights * (tokens @ text.T)).sum(dim=1) for text in (present, absent)])
    probabilities = method.classifier(tiny_clip, LabelSpace(NAMES, "multi"))(IMAGES).sigmoid()
    torch.testing.assert_close(probabilities, pair.softmax(dim=0)[0], rtol=0, atol=1e-4)
