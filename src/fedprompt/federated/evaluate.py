"""The evaluator: scores a method on examples, with one classifier for all candidate classes and images in batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedprompt.arguments import require
from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Examples
from fedprompt.data.images import Images
from fedprompt.data.labels import Kind, LabelSpace
from fedprompt.errors import plural
from fedprompt.federated.client import Client
from fedprompt.methods.base import Method, open_classifier, require_logits
from fedprompt.ops import metrics

METRICS: Mapping[Kind, str] = {"single": "accuracy", "multi": "mean_average_precision"}  # headline metric per task
TOP = 3  # labels per image that the top-k figures count as predicted
MOST_CLASSES = 1024  # that are scored with a whole batch of images


@dataclass(frozen=True)
class Score:
    """The figures of one set of examples, each in [0, 1] or NaN where undefined.

    `correct` [N] says which images are classified correctly (single-label). It stays in the process that scores.

    Single-label: accuracy, macro_f1. Multi-label: mean_average_precision; accuracy, cf1_macro, cf1_hm and of1 of the
    decisions at probability 0.5; and those of the top-k decisions and of other thresholds (see `score`).
    """

    name: str
    num_examples: int
    figures: Mapping[str, float]
    per_class: tuple[float, ...]  # accuracy per class; multi-label: average precision per class
    correct: Tensor | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} {value:.3f}" for name, value in self.figures.items())
        return f"Score {self.name!r} of {plural(self.num_examples, 'image')}: {figures}"


@dataclass(frozen=True)
class Decision:
    """Further thresholds for multi-label decisions, besides probability 0.5.

    `tuned` is a threshold fitted on training images, in place of which `thresholds` [C] has one per class;
    `oracle` adds one fitted on the scored images.
    """

    tuned: float | None = None
    oracle: bool = False
    thresholds: Tensor | None = None


def predict(method: Method, clip: Clip, images: Images, space: LabelSpace, *, batch_size: int = 128) -> Tensor:
    """Logits [B, C] on the CPU, one column per class of `space`; UserError if one is not finite.

    Of more than 1,024 classes, batches are smaller than `batch_size`, so that memory does not grow with the classes.
    """
    logits = compute_logits(method, clip, images, space, batch_size=batch_size)
    metrics.require_finite(logits, type(method).__name__, trained=bool(method.trainable()))
    return logits


def images_per_batch(batch_size: int, space: LabelSpace) -> int:
    """The size of the batches in which `predict` takes images."""
    return max(1, min(batch_size, batch_size * MOST_CLASSES // len(space)))


@torch.no_grad()
def compute_logits(method: Method, clip: Clip, images: Images, space: LabelSpace, *, batch_size: int) -> Tensor:
    """Logits [B, C] on the CPU, finite or not."""
    method.eval()
    batch_size = images_per_batch(batch_size, space)
    # Prompts may depend on the candidates as a whole (FedTPG, FedMVP), so the list is never split.
    classify = open_classifier(method, clip, space)
    batches = torch.split(torch.arange(len(images)), batch_size)
    taken = (images.take(positions) for positions in batches)
    return torch.cat([require_logits(classify(batch), method, batch, space).float().cpu() for batch in taken])


def evaluate(
    method: Method,
    clip: Clip,
    examples: Examples,
    *,
    name: str,
    batch_size: int = 128,
    decision: Decision | None = None,
) -> Score:
    """Score the method in its current state on N examples, against their C candidate classes.

    `name` is that of the score. Images are classified `batch_size` at a time. The figures are in [0, 1]: those of
    `Score`, and with `decision` those of further thresholds. The headline figure is accuracy (single-label) or mean
    average precision over the labels that have a positive image (multi-label; Everingham et al., 2010). The texts of
    classes are encoded once, against all C candidates together, as in FedTPG and FedMVP.

    Raises UserError for arguments of another type, logits that are not [N, C] or not finite, and images that cannot be
    read.
    """
    require(method, Method, "method", "make one from its class, such as PromptFL(clip, generator=...)")
    require(clip, Clip, "clip", "open one with load_clip(...)")
    require(examples, Examples, "examples", "take them from a data set, data.examples(data.rows(split='test'))")
    logits = predict(method, clip, examples.images, examples.space, batch_size=batch_size)
    return score(logits, examples.targets, examples.space, name=name, decision=decision)


def evaluate_any(method: Method, clip: Clip, examples: Examples, *, name: str, batch_size: int = 128) -> Score:
    """As `evaluate`, but an image whose logits are not all finite counts as a wrong answer.

    A method may be made so that its logits overflow for one certain image; an error would tell that it is there.
    """
    logits = compute_logits(method, clip, examples.images, examples.space, batch_size=batch_size)
    return score(_wrong_unless_finite(logits, examples.targets), examples.targets, examples.space, name=name)


def _wrong_unless_finite(logits: Tensor, targets: Tensor) -> Tensor:
    """The logits [N, C] with other rows for those that are not finite: no label is present, or any but the target."""
    finite = logits.isfinite().all(dim=1, keepdim=True)
    if targets.ndim > 1:
        wrong = torch.full_like(logits, torch.finfo(logits.dtype).min)
    else:
        wrong = -metrics.one_hot(targets, logits.shape[1]).to(logits.dtype)
    return torch.where(finite, logits, wrong)


def validate(method: Method, clip: Clip, client: Client, *, batch_size: int = 128) -> Score:
    """Score the method on a client's held-out images: figures over the base classes, and `base` and `local` headlines.

    `client.held_out` says over which candidates. As by `evaluate_any`, logits that are not finite are wrong answers.
    """
    figures: dict[str, float] = {}
    known: dict[int, Mapping[str, float]] = {}  # a client with all base classes has the same examples twice
    for column, examples in client.held_out.items():
        if id(examples) not in known:
            scored = evaluate_any(method, clip, examples, name=client.name, batch_size=batch_size)
            known[id(examples)] = scored.figures
        found = known[id(examples)]
        figures |= {**(found if column == "base" else {}), column: found[METRICS[examples.space.kind]]}
    return Score(client.name, max(map(len, client.held_out.values()), default=0), figures, ())


def score(logits: Tensor, targets: Tensor, space: LabelSpace, *, name: str, decision: Decision | None = None) -> Score:
    """The score of logits [N, C] against targets (`Examples.targets`); UserError for logits that are not finite.

    A tuned threshold adds figures that end in `_tuned`; an oracle threshold, chosen on the scored images, `_oracle`.
    """
    metrics.require_finite(logits)
    classes = len(space)
    if space.kind == "single":
        chosen = logits.argmax(dim=1)
        figures = {
            "accuracy": metrics.accuracy(chosen, targets),
            "macro_f1": metrics.macro_f1(metrics.one_hot(chosen, classes), metrics.one_hot(targets, classes)),
        }
        by_class = tuple(metrics.per_class_accuracy(chosen, targets, classes).tolist())
        return Score(name, len(targets), figures, by_class, correct=chosen == targets)
    per_class = metrics.average_precisions(logits, targets)
    precision, without = metrics.mean_of_known(per_class)
    figures = {"mean_average_precision": precision, "classes_without_positive": float(without)}
    figures |= _decided(logits > 0, targets)
    best = metrics.top_k(logits, targets, TOP)
    figures |= {
        f"top{TOP}_of1": metrics.micro_f1(best, targets),
        f"top{TOP}_cf1_hm": metrics.class_f1(best, targets),
    }
    probabilities, decision = logits.sigmoid(), decision or Decision()
    tuned = decision.tuned if decision.thresholds is None else decision.thresholds
    if tuned is not None:
        figures |= _decided(probabilities >= tuned, targets, "_tuned")
    if decision.oracle:
        figures |= _decided(probabilities >= metrics.best_threshold(probabilities, targets), targets, "_oracle")
    return Score(name, len(targets), figures, per_class)


def _decided(present: Tensor, targets: Tensor, which: str = "") -> dict[str, float]:
    """The figures of decisions [N, C]; `which` is the suffix of their names."""
    measures = {
        "accuracy": metrics.accuracy,
        "cf1_macro": metrics.macro_f1,
        "cf1_hm": metrics.class_f1,
        "of1": metrics.micro_f1,
    }
    return {name + which: measure(present, targets) for name, measure in measures.items()}
