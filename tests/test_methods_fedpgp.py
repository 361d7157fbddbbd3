"""FedPGP: without a correction it is PromptFL, and the contrast is the paper's two-way softmax."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.federated.rounds import initial_state
from fedprompt.methods.base import prompted_texts
from fedprompt.methods.fedpgp import FedPGP
from fedprompt.methods.promptfl import PromptFL
from fedprompt.seeding import stream
from fedprompt.testing import TinyImages
from vit import VIT, shared_size, size

SPACE = LabelSpace(("dog", "cat", "four_legs"))
IMAGES, TARGETS = Images(TinyImages(), (0, 1, 2)), torch.tensor([0, 1, 2])


def test_published_sizes() -> None:
    assert [size(FedPGP(VIT, rank=rank)) for rank in (4, 8)] == [10_304, 12_416]
    assert shared_size(FedPGP(VIT)) == 8_192


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_no_correction_is_promptfl(tiny_clip: Clip, kind: str) -> None:
    method, plain = FedPGP(tiny_clip, generator=stream(0)), PromptFL(tiny_clip, n_ctx=16, init="")
    nn.init.zeros_(method.left)
    plain.context.data.copy_(method.context)
    space = LabelSpace(SPACE.names, kind)
    ours, theirs = (m.classifier(tiny_clip, space)(IMAGES) for m in (method, plain))
    torch.testing.assert_close(ours, theirs)


def test_the_contrast_prefers_the_template_to_the_client(tiny_clip: Clip) -> None:
    options = {"temperature": 0.7, "generator": stream(0)}
    method = FedPGP(tiny_clip, contrast=2.0, **options)
    free = FedPGP(tiny_clip, contrast=0.0, temperature=0.7)
    free.load_state_dict(method.state_dict())
    text, common, anchor = (
        prompted_texts(tiny_clip, SPACE, method.context + method.left @ method.right),
        prompted_texts(tiny_clip, SPACE, method.context),
        tiny_clip.text_features(SPACE.texts()),
    )
    pairs = torch.stack([(common * anchor).sum(dim=1), (common * text).sum(dim=1)], dim=1) / 0.7  # [C, 2]
    contrast = nn.functional.cross_entropy(pairs, torch.zeros(3, dtype=torch.int64))
    losses = [m.loss(tiny_clip, IMAGES, TARGETS, SPACE, stream=stream(0)) for m in (method, free)]
    torch.testing.assert_close(losses[0], losses[1] + 2 * contrast)


def test_both_factors_are_personal(tiny_clip: Clip) -> None:
    shared, personal = initial_state(FedPGP(tiny_clip, generator=stream(0)))
    assert shared.keys() == {"context"} and personal.keys() == {"left", "right"}
