"""Incomplete annotation: labels that annotators missed, on training images of multi-label data only."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprompt.data.annotation import draw_missing, mask_labels
from fedprompt.errors import UserError
from toy_datasets import multi_label, single_label


@settings(max_examples=20)
@given(st.integers(0, 2**40), st.sampled_from(["drop_positive", "unknown"]))
def test_missing_labels_are_those_of_training_images(seed: int, form: str) -> None:
    data = multi_label(seed, rows=300)
    few, many = (draw_missing(data, form=form, rate=rate, seed=seed) for rate in (0.3, 0.9))
    assert not (few & ~many).any(), "a higher rate hides all that a lower one does"
    after, tested = mask_labels(data, many, form=form).targets, data.rows(split="test")
    assert torch.equal(after[tested], data.targets[tested])
    assert torch.equal(after[~many], data.targets[~many])
    if form == "drop_positive":
        assert (data.targets[many] == 1).all() and (after[many] == 0).all()
    else:
        assert (data.targets[many] != -1).all() and (after[many] == -1).all()
    exposed = data.targets[data.rows(split="train")]
    exposed = exposed == 1 if form == "drop_positive" else exposed != -1
    assert abs(many.sum() / exposed.sum() - 0.9) < 0.12
    assert torch.equal(draw_missing(data, form=form, rate=0.3, seed=seed), few)


def test_single_label_data_cannot_lack_labels() -> None:
    with pytest.raises(UserError, match="'toy' has one label per image"):
        draw_missing(single_label(3), form="unknown", rate=0.5, seed=0)
