"""FedPositiveCoOp: equal pairs know nothing, rows belong to names, and the context learns at its own rate."""

from __future__ import annotations

import pytest
import torch

from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Examples
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.federated.client import Client, TrainSettings, train_client
from fedprompt.federated.rounds import initial_state
from fedprompt.methods.base import frozen_tokens
from fedprompt.methods.fedpositivecoop import FedPositiveCoOp
from fedprompt.ops.layers import unit
from fedprompt.ops.scoring import region_scores
from fedprompt.seeding import stream
from fedprompt.testing import TinyImages
from vit import VIT, size

SPACE = LabelSpace(("dog", "cat", "four_legs"), "multi")
IMAGES = Images(TinyImages(), (0, 1, 2))


@pytest.mark.parametrize(
    ("classes", "plain", "residual"), [(20, 18_432, 28_672), (80, 49_152, 90_112), (81, 49_664, 91_136)]
)
def test_published_sizes(classes: int, plain: int, residual: int) -> None:
    names = tuple(map(str, range(classes)))
    assert size(FedPositiveCoOp(VIT, classes=names)) == plain
    assert size(FedPositiveCoOp(VIT, classes=names, residual=True)) == residual


def positive(clip: Clip, method: FedPositiveCoOp) -> torch.Tensor:
    return clip.encode_text(clip.fill(["<ctx> dog.", "<ctx> cat.", "<ctx> four legs."], ctx=method.context))


@pytest.mark.parametrize("residual", [False, True])
def test_equal_pairs_give_one_half(tiny_clip: Clip, residual: bool) -> None:
    method = FedPositiveCoOp(tiny_clip, classes=SPACE.names, residual=residual, generator=stream(0))
    method.negative.data.copy_(positive(tiny_clip, method))
    logits = method.classifier(tiny_clip, SPACE)(IMAGES)
    torch.testing.assert_close(logits.sigmoid(), torch.full((3, 3), 0.5), rtol=0, atol=1e-4)


def test_the_negative_is_read_where_the_positive_looks(tiny_clip: Clip) -> None:
    method = FedPositiveCoOp(tiny_clip, classes=SPACE.names, generator=stream(0))
    tokens, text = frozen_tokens(tiny_clip, IMAGES), unit(positive(tiny_clip, method))
    expected = region_scores(tokens, text) - region_scores(tokens, unit(method.negative), focus=text)
    torch.testing.assert_close(method.classifier(tiny_clip, SPACE)(IMAGES), expected, rtol=1e-5, atol=1e-3)


def test_rows_belong_to_names_and_unknown_classes_take_their_mean(tiny_clip: Clip) -> None:
    method = FedPositiveCoOp(tiny_clip, classes=("cat", "dog"), generator=stream(0))
    logits = method.classifier(tiny_clip, SPACE)(IMAGES)
    for row, name in ((1, "dog"), (0, "cat"), (None, "four_legs")):
        alone = FedPositiveCoOp(tiny_clip, classes=(name,))
        alone.context.data.copy_(method.context)
        alone.negative.data[0] = method.negative.mean(dim=0) if row is None else method.negative[row]
        one = alone.classifier(tiny_clip, LabelSpace((name,), "multi"))(IMAGES)
        torch.testing.assert_close(logits[:, SPACE.names.index(name)], one[:, 0], rtol=1e-5, atol=1e-3)


def test_the_context_learns_at_its_own_rate(tiny_clip: Clip) -> None:
    client = Client(0, "one", Examples(IMAGES, torch.eye(3, dtype=torch.int8), SPACE))
    settings = TrainSettings(rounds=1, momentum=0.0, weight_decay=0.0)
    moves = []
    for rate in (1.0, 0.25):
        method = FedPositiveCoOp(tiny_clip, classes=SPACE.names, context_rate=rate, generator=stream(0))
        start = initial_state(method)[0]
        update = train_client(method, tiny_clip, client, shared=start, personal={}, round_number=1, settings=settings)
        moves.append({name: update.shared[name] - start[name] for name in start})
    torch.testing.assert_close(moves[1]["context"], 0.25 * moves[0]["context"], rtol=1e-3, atol=1e-8)
    assert torch.equal(moves[0]["negative"], moves[1]["negative"]) and moves[0]["negative"].any()
