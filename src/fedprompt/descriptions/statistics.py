"""Statistics of descriptions before training: how many attributes classes share, how well they separate classes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Examples
from fedprompt.data.labels import LabelSpace, readable_name
from fedprompt.methods.base import class_texts, cosine_classifier
from fedprompt.ops.layers import unit
from fedprompt.ops.metrics import accuracy, require_finite

CLOSE = 0.99  # near-duplicates have a higher cosine than this quantile of all pairs of class names,
LEAST = 0.95  # and at least this cosine: a small backbone keeps class names further apart than phrases


@dataclass(frozen=True)
class Sharing:
    """How attributes are shared between classes: what unseen classes share with seen ones is what generalises."""

    distinct: int  # different phrases
    shared: int  # of them, in two classes or more
    per_class: float  # mean over classes of the fraction of its phrases that another class has too
    unshared: tuple[str, ...]  # classes that share nothing
    top: tuple[tuple[str, tuple[str, ...]], ...]  # the phrases of most classes


def sharing(attributes: Mapping[str, Sequence[str]], *, top: int = 20) -> Sharing:
    """Count the attributes that classes share."""
    owners: dict[str, list[str]] = defaultdict(list)
    for name, phrases in attributes.items():
        for phrase in dict.fromkeys(phrases):
            owners[phrase].append(name)
    common = {phrase for phrase, names in owners.items() if len(names) > 1}
    parts = {name: sum(phrase in common for phrase in phrases) for name, phrases in attributes.items() if phrases}
    ratios = [count / len(attributes[name]) for name, count in parts.items()]
    ordered = sorted(common, key=lambda phrase: (-len(owners[phrase]), phrase))
    return Sharing(
        distinct=len(owners),
        shared=len(common),
        per_class=sum(ratios) / len(ratios) if ratios else 0.0,
        unshared=tuple(name for name, count in parts.items() if not count),
        top=tuple((phrase, tuple(owners[phrase])) for phrase in ordered[:top]),
    )


@dataclass(frozen=True)
class Separation:
    """Similarity of class texts: the cosine to the nearest other class, mean and worst; lower is better.

    With images also the zero-shot accuracy on them.
    """

    mean: float
    worst: float
    pair: tuple[str, str]
    accuracy: float | None = None


def separations(
    clip: Clip, space: LabelSpace, attributes: Mapping[str, tuple[str, ...]], examples: Examples | None = None
) -> tuple[Separation, Separation]:
    """The separation of class texts by the template alone, and by attribute sentences.

    `examples` are training images of all classes of `space`: attributes must not be chosen on test images.
    """
    before, after = replace(space, attributes={}), replace(space, attributes=attributes)
    return _separation(clip, before, examples), _separation(clip, after, examples)


@torch.no_grad()
def _separation(clip: Clip, space: LabelSpace, examples: Examples | None) -> Separation:
    text = class_texts(clip, space)
    cosines = unit(text) @ unit(text).T - 2 * torch.eye(len(text), device=text.device)  # [C, C]
    nearest, partner = cosines.max(dim=1)
    worst = int(nearest.argmax())
    pair = (space.names[worst], space.names[int(partner[worst])])
    found = None
    if examples is not None and space.kind == "single":
        logits = cosine_classifier(clip, text, space.kind)(examples.images)
        require_finite(logits, "The backbone", trained=False)
        found = accuracy(logits.argmax(dim=1).cpu(), examples.targets)
    return Separation(float(nearest.mean()), float(nearest[worst]), pair, found)


def similarity_threshold(clip: Clip, names: Sequence[str]) -> float:
    """The cosine above which two texts are near-duplicates to this backbone; nearly all class names are below it."""
    cosines = _cosines(clip, [readable_name(name) for name in names])
    pairs = cosines[torch.triu(torch.ones_like(cosines, dtype=torch.bool), diagonal=1)]
    return max(LEAST, float(pairs.double().quantile(CLOSE))) if len(pairs) else 1.0


def overlaps(clip: Clip, phrases: Sequence[str], limit: float) -> list[tuple[str, str, float]]:
    """Pairs of phrases whose text features are nearer than the limit, nearest first."""
    if len(phrases) < 2:
        return []
    cosines = _cosines(clip, phrases)
    rows, columns = torch.triu(cosines > limit, diagonal=1).nonzero(as_tuple=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return sorted(((phrases[a], phrases[b], float(cosines[a, b])) for a, b in pairs), key=lambda pair: -pair[2])


@torch.no_grad()
def _cosines(clip: Clip, texts: Sequence[str]) -> Tensor:
    features = clip.text_features(list(texts))  # [N, D]
    return (features @ features.T).cpu()  # [N, N]
