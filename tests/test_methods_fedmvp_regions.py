"""FedMVP as in FedMPT's comparison: its size, its token in the tower, its pull towards the templates."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import cosine_logits
from fedprompt.methods.fedmvp_regions import FedMVPRegions
from fedprompt.ops.layers import unit
from fedprompt.ops.losses import objective
from fedprompt.seeding import stream
from fedprompt.testing import TinyImages

SPACE = LabelSpace(("dog", "cat", "four_legs"), "multi")
IMAGES = Images(TinyImages(), (0, 3, 4))
TARGETS = torch.tensor([[1, 0, -1], [0, 1, 1], [0, 0, 1]])


def test_published_size() -> None:
    vit = SimpleNamespace(image_width=768, text_width=512, dim=512)
    assert sum(parameter.numel() for parameter in FedMVPRegions(vit).parameters()) == 1_135_424


def test_a_silent_network_writes_a_token_of_zeros(tiny_clip: Clip) -> None:
    method = FedMVPRegions(tiny_clip, generator=stream(0))
    for parameter in method.write[2].parameters():
        nn.init.zeros_(parameter)
    embeddings = tiny_clip.image_embeddings(IMAGES)
    tokens = torch.cat([embeddings[:, :1], torch.zeros(3, 1, tiny_clip.image_width), embeddings[:, 1:]], dim=1)
    text = unit(tiny_clip.encode_text(tiny_clip.fill(["<c> dog.", "<c> cat.", "<c> four legs."], c=method.ctx)))
    expected = cosine_logits(tiny_clip, tiny_clip.encode_image(tokens), text, "multi")
    torch.testing.assert_close(method.classifier(tiny_clip, SPACE)(IMAGES), expected, rtol=1e-5, atol=2e-4)


def test_the_token_is_attention_of_the_image_over_the_classes(tiny_clip: Clip) -> None:
    """With PyTorch's own attention; only the patches' place in the tower moves by the one token before them."""
    method, longer = FedMVPRegions(tiny_clip, generator=stream(0)), tiny_clip.dim**0.5
    theirs = nn.MultiheadAttention(tiny_clip.dim, 8, batch_first=True)
    theirs.in_proj_weight, theirs.in_proj_bias = method.look.in_weight, method.look.in_bias
    theirs.out_proj.weight, theirs.out_proj.bias = method.look.out.weight, method.look.out.bias
    text = unit(tiny_clip.encode_text(tiny_clip.fill(["<c> dog.", "<c> cat.", "<c> four legs."], c=method.ctx)))
    context = longer * text.expand(3, -1, -1)
    token = method.write(theirs(longer * tiny_clip.image_features(IMAGES)[:, None], context, context)[0])
    embeddings = tiny_clip.image_embeddings(IMAGES)
    encoded = tiny_clip.encode_image(torch.cat([embeddings[:, :1], token, embeddings[:, 1:]], dim=1))
    expected = cosine_logits(tiny_clip, encoded, text, "multi")
    torch.testing.assert_close(method.classifier(tiny_clip, SPACE)(IMAGES), expected, rtol=1e-5, atol=2e-4)


def test_the_loss_holds_texts_near_the_templates(tiny_clip: Clip) -> None:
    def cosine_distance(method: FedMVPRegions) -> float:
        task = objective("multi")(method.classifier(tiny_clip, SPACE)(IMAGES), TARGETS)
        return (method.loss(tiny_clip, IMAGES, TARGETS, SPACE, stream=stream(0)) - task).item()

    method = FedMVPRegions(tiny_clip, anchor=3.0, generator=stream(0))
    text = unit(tiny_clip.encode_text(tiny_clip.fill(["<c> dog.", "<c> cat.", "<c> four legs."], c=method.ctx)))
    cosines = (text * tiny_clip.text_features(SPACE.texts())).sum(dim=1)
    assert abs(cosine_distance(method) - 3 * (1 - cosines.mean().item())) < 1e-4
    method.ctx.data = tiny_clip.token_embeddings("a photo of a")
    assert abs(cosine_distance(method)) < 1e-4
