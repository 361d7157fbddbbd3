"""Score a method on examples: one classifier for the whole candidate list, pictures in batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedprompt import metrics
from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Examples
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import Method


@dataclass(frozen=True)
class Score:
    """How well one set of examples was recognised, every figure in [0, 1]; a class without examples has NaN."""

    name: str
    num_examples: int
    accuracy: float  # multi-label: share of known labels decided rightly at probability 0.5
    macro_f1: float
    per_class: tuple[float, ...]  # accuracy of each class; multi-label: its average precision


@torch.no_grad()
def predict(method: Method, clip: Clip, images: Images, space: LabelSpace, *, batch_size: int = 128) -> Tensor:
    """Logits [B, C] on the CPU, one column a candidate of `space`."""
    method.eval()
    # Prompts may depend on the candidates as a whole (FedTPG, FedMVP), so the list is never split.
    classify = method.classifier(clip, space)
    batches = torch.split(torch.arange(len(images)), batch_size)
    return torch.cat([classify(images.take(positions)).float().cpu() for positions in batches])  # [B, C]


def evaluate(method: Method, clip: Clip, examples: Examples, *, name: str, batch_size: int = 128) -> Score:
    """Score the method as it stands on examples against their candidate list."""
    logits = predict(method, clip, examples.images, examples.space, batch_size=batch_size)
    return score(logits, examples.targets, examples.space, name=name)


def score(logits: Tensor, targets: Tensor, space: LabelSpace, *, name: str) -> Score:
    """Turn logits [N, C] and targets (`Examples.targets`) into a score."""
    classes = len(space)
    if space.kind == "single":
        chosen = logits.argmax(dim=1)
        right = metrics.accuracy(chosen, targets)
        per_class = metrics.per_class_accuracy(chosen, targets, classes).tolist()
        f1 = metrics.macro_f1(metrics.one_hot(chosen, classes), metrics.one_hot(targets, classes))
    else:
        decided = logits > 0
        right, f1 = metrics.accuracy(decided, targets), metrics.macro_f1(decided, targets)
        per_class = [metrics.average_precision(logits[:, label], targets[:, label]) for label in range(classes)]
    return Score(name, len(targets), right, f1, tuple(per_class))
