from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, precision_score, recall_score

from fedprompt.errors import UserError
from fedprompt.ops import metrics

labels = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30)
ranked = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([1, 0, -1])), min_size=1, max_size=25)


@given(labels)
def test_single_label_metrics_equal_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    truth, guess = (torch.tensor(column) for column in zip(*pairs, strict=True))
    assert metrics.accuracy(guess, truth) == pytest.approx(accuracy_score(truth, guess))
    f1 = metrics.macro_f1(metrics.one_hot(guess, 5), metrics.one_hot(truth, 5))
    assert f1 == pytest.approx(f1_score(truth, guess, average="macro"))
    recall = recall_score(truth, guess, labels=range(5), average=None, zero_division=np.nan)
    assert np.allclose(metrics.per_class_accuracy(guess, truth, 5).numpy(), recall, equal_nan=True)


@given(st.integers(1, 20), st.integers(1, 4), st.randoms(use_true_random=False))
def test_multi_label_f1_equals_scikit_learn_per_class(rows: int, classes: int, draw) -> None:
    truth, guess = (torch.tensor([[draw.randrange(2) for _ in range(classes)] for _ in range(rows)]) for _ in range(2))
    occurring = ((truth + guess) > 0).any(dim=0)
    if not occurring.any():
        assert math.isnan(metrics.macro_f1(guess, truth))
        return
    expected = f1_score(truth[:, occurring], guess[:, occurring], average=None if occurring.sum() > 1 else "binary")
    assert metrics.macro_f1(guess, truth) == pytest.approx(np.mean(expected))


def test_unknown_labels_count_nowhere() -> None:
    truth, guess = torch.tensor([[1, 0], [-1, -1], [0, 1]]), torch.tensor([[1, 0], [1, 1], [1, 1]])
    known = [0, 2]
    assert metrics.accuracy(guess, truth) == metrics.accuracy(guess[known], truth[known]) == 0.75
    assert metrics.macro_f1(guess, truth) == metrics.macro_f1(guess[known], truth[known])
    scores = torch.tensor([0.3, 0.9, 0.5])
    assert metrics.average_precision(scores, torch.tensor([1, -1, 0])) == 0.5


@given(ranked)
def test_average_precision_equals_brute_force(pairs: list[tuple[int, int]]) -> None:
    scores, truth = (torch.tensor(column) for column in zip(*pairs, strict=True))
    known = sorted((p for p in pairs if p[1] != -1), key=lambda pair: -pair[0])  # a stable sort
    precisions = [
        sum(label for _, label in known[: rank + 1]) / (rank + 1) for rank in range(len(known)) if known[rank][1]
    ]
    ours = metrics.average_precision(scores, truth)
    assert math.isnan(ours) if not precisions else ours == pytest.approx(np.mean(precisions))


@given(st.permutations(range(12)), st.lists(st.booleans(), min_size=12, max_size=12).filter(any))
def test_average_precision_equals_scikit_learn_without_ties(order: list[int], truth: list[bool]) -> None:
    ours = metrics.average_precision(torch.tensor(order), torch.tensor(truth).int())
    assert ours == pytest.approx(average_precision_score(truth, order))


decided = st.integers(1, 25).flatmap(
    lambda rows: st.lists(
        st.lists(st.tuples(st.sampled_from([1, 0, -1]), st.integers(0, 9)), min_size=3, max_size=3),
        min_size=rows,
        max_size=rows,
    )
)


@given(decided)
def test_decisions_equal_scikit_learn_on_what_is_known(rows: list[list[tuple[int, int]]]) -> None:
    table = torch.tensor(rows)
    truth, scores = table[..., 0], table[..., 1]
    guess = scores >= 5
    known = truth != -1
    flat = truth[known].numpy(), guess[known].int().numpy()
    if flat[0].any() or flat[1].any():
        assert metrics.micro_f1(guess, truth) == pytest.approx(f1_score(*flat))
    else:
        assert math.isnan(metrics.micro_f1(guess, truth))
    asked = [label for label in range(3) if (truth[:, label] == 1).any()]
    pairs = [(truth[known[:, c], c].numpy(), guess[known[:, c], c].int().numpy()) for c in asked]
    if not asked:
        assert math.isnan(metrics.class_f1(guess, truth))
        return
    precision = np.mean([precision_score(*pair, zero_division=0) for pair in pairs])
    recall = np.mean([recall_score(*pair) for pair in pairs])
    expected = 2 * precision * recall / (precision + recall) if precision * recall else 0
    assert metrics.class_f1(guess, truth) == pytest.approx(expected)


@given(decided)
def test_no_threshold_decides_better_than_the_best(rows: list[list[tuple[int, int]]]) -> None:
    table = torch.tensor(rows)
    truth, scores = table[..., 0], table[..., 1]
    best = metrics.best_threshold(scores, truth)
    if not (truth == 1).any():
        assert math.isnan(best)
        return
    reached = metrics.micro_f1(scores >= best, truth)
    others = [metrics.micro_f1(scores >= place, truth) for place in range(10)]
    assert reached == pytest.approx(max(other for other in others if not math.isnan(other)))


def test_without_skill_a_threshold_near_the_number_of_labels_predicts_about_as_many_as_there_are() -> None:
    truth = torch.zeros(8, 4, dtype=torch.int8)
    truth[range(8), [0, 1, 2, 3] * 2] = 1
    scores = torch.linspace(0.9, 0.1, 32)[torch.randperm(32, generator=torch.Generator().manual_seed(0))].view(8, 4)
    decided = {most: scores >= metrics.best_threshold(scores, truth, most=most) for most in (math.inf, 1.25)}
    assert decided[math.inf].sum() > 2 * 8, "the best F1 is that of predicting most of the labels"
    assert 1 <= decided[1.25].sum() <= 1.25 * 8
    within = [metrics.micro_f1(scores >= one, truth) for one in scores.flatten() if (scores >= one).sum() <= 1.25 * 8]
    assert metrics.micro_f1(decided[1.25], truth) == max(within)


def test_the_top_labels_are_taken_from_the_known_ones() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.1, 0.3]])
    targets = torch.tensor([[-1, 0, 1], [1, 0, 0]])
    assert metrics.top_k(scores, targets, 2).tolist() == [[0, 1, 1], [1, 0, 1]]
    assert metrics.top_k(scores, targets, 9).tolist() == [[0, 1, 1], [1, 1, 1]]
    assert metrics.micro_f1(metrics.top_k(scores, targets, 2), targets) == pytest.approx(2 * 2 / (4 + 2))


def test_mean_average_precision_leaves_out_and_counts_classes_without_positives() -> None:
    scores, truth = torch.rand(4, 3), torch.tensor([[1, 0, -1], [1, 0, 0], [1, 0, 0], [1, 0, -1]])
    assert metrics.mean_average_precision(scores, truth) == (1.0, 2)


def test_a_mean_leaves_out_and_counts_what_is_not_known() -> None:
    assert metrics.mean_of_known([1.0, math.nan, 0.5]) == (0.75, 1)
    value, excluded = metrics.mean_of_known([math.nan] * 3)
    assert math.isnan(value) and excluded == 3


def test_harmonic_mean() -> None:
    assert metrics.harmonic_mean(0.8189, 0.7537, 0.7782) == pytest.approx(0.7827, abs=1e-4)  # FedMVP's published row
    assert metrics.harmonic_mean(0.5, 0.0) == 0.0


def test_nothing_to_score_is_nan_not_a_crash() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing = torch.full((3,), -1)
        assert math.isnan(metrics.accuracy(torch.zeros(3), nothing))
        assert math.isnan(metrics.average_precision(torch.zeros(3), nothing))
        assert math.isnan(metrics.class_f1(torch.zeros(3, 2), nothing[:, None].expand(-1, 2)))
        assert math.isnan(metrics.best_threshold(torch.zeros(3), nothing))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "metric",
    [
        lambda scores, targets: metrics.average_precision(scores[:, 0], targets[:, 0]),
        metrics.average_precisions,
        metrics.mean_average_precision,
        metrics.best_threshold,
        lambda scores, targets: metrics.top_k(scores, targets, 1),
    ],
)
def test_scores_that_are_not_finite_have_no_figure(metric, wrong: float) -> None:
    scores = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    scores[1, 0] = wrong
    with pytest.raises(UserError, match=r"1 of \d scores that are not finite"):
        metric(scores, torch.tensor([[1, 0], [0, 1], [1, 1]]))
