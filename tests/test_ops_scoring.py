from __future__ import annotations

import math

import pytest
import torch

from fedprompt.ops.layers import unit
from fedprompt.ops.scoring import region_scores
from fedprompt.seeding import stream


def draw(*shape: int, address: str) -> torch.Tensor:
    return unit(torch.randn(shape, generator=stream(0, address), dtype=torch.float64))


PATCHES, TEXT, NEGATIVE = draw(2, 5, 8, address="patches"), draw(3, 8, address="text"), draw(3, 8, address="negative")


def by_hand(values: list[float], attention: list[float]) -> float:
    weights = [math.exp(20 * x) for x in attention]
    return 5 * sum(w * 20 * value for w, value in zip(weights, values, strict=True)) / sum(weights)


def test_scores_equal_their_formula() -> None:
    ours, pair = region_scores(PATCHES, TEXT), region_scores(PATCHES, NEGATIVE, focus=TEXT)
    for image in range(2):
        for label in range(3):
            present, absent = ((PATCHES[image] @ text[label]).tolist() for text in (TEXT, NEGATIVE))
            assert ours[image, label].item() == pytest.approx(by_hand(present, present))
            assert pair[image, label].item() == pytest.approx(by_hand(absent, present))


def test_one_token_scores_a_hundred_cosines() -> None:
    assert torch.allclose(region_scores(PATCHES[:, :1], TEXT), 100 * PATCHES[:, 0] @ TEXT.T)


def test_a_pair_of_equal_texts_is_undecided() -> None:
    assert torch.equal(region_scores(PATCHES, TEXT), region_scores(PATCHES, TEXT, focus=TEXT))


def test_tokens_have_no_order_and_classes_no_neighbours() -> None:
    assert torch.allclose(region_scores(PATCHES.flip(1), TEXT), region_scores(PATCHES, TEXT))
    assert torch.allclose(region_scores(PATCHES, TEXT[[2, 0]]), region_scores(PATCHES, TEXT)[:, [2, 0]])
