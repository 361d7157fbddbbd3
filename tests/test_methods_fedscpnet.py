"""FedSCPNet: with the last weights zero it is PromptFL, and the graph keeps each class's nearest ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import context_templates
from fedprompt.methods.fedscpnet import FedSCPNet
from fedprompt.methods.promptfl import PromptFL
from fedprompt.ops.layers import unit
from fedprompt.seeding import stream
from fedprompt.testing import TinyImages
from vit import VIT, size

SPACE = LabelSpace(("dog", "cat", "four_legs", "tree"))
IMAGES = Images(TinyImages(), (0, 1, 2))


def test_published_size() -> None:
    assert size(FedSCPNet(VIT)) == 2_099_200


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_training_starts_at_promptfl(tiny_clip: Clip, kind: str) -> None:
    space = LabelSpace(SPACE.names, kind)
    methods = FedSCPNet(tiny_clip, generator=stream(0)), PromptFL(tiny_clip)
    torch.testing.assert_close(*(m.classifier(tiny_clip, space)(IMAGES) for m in methods), rtol=1e-5, atol=1e-3)


@given(count=st.integers(2, 7), neighbours=st.integers(2, 9), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_rows_sum_to_one_and_keep_the_nearest(count: int, neighbours: int, seed: int) -> None:
    text = unit(torch.rand(count, 5, generator=stream(seed)))
    graph = FedSCPNet(VIT, neighbours=neighbours, spread=0.3).graph(text)
    torch.testing.assert_close(graph.sum(dim=1), torch.ones(count))
    torch.testing.assert_close(graph.diag(), torch.full((count,), 0.7))
    alike = (text @ text.T).fill_diagonal_(0)
    for row in range(count):
        nearest = alike[row].argsort(descending=True)[: min(neighbours, count) - 1]
        assert set(graph[row].nonzero().flatten().tolist()) <= {row, *nearest.tolist()}
        torch.testing.assert_close(graph[row, nearest], 0.3 * alike[row, nearest] / alike[row, nearest].sum())


def test_texts_are_the_papers_formula(tiny_clip: Clip) -> None:
    method = FedSCPNet(tiny_clip, neighbours=2, generator=stream(0))
    torch.nn.init.normal_(method.weights[2], std=0.3, generator=stream(1))
    hidden = text = tiny_clip.encode_text(tiny_clip.fill(context_templates(SPACE), ctx=method.context))
    assert (text.norm(dim=1) - 1).abs().min() > 0.01  # not scaled to length one before the graph
    graph = method.graph(tiny_clip.text_features(SPACE.texts()))
    for weight in method.weights:
        hidden = graph @ hidden @ weight
        if weight is not method.weights[2]:
            hidden = torch.where(hidden > 0, hidden, 0.2 * hidden)
    torch.testing.assert_close(method.texts(tiny_clip, SPACE), unit(text + hidden), rtol=1e-5, atol=1e-5)


def test_the_papers_scale_stands_for_clips(tiny_clip: Clip) -> None:
    ten, own = (FedSCPNet(tiny_clip, scale=scale, generator=stream(0)) for scale in (10.0, 0.0))
    text = own.texts(tiny_clip, SPACE)
    expected = 10 * tiny_clip.image_features(IMAGES) @ text.T
    torch.testing.assert_close(ten.classifier(tiny_clip, SPACE)(IMAGES), expected)
    many = LabelSpace(SPACE.names, "multi")
    ratio = ten.classifier(tiny_clip, many)(IMAGES) / own.classifier(tiny_clip, many)(IMAGES)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.1))  # region scores are 100 times a cosine


def test_a_lone_class_has_a_text(tiny_clip: Clip) -> None:
    assert FedSCPNet(tiny_clip).classifier(tiny_clip, LabelSpace(("dog",)))(IMAGES).isfinite().all()
