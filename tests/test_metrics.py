from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, recall_score

from fedprompt import metrics

labels = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30)
ranked = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([1, 0, -1])), min_size=1, max_size=25)


@settings(deadline=None)
@given(labels)
def test_single_label_metrics_equal_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    truth, guess = (torch.tensor(column) for column in zip(*pairs, strict=True))
    assert metrics.accuracy(guess, truth) == pytest.approx(accuracy_score(truth, guess))
    f1 = metrics.macro_f1(metrics.one_hot(guess, 5), metrics.one_hot(truth, 5))
    assert f1 == pytest.approx(f1_score(truth, guess, average="macro"))
    recall = recall_score(truth, guess, labels=range(5), average=None, zero_division=np.nan)
    assert np.allclose(metrics.per_class_accuracy(guess, truth, 5).numpy(), recall, equal_nan=True)


@settings(deadline=None)
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


@settings(deadline=None)
@given(ranked)
def test_average_precision_equals_brute_force(pairs: list[tuple[int, int]]) -> None:
    scores, truth = (torch.tensor(column) for column in zip(*pairs, strict=True))
    known = sorted((p for p in pairs if p[1] != -1), key=lambda pair: -pair[0])  # a stable sort
    precisions = [
        sum(label for _, label in known[: rank + 1]) / (rank + 1) for rank in range(len(known)) if known[rank][1]
    ]
    ours = metrics.average_precision(scores, truth)
    assert math.isnan(ours) if not precisions else ours == pytest.approx(np.mean(precisions))


@settings(deadline=None)
@given(st.permutations(range(12)), st.lists(st.booleans(), min_size=12, max_size=12).filter(any))
def test_average_precision_equals_scikit_learn_without_ties(order: list[int], truth: list[bool]) -> None:
    ours = metrics.average_precision(torch.tensor(order), torch.tensor(truth).int())
    assert ours == pytest.approx(average_precision_score(truth, order))


def test_mean_average_precision_leaves_out_and_counts_classes_without_positives() -> None:
    scores, truth = torch.rand(4, 3), torch.tensor([[1, 0, -1], [1, 0, 0], [1, 0, 0], [1, 0, -1]])
    assert metrics.mean_average_precision(scores, truth) == (1.0, 2)
    value, excluded = metrics.mean_average_precision(scores, torch.zeros(4, 3))
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
