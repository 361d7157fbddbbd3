"""Score a method on examples: one classifier for the whole candidate list, pictures in batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Examples
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import Method
from fedprompt.ops import metrics

TOP = 3  # labels of a picture that the top-k figures take as predicted


@dataclass(frozen=True)
class Score:
    """How well one set of examples was recognised, every figure in [0, 1]; what could not be computed is NaN.

    Figures of one label: accuracy, macro_f1. Of many: mean_average_precision, and of decisions at probability 0.5
    accuracy, cf1_macro, cf1_hm, of1, besides the top-k ones and those at other thresholds (`score`).
    """

    name: str
    num_examples: int
    figures: Mapping[str, float]
    per_class: tuple[float, ...]  # accuracy of each class; multi-label: its average precision


@dataclass(frozen=True)
class Decision:
    """When a label of many counts as present, besides at probability 0.5.

    `tuned` is a probability fitted on held-out training pictures; `oracle` also fits one on the scored pictures.
    """

    tuned: float | None = None
    oracle: bool = False


@torch.no_grad()
def predict(method: Method, clip: Clip, images: Images, space: LabelSpace, *, batch_size: int = 128) -> Tensor:
    """Logits [B, C] on the CPU, one column a candidate of `space`."""
    method.eval()
    # Prompts may depend on the candidates as a whole (FedTPG, FedMVP), so the list is never split.
    classify = method.classifier(clip, space)
    batches = torch.split(torch.arange(len(images)), batch_size)
    return torch.cat([classify(images.take(positions)).float().cpu() for positions in batches])  # [B, C]


def evaluate(
    method: Method,
    clip: Clip,
    examples: Examples,
    *,
    name: str,
    batch_size: int = 128,
    decision: Decision | None = None,
) -> Score:
    """Score the method as it stands on examples against their candidate list."""
    logits = predict(method, clip, examples.images, examples.space, batch_size=batch_size)
    return score(logits, examples.targets, examples.space, name=name, decision=decision)


def score(logits: Tensor, targets: Tensor, space: LabelSpace, *, name: str, decision: Decision | None = None) -> Score:
    """Turn logits [N, C] and targets (`Examples.targets`) into a score.

    A tuned threshold adds figures that end in `_tuned`, an oracle's in `_oracle`: those were chosen on what they score.
    """
    classes = len(space)
    if space.kind == "single":
        chosen = logits.argmax(dim=1)
        figures = {
            "accuracy": metrics.accuracy(chosen, targets),
            "macro_f1": metrics.macro_f1(metrics.one_hot(chosen, classes), metrics.one_hot(targets, classes)),
        }
        return Score(name, len(targets), figures, tuple(metrics.per_class_accuracy(chosen, targets, classes).tolist()))
    per_class = metrics.average_precisions(logits, targets)
    precision, without = metrics.mean_of_known(per_class)
    figures = {"mean_average_precision": precision, "classes_without_positive": float(without)}
    figures |= _decided(logits > 0, targets)
    best = metrics.top(logits, targets, TOP)
    figures |= {
        f"top{TOP}_of1": metrics.micro_f1(best, targets),
        f"top{TOP}_cf1_hm": metrics.f1_of_means(best, targets),
    }
    chances, decision = logits.sigmoid(), decision or Decision()
    if decision.tuned is not None:
        figures |= _decided(chances >= decision.tuned, targets, "_tuned")
    if decision.oracle:
        figures |= _decided(chances >= metrics.best_threshold(chances, targets), targets, "_oracle")
    return Score(name, len(targets), figures, per_class)


def _decided(present: Tensor, targets: Tensor, which: str = "") -> dict[str, float]:
    """Figures of decisions [N, C], named for how they were made."""
    measures = {
        "accuracy": metrics.accuracy,
        "cf1_macro": metrics.macro_f1,
        "cf1_hm": metrics.f1_of_means,
        "of1": metrics.micro_f1,
    }
    return {name + which: measure(present, targets) for name, measure in measures.items()}
