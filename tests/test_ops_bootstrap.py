"""Bootstrap replicates: coverage of the intervals, pairing, and agreement with plain resampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedprompt.ops.bootstrap import (
    REPLICATES,
    interval,
    replicate_accuracy,
    replicate_binomial,
    replicate_mean_average_precision,
)
from fedprompt.ops.metrics import mean_average_precision


def two_models(generator: np.random.Generator, images: int) -> np.ndarray:
    """Correctness [N, 2] of two models that share most of their mistakes: accuracies 0.7013 and 0.7513."""
    hard = generator.random(images)
    return np.stack([hard < 0.7013, (hard < 0.6513) | (hard > 0.90)], axis=1)


@pytest.mark.parametrize("what", ["figure", "difference"])
def test_intervals_cover_the_truth_in_95_of_100_test_sets(what: str) -> None:
    generator, held, tries = np.random.default_rng(1), 0, 1000
    truth = {"figure": 0.7013, "difference": 0.05}[what]  # no multiple of 1 / images
    for _ in range(tries):
        drawn = replicate_accuracy(two_models(generator, 300), generator=generator)
        low, high = interval(drawn[:, 0] if what == "figure" else drawn[:, 1] - drawn[:, 0])
        held += low <= truth <= high
    assert 0.93 <= held / tries <= 0.97


def test_intervals_of_mean_average_precision_cover_the_truth() -> None:
    generator, held, tries = np.random.default_rng(2), 0, 200

    def images(count: int) -> tuple[np.ndarray, np.ndarray]:
        targets = (generator.random((count, 3)) < 0.4).astype(np.int8)
        return (targets + generator.normal(size=targets.shape)).astype(np.float32), targets

    scores, targets = images(400_000)
    truth, _ = mean_average_precision(torch.from_numpy(scores), torch.from_numpy(targets))
    for _ in range(tries):
        scores, targets = images(200)
        low, high = interval(replicate_mean_average_precision(scores[None], targets, generator=generator)[:, 0])
        held += low <= truth <= high
    assert 0.91 <= held / tries <= 0.99  # 200 tries: 95% give or take two and a half standard errors


def test_a_paired_difference_is_narrower_than_two_separate_intervals() -> None:
    correct = two_models(np.random.default_rng(3), 500)
    drawn = replicate_accuracy(correct, generator=np.random.default_rng(4))
    low, high = interval(drawn[:, 1] - drawn[:, 0])
    apart = replicate_accuracy(correct[:, :1], generator=np.random.default_rng(5))[:, 0]
    wide_low, wide_high = interval(drawn[:, 1] - apart)
    assert high - low < wide_high - wide_low


def test_equal_models_never_differ() -> None:
    correct = np.repeat(np.random.default_rng(6).random((50, 1)) < 0.5, 2, axis=1)
    drawn = replicate_accuracy(correct, generator=np.random.default_rng(7))
    assert interval(drawn[:, 1] - drawn[:, 0]) == (0.0, 0.0)


def test_replicates_of_patterns_agree_with_plain_resampling() -> None:
    correct, generator = two_models(np.random.default_rng(8), 200), np.random.default_rng(9)
    drawn = replicate_accuracy(correct, generator=generator)
    plain = np.stack([correct[generator.integers(200, size=200)].mean(axis=0) for _ in range(REPLICATES)])
    assert np.allclose(drawn.mean(axis=0), plain.mean(axis=0), atol=0.01)
    assert np.allclose(drawn.std(axis=0), plain.std(axis=0), rtol=0.15)


def test_a_replicate_of_mean_average_precision_is_that_of_the_drawn_images() -> None:
    generator = np.random.default_rng(10)
    targets = (generator.random((40, 2)) < 0.5).astype(np.int8)
    targets[::7, 0] = -1  # unknown
    scores = generator.normal(size=(1, 40, 2)).astype(np.float32)
    drawn = replicate_mean_average_precision(scores, targets, generator=np.random.default_rng(11))[:, 0]
    weights = np.random.default_rng(11).multinomial(40, np.full(40, 1 / 40), size=len(drawn))
    for place in range(20):
        rows = np.repeat(np.arange(40), weights[place])
        own = torch.from_numpy(scores[0, rows]), torch.from_numpy(targets[rows])
        # An image drawn twice shares its rank with its copy here, and takes two ranks there.
        assert drawn[place] == pytest.approx(mean_average_precision(*own)[0], abs=0.05)


def test_a_class_without_positives_is_left_out() -> None:
    targets = np.array([[1, 0], [0, 0], [1, 0]], dtype=np.int8)
    scores = np.array([[[2.0, 0.0], [0.0, 1.0], [1.0, 2.0]]], dtype=np.float32)
    drawn = replicate_mean_average_precision(scores, targets, generator=np.random.default_rng(12))
    assert np.nanmin(drawn) == np.nanmax(drawn) == 1.0


def test_a_binomial_replicate_has_the_given_mean() -> None:
    drawn = replicate_binomial(0.8, 500, generator=np.random.default_rng(13))
    assert drawn.mean() == pytest.approx(0.8, abs=0.005)
