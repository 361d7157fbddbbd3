"""The method interface: an `nn.Module` of trained tensors that builds a classifier from a frozen CLIP and class names.

Legend for methods: B images, P patches, C classes, N texts, T tokens, D joint width, W tower width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedprompt.arguments import shown
from fedprompt.clip.model import Capability, Clip, Encoded
from fedprompt.clip.prompts import TEMPLATE, ContextSlot
from fedprompt.data.images import Images
from fedprompt.data.labels import Kind, LabelSpace
from fedprompt.errors import UserError, plural, wording
from fedprompt.ops.diagnostics import Diagnostic, attention_diagnostics, condition_diagnostics
from fedprompt.ops.layers import normal, unit
from fedprompt.ops.losses import objective
from fedprompt.ops.scoring import region_scores
from fedprompt.updates import AggregationRule, fedavg

Reads = tuple[Literal["template", "attributes", "conditions"], ...]
Classifier = Callable[[Images], Tensor]  # B images -> logits [B, C], columns in the order of the label space

# Region scores are about 100 times a cosine, so their sigmoid is near 1 for all classes; the score of a neutral text is
# subtracted as the zero point.
NEUTRAL_TEXT = "a photo."
LARGEST_SIZE = 10_000  # vectors, ranks or layers: more could only be a slip, and would not fit into memory


@dataclass(frozen=True)
class Attention:
    """Cross-attention of image patches to attribute texts, for reports."""

    weights: Tensor  # [H, B, P, N] for H heads; each row sums to one
    attributes: tuple[tuple[str, str], ...]  # N pairs (text, class name)


@dataclass(frozen=True)
class Explanation:
    """What a prediction is based on: the weights of K conditions, and where each label was found under each."""

    conditions: tuple[str, ...]
    gate: Tensor  # [B, K], weight of each condition for an image; rows sum to one
    evidence: Tensor  # [B, K, C], probability of each label under each condition
    plans: Tensor  # [B, K, P, C], mass transported from patches to labels; each label receives 1/C


class Method(nn.Module, ABC):
    """Base class of all methods; holds only what is trained, and gets the backbone as an argument of each call.

    A subclass takes `(clip, *, <options>, generator)` and draws every initial value from the generator. All its state
    is in `state_dict()`: parameters are shared and aggregated, except those with a prefix in `personal`.
    """

    personal: ClassVar[tuple[str, ...]] = ()  # prefixes of parameters and buffers that never leave a client
    aggregate: ClassVar[AggregationRule] = staticmethod(fedavg)  # how the server aggregates the updates
    reads: ClassVar[Reads] = ()  # what of a label space it depends on besides the class names
    init: str | None = None  # the option of methods with a learned context: what the context starts from
    needs: ClassVar[tuple[str, ...]] = ()  # further packages; each is also the name of the extra that installs it
    requires: ClassVar[tuple[Capability, ...]] = ()  # what it needs of a backbone that not every family offers
    unaccounted: str = ""  # what of its training no privacy budget accounts for, and the fix: "<it does this>; set ..."

    @classmethod
    def takes_mean(cls) -> bool:
        """Whether the server takes the weighted mean of the updates, for which it need not see a single one."""
        return cls.aggregate is fedavg

    @abstractmethod
    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Do what depends on the classes alone, once, and return the function from images to logits."""

    def loss(
        self, clip: Clip, images: Images, targets: Tensor, space: LabelSpace, *, stream: torch.Generator
    ) -> Tensor:
        """The scalar loss of a batch, by default the task's objective on the logits; draw randomness from `stream`."""
        logits = require_logits(open_classifier(self, clip, space)(images), self, images, space)
        return objective(space.kind)(logits, targets)

    def trainable(self) -> tuple[str, ...]:
        """Names of the parameters to train and send; called before every local epoch."""
        return tuple(name for name, _ in self.named_parameters())

    def learning_rate_factor(self, name: str) -> float:
        """The factor on the learning rate of a parameter."""
        return 1.0

    def text_inputs(self, space: LabelSpace) -> str:
        """What its texts or its loss depend on besides the class names, for reports: `reads`, and where V starts."""
        described = sum(bool(space.attributes.get(name)) for name in space.names)
        said = {
            "template": f'the template "{space.template}"',
            "attributes": f"attributes of {described} of {plural(len(space), 'class')}",
            "conditions": f"conditions ({', '.join(space.conditions) or 'its own'})",
        }
        parts = [said[what] for what in self.reads]
        if self.init is not None:
            kind = "template" if "{}" in self.init else "words"
            parts.append(f'a context that starts from the {kind} "{self.init}"' if self.init else "a random context")
        return ", ".join(parts) or "nothing"

    def exports(self, backbone: str) -> Mapping[str, str | bytes]:
        """Further files for the adapter's folder, path -> content, in the formats of other libraries."""
        return {}

    def end_epoch(self, epoch: int) -> None:
        """Called after a local epoch, counted from 0 in every round; keep a training phase in a personal buffer."""

    def attention(self, clip: Clip, images: Images, space: LabelSpace) -> Attention | None:
        """Cross-attention of patches to texts, for methods that have it."""
        return None

    def explain(self, clip: Clip, images: Images, space: LabelSpace) -> Explanation | None:
        """The evidence for labels, for methods that recognise them under conditions."""
        return None

    def diagnostics(self, clip: Clip, images: Images, space: LabelSpace) -> tuple[Diagnostic, ...]:
        """What its trained parts do with some images, for reports: here with its attention and its conditions."""
        attention, found = self.attention(clip, images, space), self.explain(clip, images, space)
        return (
            *(() if attention is None else attention_diagnostics(attention.weights)),
            *(() if found is None else condition_diagnostics(**vars(found))),
        )


def open_classifier(method: Method, clip: Clip, space: LabelSpace) -> Classifier:
    """A method's classifier of these classes; UserError if that is no function."""
    found: object = method.classifier(clip, space)
    if not callable(found):
        raise UserError(
            f"`classifier` of {type(method).__name__} returned {shown(found)}; return a function from images to logits."
        )
    return found


def require_logits(logits: object, method: Method, images: Images, space: LabelSpace) -> Tensor:
    """What a method's classifier returned, if it is a tensor [B, C] of floats; UserError otherwise."""
    wanted, name = [len(images), len(space)], type(method).__name__
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        found = f"a tensor of {logits.dtype}" if isinstance(logits, Tensor) else shown(logits)
        raise UserError(f"The classifier of {name} returned {found}; return a tensor [B, C] of floats, here {wanted}.")
    if list(logits.shape) != wanted:
        raise UserError(
            f"The classifier of {name} returned logits {list(logits.shape)} for {plural(len(images), 'image')} and "
            f"{plural(len(space), 'class')}; return [B, C], here {wanted}, a column per class of the label space."
        )
    return logits


def class_texts(clip: Clip, space: LabelSpace) -> Tensor:
    """[C, D]: per class the mean of its sentences' unit features, not normalised, so <v, mean> is the mean cosine.

    The sentences have the attributes in them, so a method that calls this names "attributes" in `reads`.
    """
    sentences = space.attribute_texts()
    features = clip.text_features([sentence for group in sentences for sentence in group])  # [N, D]
    groups = torch.split(features, [len(group) for group in sentences])
    return torch.stack([group.mean(dim=0) for group in groups])


def cosine_classifier(clip: Clip, text: Tensor, kind: Kind) -> Classifier:
    """The classifier that compares frozen image features with class texts [C, D], or [B, C, D] per image."""
    if kind == "single":
        return lambda images: with_bias(clip, clip.scale * cosines(clip.image_features(images), text))  # [B, C]
    text, neutral = unit(text), clip.text_features((NEUTRAL_TEXT,))
    return lambda images: pair_logits(frozen_tokens(clip, images), text, neutral)


def cosine_logits(clip: Clip, encoded: Encoded, text: Tensor, kind: Kind) -> Tensor:
    """Logits [B, C] of encoded images against class texts [C, D]; multi-label scores include appended tokens."""
    if kind == "single":
        return with_bias(clip, clip.scale * cosines(unit(encoded.image), text))
    tokens = torch.cat([unit(encoded.image)[:, None], unit(encoded.patches)], dim=1)  # [B, 1+P, D]
    return pair_logits(tokens, unit(text), clip.text_features((NEUTRAL_TEXT,)))


def with_bias(clip: Clip, logits: Tensor) -> Tensor:
    """Scaled cosines with the bias of a backbone that has one, as SigLIP; a softmax over classes does not change."""
    return logits + clip.bias if clip.bias else logits


def cosines(image: Tensor, text: Tensor) -> Tensor:
    """Cosines [B, C] of unit image features [B, D] with unit texts [C, D], or [B, C, D] per image."""
    return image @ text.T if text.ndim == 2 else (text @ image[:, :, None]).squeeze(-1)


def frozen_tokens(clip: Clip, images: Images) -> Tensor:
    """[B, 1+P, D] unit features of all tokens, the class token first, from one cached pass."""
    patches = clip.patch_features(images)  # first, since this pass caches the image features too
    return torch.cat([clip.image_features(images)[:, None], patches], dim=1)  # [B, 1+P, D]


def pair_logits(tokens: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """[B, C] logits z+ - z- of a pair head (DualCoOp, 2022), both weighted by the positive text's attention.

    Unit tokens [B, T, D]; unit texts [C, D], [1, D] or, per image, [B, C, D].
    """
    # differs: FedMPT's comparison takes the sigmoid of the positive scores alone, which starts near 1 for every class
    return region_scores(tokens, positive - negative, focus=positive)


def context_vectors(
    clip: Clip, *, n_ctx: int, init: str, generator: torch.Generator | None, least: int = 1
) -> nn.Parameter:
    """Learned context vectors [n, W] that start from `init` (see `context_words`), or drawn from N(0, 0.02^2)."""
    bounded(least, n_ctx=n_ctx)
    words = context_words(clip, init, n_ctx=n_ctx)  # [n, W]
    return nn.Parameter(words) if len(words) else normal(n_ctx, clip.text_width, generator=generator)


def context_words(clip: Clip, init: str, *, n_ctx: int = 0) -> Tensor:
    """[n, W] embeddings of the words that a context starts from: a phrase, or a template's words before the class name.

    Of a template, n is what its words take; a phrase must take n_ctx tokens if that is not 0. "" and a template that
    begins with the name have no words, n = 0. Raises UserError for another length, and for `init = "template"`.
    """
    if init == TEMPLATE:
        raise UserError(
            f'init = "{TEMPLATE}" stands for the template of the data set, which a run fills in; without a run give '
            'the template itself, for example init = "a photo of a {}.".'
        )
    words = ContextSlot.of(init).words
    embeddings = clip.token_embeddings(words).clone() if words else torch.empty(0, clip.text_width)
    if words and n_ctx and len(embeddings) != n_ctx and "{}" not in init:
        random = 'init = ""' if wording() == "shell" else f'{{"n_ctx": {n_ctx}, "init": ""}} in the table of the method'
        raise UserError(
            f'The option init = "{init}" has {len(embeddings)} tokens but n_ctx = {n_ctx}; make them equal, give a '
            f"template with {{}} for the class name, or write {random} for a random start."
        )
    return embeddings


def context_templates(space: LabelSpace, init: str | None = None) -> tuple[str, ...]:
    """Per class a text with the placeholder `<ctx>` for learned vectors, as `ContextSlot` places it."""
    return ContextSlot.of(init or "").texts(space.names)


def prompted_texts(clip: Clip, space: LabelSpace, context: Tensor, init: str | None = None) -> Tensor:
    """[C, D] unit features of the class names after a learned context [n, W] or, per class, [C, n, W]."""
    return unit(clip.encode_text(clip.fill(context_templates(space, init), ctx=context)))


def require_packages(method: type[Method]) -> None:
    """Raise UserError if a package that a method needs is missing; called in its constructor, before any training."""
    for package in method.needs:
        if find_spec(package) is None:
            raise UserError(
                f"{method.__name__} needs the package {package}; install it with: pip install 'fedprompt[{package}]'."
            )


def at_least(least: float, **options: float) -> None:
    """Raise UserError naming the first option below `least`, or infinite."""
    for name, value in options.items():
        if not value >= least:
            raise UserError(f"The option {name} = {value} is too small; give at least {least}.")
        if value == math.inf:
            raise UserError(f"The option {name} = {value} is too large; give a finite number.")


def bounded(least: int, **options: int) -> None:
    """Raise UserError naming the first number of vectors, ranks or layers not from `least` to `LARGEST_SIZE`."""
    at_least(least, **options)
    at_most(LARGEST_SIZE, **options)


def at_most(most: float, **options: float) -> None:
    """Raise UserError naming the first option above `most`."""
    for name, value in options.items():
        if not value <= most:
            raise UserError(f"The option {name} = {value} is too large; give at most {most}.")


def one_of(choices: tuple[str, ...], **options: str) -> None:
    """Raise UserError naming the first option that is not one of the choices."""
    for name, value in options.items():
        if value not in choices:
            raise UserError(f"The option {name} = {value!r} is unknown; choose one of {', '.join(map(repr, choices))}.")
