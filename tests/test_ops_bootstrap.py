"""Bootstrap replicates: coverage of the intervals, pairing, and agreement with plain resampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedprompt.ops import bootstrap
from fedprompt.ops.bootstrap import (
    REPLICATES,
    chance_average_precision,
    influences,
    interval,
    replicate_accuracy,
    replicate_binomial,
    replicate_mean,
    replicate_mean_average_precision,
)
from fedprompt.ops.metrics import mean_average_precision


def two_models(generator: np.random.Generator, images: int) -> np.ndarray:
    """Correctness [N, 2] of two models that share most of their mistakes: accuracies 0.7013 and 0.7513."""
    hard = generator.random(images)
    return np.stack([hard < 0.7013, (hard < 0.6513) | (hard > 0.90)], axis=1)


def accuracies(correct: np.ndarray, *, seed: int) -> np.ndarray:
    """Replicates [R, M] of models [N, M], drawn at the same images."""
    drawn = [replicate_accuracy(own, generator=np.random.default_rng(seed)) for own in correct.T]
    return np.stack(drawn, axis=1)


@pytest.mark.parametrize("what", ["figure", "difference"])
def test_intervals_cover_the_truth_in_95_of_100_test_sets(what: str) -> None:
    generator, held, tries = np.random.default_rng(1), 0, 1000
    truth = {"figure": 0.7013, "difference": 0.05}[what]  # no multiple of 1 / images
    for number in range(tries):
        drawn = accuracies(two_models(generator, 300), seed=number)
        low, high = interval(drawn[:, 0] if what == "figure" else drawn[:, 1] - drawn[:, 0])
        held += low <= truth <= high
    assert 0.93 <= held / tries <= 0.97


def sigmoid_scores(generator: np.random.Generator, images: int, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores and targets [N, C] of classes that have these shares of the images."""
    targets = (generator.random((images, len(shares))) < shares).astype(np.int8)
    return (targets + generator.normal(size=targets.shape)).astype(np.float32), targets


@pytest.mark.parametrize("shares", [(0.4, 0.4, 0.4), (0.05, 0.06, 0.08, 0.1, 0.3)])
def test_intervals_of_mean_average_precision_cover_its_mean_over_as_large_test_sets(shares: tuple[float, ...]) -> None:
    generator, held, tries = np.random.default_rng(2), 0, 200
    kind = np.array(shares)
    figures = [sigmoid_scores(generator, 100, kind) for _ in range(1000)]
    truth = np.mean([mean_average_precision(*map(torch.from_numpy, one))[0] for one in figures])
    below = 0
    for scores, targets in figures[:tries]:
        low, high = interval(replicate_mean_average_precision(scores, targets, generator=generator))
        held += low <= truth <= high
        below += truth < low
    assert 0.91 <= held / tries <= 0.98  # 200 tries: 95% give or take two and a half standard errors
    assert below / tries <= 0.06, "an interval whose replicates are not centred lies above the truth in 9 of 100"


def test_a_difference_of_mean_average_precisions_is_paired() -> None:
    scores, targets = sigmoid_scores(np.random.default_rng(3), 100, np.array([0.1, 0.3]))
    one, two = (
        replicate_mean_average_precision(own.astype(np.float32), targets, generator=np.random.default_rng(4))
        for own in (scores, scores + 0.1 * targets)
    )
    assert np.std(two - one) < 0.5 * np.std(one)


def test_the_replicates_of_mean_average_precision_are_centred_at_the_figure() -> None:
    scores, targets = sigmoid_scores(np.random.default_rng(5), 60, np.array([0.05, 0.1]))
    drawn = replicate_mean_average_precision(scores, targets, generator=np.random.default_rng(6))
    figure, _ = mean_average_precision(torch.from_numpy(scores), torch.from_numpy(targets))
    assert np.nanmean(drawn) == pytest.approx(figure, abs=0.005)


@pytest.mark.parametrize(("positives", "images"), [(1, 1), (1, 5), (3, 40), (20, 40)])
def test_the_chance_level_of_average_precision_is_that_of_random_orders(positives: int, images: int) -> None:
    generator = np.random.default_rng(7)
    targets = torch.zeros(images, 1)
    targets[:positives] = 1
    orders = torch.from_numpy(generator.random((4000, images, 1)))
    found = np.mean([mean_average_precision(scores, targets)[0] for scores in orders])
    assert chance_average_precision(positives, images) == pytest.approx(found, abs=0.012)


def test_a_paired_difference_is_narrower_than_two_separate_intervals() -> None:
    correct = two_models(np.random.default_rng(3), 500)
    drawn = accuracies(correct, seed=4)
    low, high = interval(drawn[:, 1] - drawn[:, 0])
    wide_low, wide_high = interval(drawn[:, 1] - accuracies(correct, seed=5)[:, 0])
    assert high - low < wide_high - wide_low


def test_equal_models_never_differ() -> None:
    correct = np.repeat(np.random.default_rng(6).random((50, 1)) < 0.5, 2, axis=1)
    drawn = accuracies(correct, seed=7)
    assert interval(drawn[:, 1] - drawn[:, 0]) == (0.0, 0.0)


def test_replicates_agree_with_plain_resampling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "CHUNK", 3000)  # in several parts
    correct, generator = two_models(np.random.default_rng(8), 200)[:, 0], np.random.default_rng(9)
    drawn = replicate_accuracy(correct, generator=generator)
    plain = np.stack([correct[generator.integers(200, size=200)].mean() for _ in range(REPLICATES)])
    assert len(drawn) == REPLICATES
    assert drawn.mean() == pytest.approx(plain.mean(), abs=0.01)
    assert drawn.std() == pytest.approx(plain.std(), rel=0.15)


def test_a_replicate_of_mean_average_precision_is_that_of_the_drawn_images() -> None:
    generator = np.random.default_rng(10)
    targets = (generator.random((40, 2)) < 0.5).astype(np.int8)
    targets[::7, 0] = -1  # unknown
    scores = generator.normal(size=(40, 2)).astype(np.float32)
    drawn = replicate_mean_average_precision(scores, targets, generator=np.random.default_rng(11))
    for place, rows in enumerate(np.random.default_rng(11).integers(40, size=(20, 40))):
        own = torch.from_numpy(scores[rows]), torch.from_numpy(targets[rows])
        # An image drawn twice shares its rank with its copy here, and takes two ranks there; and the mean is moved.
        assert drawn[place] == pytest.approx(mean_average_precision(*own)[0], abs=0.06)


def test_a_class_without_positives_is_left_out() -> None:
    targets = np.array([[1, 0], [0, 0], [1, 0]], dtype=np.int8)
    scores = np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 2.0]], dtype=np.float32)
    drawn = replicate_mean_average_precision(scores, targets, generator=np.random.default_rng(12))
    assert np.nanmin(drawn) == np.nanmax(drawn) == 1.0


def test_a_binomial_replicate_has_the_given_mean() -> None:
    drawn = replicate_binomial(0.8, 500, generator=np.random.default_rng(13))
    assert drawn.mean() == pytest.approx(0.8, abs=0.005)


def seeded() -> np.random.Generator:
    return np.random.default_rng(5)


def test_models_with_the_same_test_images_have_the_replicates_of_one_model() -> None:
    correct = two_models(seeded(), 41).T
    rows = np.arange(100, 141)
    distinct, influence = influences([rows, rows], list(correct))
    assert distinct.tolist() == rows.tolist() and influence.sum() == pytest.approx(0)
    drawn = replicate_mean(float(correct.mean()), influence, generator=seeded())
    expected = np.mean([replicate_accuracy(own, generator=seeded()) for own in correct], axis=0)
    assert np.allclose(drawn, expected)


@pytest.mark.parametrize(("share", "clients"), [(1.0, 8), (0.5, 8), (1 / 8, 8)])
def test_intervals_of_clients_that_share_test_images_cover_the_truth(share: float, clients: int) -> None:
    generator, held, tries, images = np.random.default_rng(3), 0, 400, 160
    for number in range(tries):
        right = generator.random(images) < 0.7013
        order = generator.permutation(images)
        each = round(share * images)
        own = [np.sort(np.roll(order, -each * client)[:each]) for client in range(clients)]
        figure = float(np.mean([right[rows].mean() for rows in own]))
        _, influence = influences(own, [right[rows] for rows in own])
        low, high = interval(replicate_mean(figure, influence, generator=np.random.default_rng(number)))
        held += low <= 0.7013 <= high
    assert 0.92 <= held / tries <= 0.98


VIEWS = 3  # images of a thing, on which a model is right or wrong alike
GROUPED = {"things": 60, "tries": 400}


@pytest.mark.parametrize("what", ["accuracy", "mean"])
def test_intervals_of_groups_cover_the_truth_where_images_of_a_group_agree(what: str) -> None:
    generator, held, apart, truth = np.random.default_rng(7), 0, 0, 0.7013
    groups = np.repeat(np.arange(GROUPED["things"]) * 10, VIEWS)

    def covers(number: int, own: np.ndarray | None, right: np.ndarray) -> bool:
        drawn = np.random.default_rng(number)
        if what == "accuracy":
            found = replicate_accuracy(right, generator=drawn, groups=own)
        else:
            moves = (right - right.mean()) / len(right)
            found = replicate_mean(float(right.mean()), moves, generator=drawn, groups=own)
        low, high = interval(found)
        return low <= truth <= high

    for number in range(GROUPED["tries"]):
        right = np.repeat(generator.random(GROUPED["things"]) < truth, VIEWS)
        held += covers(number, groups, right)
        apart += covers(number, None, right)
    assert 0.92 <= held / GROUPED["tries"] <= 0.98
    assert apart / GROUPED["tries"] < 0.85, "images taken as independent give intervals that are too narrow"


def test_intervals_of_mean_average_precision_are_those_of_the_groups() -> None:
    scores, targets = sigmoid_scores(np.random.default_rng(3), 100, np.array((0.4, 0.4, 0.3)))
    alone = interval(replicate_mean_average_precision(scores, targets, generator=np.random.default_rng(4)))
    thrice = [np.repeat(one, VIEWS, axis=0) for one in (scores, targets)]
    groups = np.repeat(np.arange(100), VIEWS)
    grouped = interval(replicate_mean_average_precision(*thrice, generator=np.random.default_rng(4), groups=groups))
    apart = interval(replicate_mean_average_precision(*thrice, generator=np.random.default_rng(4)))
    assert grouped[1] - grouped[0] == pytest.approx(alone[1] - alone[0], rel=0.05)
    assert apart[1] - apart[0] < 0.7 * (alone[1] - alone[0])


def test_groups_of_one_image_change_nothing() -> None:
    right = np.random.default_rng(8).random(50) < 0.6
    alone, grouped = (
        replicate_accuracy(right, generator=np.random.default_rng(9), groups=groups)
        for groups in (None, np.arange(50) * 7)
    )
    assert np.array_equal(alone, grouped)
