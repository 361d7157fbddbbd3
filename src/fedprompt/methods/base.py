"""What a method is: an `nn.Module` of trained tensors that turns a frozen CLIP and class names into a classifier.

Legend for methods: B images, P patches, C classes, N texts, T tokens, D joint width, W tower width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedprompt.clip.model import Clip, Encoded
from fedprompt.data.images import Images
from fedprompt.data.labels import Kind, LabelSpace
from fedprompt.errors import UserError
from fedprompt.ops.averaging import Aggregate, weighted_mean
from fedprompt.ops.layers import unit
from fedprompt.ops.losses import objective
from fedprompt.ops.scoring import region_scores

Classifier = Callable[[Images], Tensor]  # B images -> logits [B, C], columns in the order of the label space

# Region scores are about 100 cosines, and their sigmoid calls everything present: a text about nothing sets the zero.
NOTHING = "a photo."


@dataclass(frozen=True)
class Attention:
    """What the patches of some images looked at, for reports."""

    weights: Tensor  # [B, P, N], mean over heads; each row sums to one
    attributes: tuple[tuple[str, str], ...]  # N pairs (text, class name)


@dataclass(frozen=True)
class Explanation:
    """Why some images got their labels: which of K conditions counted, and where a label was found under each."""

    conditions: tuple[str, ...]
    gate: Tensor  # [B, K], how much each condition holds for an image; rows sum to one
    evidence: Tensor  # [B, K, C], probability of each label under each condition
    plans: Tensor  # [B, K, P, C], mass that patches send to labels; each label receives 1/C


class Method(nn.Module, ABC):
    """Holds only what is trained; the backbone is handed to every call and never kept.

    A subclass takes `(clip, *, <options>, generator)` and draws every initial value from the generator. All its state
    is in `state_dict()`: parameters are shared and averaged, except those that `personal` names.
    """

    personal: ClassVar[tuple[str, ...]] = ()  # prefixes of parameters and buffers that never leave a client
    aggregate: ClassVar[Aggregate] = staticmethod(weighted_mean)  # the server's half

    @abstractmethod
    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Do here what depends on the classes alone, and return what is left to do for images."""

    def loss(
        self, clip: Clip, images: Images, targets: Tensor, space: LabelSpace, *, stream: torch.Generator
    ) -> Tensor:
        """What a step minimises, a scalar; random draws come from `stream`. Here the task's objective on the logits."""
        return objective(space.kind)(self.classifier(clip, space)(images), targets)

    def trainable(self) -> tuple[str, ...]:
        """Names of the parameters to train, and to send, now; asked before every local epoch."""
        return tuple(name for name, _ in self.named_parameters())

    def end_epoch(self, epoch: int) -> None:
        """Called after a local epoch, counted from 0 in every round; a change of mind belongs in a personal buffer."""

    def attention(self, clip: Clip, images: Images, space: LabelSpace) -> Attention | None:
        """Where the patches look, for methods in which patches look at words."""
        return None

    def explain(self, clip: Clip, images: Images, space: LabelSpace) -> Explanation | None:
        """Where labels were found, for methods that look for them under conditions."""
        return None


def class_texts(clip: Clip, space: LabelSpace) -> Tensor:
    """[C, D]: each class's mean of its sentences' unit features, not normalised: <v, mean> is the mean of cosines."""
    sentences = space.sentences()
    features = clip.text_features([sentence for group in sentences for sentence in group])  # [N, D]
    groups = torch.split(features, [len(group) for group in sentences])
    return torch.stack([group.mean(dim=0) for group in groups])


def cosine_classifier(clip: Clip, text: Tensor, kind: Kind) -> Classifier:
    """Compare frozen image features with class texts [C, D]."""
    if kind == "single":
        return lambda images: clip.scale * clip.image_features(images) @ text.T  # [B, C]

    def regions(images: Images) -> Tensor:
        patches = clip.patch_features(images)  # first: the pass that makes them leaves the image features behind
        return _region_logits(clip, clip.image_features(images), patches, text)

    return regions


def cosine_logits(clip: Clip, encoded: Encoded, text: Tensor, kind: Kind) -> Tensor:
    """Compare freshly encoded images with class texts [C, D]: logits [B, C]."""
    if kind == "single":
        return clip.scale * unit(encoded.image) @ text.T  # [B, C]
    return _region_logits(clip, unit(encoded.image), unit(encoded.patches), text)


def _region_logits(clip: Clip, image: Tensor, patches: Tensor, text: Tensor) -> Tensor:
    """Multi-label logits [B, C] over all tokens, CLS and appended ones included: a pair head against NOTHING."""
    # differs: FedMPT's comparison takes the sigmoid of the positive scores alone, which starts near 1 for every class
    tokens, text = torch.cat([image[:, None], patches], dim=1), unit(text)  # [B, 1+P, D], [C, D]
    return region_scores(tokens, text - clip.text_features((NOTHING,)), focus=text)


def at_least(least: float, **options: float) -> None:
    """Raise a UserError naming the first option below the least value that makes sense."""
    for name, value in options.items():
        if not value >= least:
            raise UserError(f"The option {name} = {value} is too small; give at least {least}.")


def one_of(choices: tuple[str, ...], **options: str) -> None:
    """Raise a UserError naming the first option that is none of the choices."""
    for name, value in options.items():
        if value not in choices:
            raise UserError(f"The option {name} = {value!r} is unknown; choose one of {', '.join(map(repr, choices))}.")
