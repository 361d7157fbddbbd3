"""FedTCP: with no weight on class tokens it is FedKgCoOp, and its text side is the paper's, block by block."""

from __future__ import annotations

import pytest
import torch

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError
from fedprompt.methods.fedkgcoop import FedKgCoOp
from fedprompt.methods.fedtcp import FedTCP
from fedprompt.ops.layers import unit
from fedprompt.seeding import stream
from fedprompt.testing import TinyImages
from vit import VIT, size

SPACE = LabelSpace(("dog", "cat", "four_legs"))
IMAGES, TARGETS = Images(TinyImages(), (0, 1, 2)), torch.tensor([0, 1, 2])


def test_published_sizes() -> None:
    assert size(FedTCP(VIT)) == 331_904
    assert size(FedTCP(VIT, n_ctx=16, init="")) == 338_048


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_no_weight_on_class_tokens_is_fedkgcoop(tiny_clip: Clip, kind: str) -> None:
    space = LabelSpace(SPACE.names, kind)
    targets = TARGETS if kind == "single" else torch.eye(3, dtype=torch.int8)
    methods = FedTCP(tiny_clip, mix=0.0, generator=stream(0)), FedKgCoOp(tiny_clip)
    losses = [m.loss(tiny_clip, IMAGES, targets, space, stream=stream(0)) for m in methods]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("block", "mix"), [(0, 1.0), (1, 0.3), (8, 1.0)])
def test_class_tokens_enter_at_their_block(tiny_clip: Clip, block: int, mix: float) -> None:
    method = FedTCP(tiny_clip, block=block, mix=mix, n_class=3, generator=stream(0))
    text = tiny_clip.model.text_model
    own = tiny_clip.text_features(["a photo of a dog."])
    for layer in method.generate[:3]:
        own = own * torch.sigmoid(1.702 * own) if layer is method.generate[1] else layer(own)
    own = own.reshape(3, tiny_clip.text_width)
    prompts = tiny_clip.fill(["<ctx> dog."], ctx=method.context)
    states = prompts.embeddings + text.embeddings.position_embedding.weight[: prompts.embeddings.shape[1]]
    for number, layer in enumerate(text.encoder.layers):
        if number == min(block, 2):
            states = states.clone()
            states[:, 1:4] = mix * own + (1 - mix) * states[:, 1:4].clone()
        states = layer(states, None, is_causal=True)
    expected = (
        tiny_clip.scale
        * tiny_clip.image_features(IMAGES)
        @ unit(tiny_clip.model.text_projection(text.final_layer_norm(states[:, -1]))).T
    )
    logits = method.classifier(tiny_clip, LabelSpace(("dog",)))(IMAGES)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-3)


def test_class_tokens_need_a_place(tiny_clip: Clip) -> None:
    with pytest.raises(UserError, match="n_class = 5 is more than n_ctx = 4"):
        FedTCP(tiny_clip, n_class=5)
