"""Incomplete annotation of multi-label data: missing labels of training images, simulated from a seed."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from fedprompt.data.dataset import Dataset
from fedprompt.errors import UserError
from fedprompt.seeding import stream

MissingForm = Literal["drop_positive", "unknown"]


def draw_missing(dataset: Dataset, *, form: MissingForm, rate: float, seed: int) -> Tensor:
    """[N, C] mask of missing training labels: each positive label, or each known one, with probability `rate`.

    The labels missing at a lower rate are among those missing at a higher rate. Raises UserError for single-label data.
    """
    if dataset.space.kind != "multi":
        raise UserError(f"Only multi-label data can lack labels, and {dataset.name!r} has one label per image.")
    # differs: the release draws anew whenever a data set is opened, and masks most test sets too
    draws = torch.rand(dataset.targets.shape, generator=stream(seed, "annotation"))
    training = torch.zeros(len(dataset.targets), 1, dtype=torch.bool)
    training[dataset.rows(split="train")] = True
    exposed = dataset.targets == 1 if form == "drop_positive" else dataset.targets != -1
    return (draws < rate) & training & exposed


def mask_labels(dataset: Dataset, missing: Tensor, *, form: MissingForm) -> Dataset:
    """The data set with its missing labels [N, C] set to absent (drop_positive) or to unknown."""
    return replace(dataset, targets=dataset.targets.masked_fill(missing, 0 if form == "drop_positive" else -1))
