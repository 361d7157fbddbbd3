"""What a method is: an `nn.Module` of trained tensors that turns a frozen CLIP and class names into a classifier.

Legend for methods: B images, P patches, C classes, N texts, T tokens, D joint width, W tower width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedprompt.clip.model import Clip, Encoded
from fedprompt.data.images import Images
from fedprompt.data.labels import Kind, LabelSpace, readable_name
from fedprompt.errors import UserError
from fedprompt.ops.layers import normal, unit
from fedprompt.ops.losses import objective
from fedprompt.ops.scoring import region_scores
from fedprompt.updates import AggregationRule, fedavg

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
    aggregate: ClassVar[AggregationRule] = staticmethod(fedavg)  # the server's half
    needs: ClassVar[tuple[str, ...]] = ()  # packages beyond fedprompt's own; each is also the extra that installs it

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

    def learning_rate_factor(self, name: str) -> float:
        """The factor on the learning rate of a parameter."""
        return 1.0

    def exports(self, backbone: str) -> Mapping[str, str | bytes]:
        """Further files of an adapter's folder, path -> content, for those who read it with other libraries."""
        return {}

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
    sentences = space.attribute_texts()
    features = clip.text_features([sentence for group in sentences for sentence in group])  # [N, D]
    groups = torch.split(features, [len(group) for group in sentences])
    return torch.stack([group.mean(dim=0) for group in groups])


def cosine_classifier(clip: Clip, text: Tensor, kind: Kind) -> Classifier:
    """Compare frozen image features with class texts [C, D], or [B, C, D] that each image has of its own."""
    if kind == "single":
        return lambda images: clip.scale * cosines(clip.image_features(images), text)  # [B, C]
    text, nothing = unit(text), clip.text_features((NOTHING,))
    return lambda images: pair_logits(frozen_tokens(clip, images), text, nothing)


def cosine_logits(clip: Clip, encoded: Encoded, text: Tensor, kind: Kind) -> Tensor:
    """Compare freshly encoded images with class texts [C, D]: logits [B, C]; regions include appended tokens."""
    if kind == "single":
        return clip.scale * cosines(unit(encoded.image), text)
    tokens = torch.cat([unit(encoded.image)[:, None], unit(encoded.patches)], dim=1)  # [B, 1+P, D]
    return pair_logits(tokens, unit(text), clip.text_features((NOTHING,)))


def cosines(image: Tensor, text: Tensor) -> Tensor:
    """Unit image features [B, D] times texts [C, D], or [B, C, D] with a list for each image: [B, C]."""
    return image @ text.T if text.ndim == 2 else (text @ image[:, :, None]).squeeze(-1)


def frozen_tokens(clip: Clip, images: Images) -> Tensor:
    """[B, 1+P, D] unit features of all tokens, the class token first, from one remembered pass."""
    patches = clip.patch_features(images)  # first: the pass that makes them leaves the image features behind
    return torch.cat([clip.image_features(images)[:, None], patches], dim=1)  # [B, 1+P, D]


def pair_logits(tokens: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """[B, C] logits of a pair head (DualCoOp, 2022): z+ - z-, both read where the positive text looks.

    Unit tokens [B, T, D]; unit texts [C, D], [1, D] or, one list an image, [B, C, D].
    """
    # differs: FedMPT's comparison takes the sigmoid of the positive scores alone, which starts near 1 for every class
    return region_scores(tokens, positive - negative, focus=positive)


def word_vectors(clip: Clip, *, n_ctx: int, init: str, generator: torch.Generator | None) -> nn.Parameter:
    """Context vectors [n_ctx, W]: the embeddings of the words `init`, or for "" drawn from N(0, 0.02^2).

    Raises UserError when there are not exactly n_ctx words.
    """
    at_least(1, n_ctx=n_ctx)
    if not init:
        return normal(n_ctx, clip.text_width, generator=generator)
    embeddings = clip.token_embeddings(init)  # [n, W]
    if len(embeddings) != n_ctx:
        raise UserError(
            f'The option init = "{init}" has {len(embeddings)} tokens but n_ctx = {n_ctx}; '
            'make them equal, or write init = "" for a random start.'
        )
    return nn.Parameter(embeddings.clone())


def after_context(space: LabelSpace) -> tuple[str, ...]:
    """A text a class with a place `<ctx>` for learned vectors in front of its name."""
    return tuple(f"<ctx> {readable_name(name)}." for name in space.names)


def prompted_texts(clip: Clip, space: LabelSpace, context: Tensor) -> Tensor:
    """[C, D] unit features of the class names behind a learned context [n, W] or, one a class, [C, n, W]."""
    return unit(clip.encode_text(clip.fill(after_context(space), ctx=context)))


def need(method: type[Method]) -> None:
    """Raise a UserError when a package that a method needs is missing; its constructor asks, before anything trains."""
    for package in method.needs:
        if find_spec(package) is None:
            raise UserError(
                f"{method.__name__} needs the package {package}; install it with: pip install 'fedprompt[{package}]'."
            )


def at_least(least: float, **options: float) -> None:
    """Raise a UserError naming the first option below the least value that makes sense."""
    for name, value in options.items():
        if not value >= least:
            raise UserError(f"The option {name} = {value} is too small; give at least {least}.")


def at_most(most: float, **options: float) -> None:
    """Raise a UserError naming the first option above the largest value that makes sense."""
    for name, value in options.items():
        if not value <= most:
            raise UserError(f"The option {name} = {value} is too large; give at most {most}.")


def one_of(choices: tuple[str, ...], **options: str) -> None:
    """Raise a UserError naming the first option that is none of the choices."""
    for name, value in options.items():
        if value not in choices:
            raise UserError(f"The option {name} = {value!r} is unknown; choose one of {', '.join(map(repr, choices))}.")
