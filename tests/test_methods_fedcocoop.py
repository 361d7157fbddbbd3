"""FedCoCoOp: without the image's shift it is PromptFL, and groups of images change neither logits nor gradients."""

from __future__ import annotations

import pytest
import torch

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.methods import fedcocoop
from fedprompt.methods.fedcocoop import FedCoCoOp
from fedprompt.methods.promptfl import PromptFL
from fedprompt.ops.layers import unit
from fedprompt.seeding import stream
from fedprompt.testing import TinyImages
from vit import VIT, size

SPACE = LabelSpace(("dog", "cat", "four_legs"))
IMAGES = Images(TinyImages(), (0, 1, 2, 3, 4))


def test_published_size() -> None:
    assert size(FedCoCoOp(VIT)) == 35_360


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_no_shift_is_promptfl(tiny_clip: Clip, kind: str) -> None:
    method, space = FedCoCoOp(tiny_clip, generator=stream(0)), LabelSpace(SPACE.names, kind)
    torch.nn.init.zeros_(method.shift[2].weight)
    torch.nn.init.zeros_(method.shift[2].bias)
    ours, theirs = (m.classifier(tiny_clip, space)(IMAGES) for m in (method, PromptFL(tiny_clip)))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-3)


def test_logits_are_the_papers_formula(tiny_clip: Clip) -> None:
    method = FedCoCoOp(tiny_clip, generator=stream(0))
    logits = method.classifier(tiny_clip, SPACE)(IMAGES)
    for row, feature in enumerate(tiny_clip.image_features(IMAGES)):
        prompts = tiny_clip.fill(
            ["<ctx> dog.", "<ctx> cat.", "<ctx> four legs."], ctx=method.context + method.shift(feature)
        )
        expected = tiny_clip.scale * unit(tiny_clip.encode_text(prompts)) @ feature
        torch.testing.assert_close(logits[row], expected, rtol=1e-5, atol=1e-4)


def test_what_a_step_keeps_does_not_grow_with_its_texts(tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    method, kept = FedCoCoOp(tiny_clip, generator=stream(0)), {}
    for texts_at_once in (256, 3):
        monkeypatch.setattr(fedcocoop, "TEXTS_AT_ONCE", texts_at_once)
        kept[texts_at_once] = 0

        def keep(tensor: torch.Tensor, at_once: int = texts_at_once) -> torch.Tensor:
            kept[at_once] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            method.loss(tiny_clip, IMAGES, torch.tensor([0, 1, 2, 0, 1]), SPACE, stream=stream(0))
    assert kept[3] < kept[256] / 10


def test_groups_change_nothing(tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    method = FedCoCoOp(tiny_clip, generator=stream(0))
    results = []
    for texts_at_once in (256, 7, 1):
        monkeypatch.setattr(fedcocoop, "TEXTS_AT_ONCE", texts_at_once)
        method.zero_grad()
        loss = method.loss(tiny_clip, IMAGES, torch.tensor([0, 1, 2, 0, 1]), SPACE, stream=stream(0))
        loss.backward()
        results.append([loss.detach(), *(parameter.grad.clone() for parameter in method.parameters())])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-6)
