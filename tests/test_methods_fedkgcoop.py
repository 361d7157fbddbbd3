"""FedKgCoOp: at the template's words nothing pulls, and without the pull it is PromptFL."""

from __future__ import annotations

import pytest
import torch

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.fedkgcoop import FedKgCoOp
from fedprompt.methods.promptfl import PromptFL
from fedprompt.ops.losses import cosine_distance
from fedprompt.seeding import stream
from fedprompt.testing import TinyImages
from vit import VIT, size

SPACE = LabelSpace(("dog", "cat", "four_legs"))
IMAGES, TARGETS = Images(TinyImages(), (0, 1, 2)), torch.tensor([0, 1, 2])


def loss(clip: Clip, method: torch.nn.Module, **words: str) -> float:
    space = LabelSpace(SPACE.names, **words)
    return method.loss(clip, IMAGES, TARGETS, space, stream=stream(0)).item()


def test_published_size() -> None:
    assert size(FedKgCoOp(VIT)) == 2_048


def test_the_templates_words_are_not_pulled(tiny_clip: Clip) -> None:
    assert loss(tiny_clip, FedKgCoOp(tiny_clip)) == pytest.approx(loss(tiny_clip, PromptFL(tiny_clip)), abs=1e-5)
    assert loss(tiny_clip, FedKgCoOp(tiny_clip), template="the {}") > loss(tiny_clip, PromptFL(tiny_clip)) + 0.1


def test_the_pull_is_a_mean_over_classes(tiny_clip: Clip) -> None:
    options = {"init": "", "generator": stream(0)}
    pulled, free = FedKgCoOp(tiny_clip, pull=3.0, **options), FedKgCoOp(tiny_clip, pull=0.0, **options)
    free.load_state_dict(pulled.state_dict())
    prompts = tiny_clip.fill(["<ctx> dog.", "<ctx> cat.", "<ctx> four legs."], ctx=pulled.context)
    cosines = torch.cosine_similarity(tiny_clip.encode_text(prompts), tiny_clip.text_features(SPACE.texts()))
    expected = loss(tiny_clip, free) + 3 * sum(1 - cosine.item() for cosine in cosines) / 3
    assert loss(tiny_clip, pulled) == pytest.approx(expected, rel=1e-5)


def test_drift_is_zero_only_where_texts_stay() -> None:
    text = torch.nn.functional.normalize(torch.randn(3, 5, generator=stream(1)), dim=-1)
    assert cosine_distance(text, text).item() == pytest.approx(0, abs=1e-6)
    assert cosine_distance(text, -text).item() == pytest.approx(2)
