from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fedprompt.data.labels import Kind, LabelSpace
from fedprompt.errors import UserError
from fedprompt.federated import evaluate as evaluate_module
from fedprompt.federated.evaluate import evaluate, evaluate_any, predict, score
from fedprompt.ops.metrics import one_hot
from toys import SPACE, Toy, fake_clip, toy_client


class Counting(Toy):
    """Remembers how often a classifier was built and how many pictures it was shown at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[int]] = []

    def classifier(self, clip, space):
        classify, shown = super().classifier(clip, space), []
        self.seen.append(shown)

        def count(images):
            assert not torch.is_grad_enabled() and not self.training
            shown.append(len(images))
            return classify(images)

        return count


def test_the_classifier_is_built_once_and_pictures_come_in_batches() -> None:
    method, examples = Counting(), toy_client(0, examples=7).train
    logits = predict(method, fake_clip(), examples.images, examples.space, batch_size=3)
    assert method.seen == [[3, 3, 1]]
    whole = predict(method, fake_clip(), examples.images, examples.space)
    assert method.seen[1:] == [[7]]
    assert torch.allclose(logits, whole) and logits.shape == (7, 4)


def test_batches_are_smaller_where_there_are_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_module, "MOST_CLASSES", 2)
    method, examples = Counting(), toy_client(0, examples=7).train
    predict(method, fake_clip(), examples.images, examples.space, batch_size=6)
    assert method.seen == [[3, 3, 1]]


def test_a_score_uses_its_own_candidates() -> None:
    examples = toy_client(2, examples=12, classes=(3, 1)).train
    result = evaluate(Toy(), fake_clip(), examples, name="site")
    logits = predict(Toy(), fake_clip(), examples.images, SPACE)[:, [3, 1]]
    right = (logits.argmax(dim=1) == examples.targets).double()
    assert (result.name, result.num_examples, len(result.per_class)) == ("site", 12, 2)
    assert result.figures["accuracy"] == pytest.approx(right.mean().item())
    assert result.per_class[1] == pytest.approx(right[examples.targets == 1].mean().item())


def test_a_perfect_and_a_wrong_answer() -> None:
    targets = torch.tensor([0, 1, 1, 2])
    perfect = score(10.0 * torch.nn.functional.one_hot(targets, 4), targets, SPACE, name="x")
    assert perfect.figures == {"accuracy": 1.0, "macro_f1": 1.0} and perfect.per_class[:3] == (1.0, 1.0, 1.0)
    assert math.isnan(perfect.per_class[3]), "no example, no figure"
    always_zero = score(torch.tensor([[1.0, 0, 0, 0]] * 4), targets, SPACE, name="x")
    assert always_zero.figures["accuracy"] == 0.25
    assert always_zero.figures["macro_f1"] == pytest.approx((2 * 1 / 5) / 3)


def test_many_labels_are_decided_at_one_half_and_ranked() -> None:
    space = LabelSpace(("dog", "cat"), kind="multi")
    logits = torch.tensor([[2.0, -1.0], [-3.0, 0.5], [-0.5, 0.4]])
    result = score(logits, torch.tensor([[1, 0], [0, 1], [1, -1]]), space, name="x")
    assert result.figures["accuracy"] == pytest.approx(4 / 5)
    assert result.per_class == (1.0, 1.0)
    assert result.figures["cf1_macro"] == pytest.approx((2 / 3 + 1) / 2)


class Diverged(Toy):
    """Gives NaN for one class of one image."""

    def classifier(self, clip, space):
        classify = super().classifier(clip, space)

        def broken(images):
            logits = classify(images).clone()
            logits[0, 1] = math.nan
            return logits

        return broken


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_a_site_counts_images_without_finite_logits_as_wrong_answers(kind: Kind) -> None:
    """An error would tell a lying server whether an image is there for which its state overflows."""
    one = toy_client(0, examples=7).train
    targets = one.targets if kind == "single" else one_hot(one.targets, len(one.space))
    examples = replace(one, targets=targets, space=LabelSpace(one.space.names, kind=kind))
    usual = evaluate(Toy(), fake_clip(), examples, name="site", batch_size=7)
    same = evaluate_any(Toy(), fake_clip(), examples, name="site", batch_size=7)
    assert str(same) == str(usual), "NaN included, where all logits are finite"
    found = evaluate_any(Diverged(), fake_clip(), examples, name="site", batch_size=7)
    logits = predict(Toy(), fake_clip(), examples.images, examples.space, batch_size=7)
    if kind == "single":
        right = logits.argmax(dim=1) == targets
        assert found.figures["accuracy"] == float(right[1:].sum()) / 7
    else:
        logits[0] = -1e30
        assert str(found) == str(score(logits, targets, examples.space, name="site"))
    everywhere = evaluate_any(Diverged(), fake_clip(), examples, name="site", batch_size=1)
    assert everywhere.figures["accuracy"] == (0 if kind == "single" else 0.75)


def test_logits_that_are_not_finite_give_no_prediction_and_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = toy_client(0, examples=7).train
    with pytest.raises(
        UserError, match=r"Diverged gives 1 of 28 scores that are not finite \(nan for one\), so no fig"
    ):
        predict(Diverged(), fake_clip(), examples.images, examples.space)
    with pytest.raises(UserError, match="lower the learning rate"):
        evaluate(Diverged(), fake_clip(), examples, name="site")
    monkeypatch.setattr(Diverged, "trainable", lambda self: ())
    with pytest.raises(UserError, match="can be computed from them; check the backbone with: fedprompt doctor"):
        predict(Diverged(), fake_clip(), examples.images, examples.space)
    for space in (SPACE, LabelSpace(SPACE.names, kind="multi")):
        targets = torch.tensor([0, 1]) if space.kind == "single" else torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0]])
        for wrong in (math.nan, math.inf, -math.inf):
            logits = torch.zeros(2, 4)
            logits[1, 2] = wrong
            with pytest.raises(UserError, match="not finite"):
                score(logits, targets, space, name="x")
