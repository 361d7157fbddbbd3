"""From which probability a label counts as present in a prediction: the adapter's own threshold, where it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprompt.clip.model import Clip
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import plural
from fedprompt.experiments.test_sets import class_probabilities
from fedprompt.federated.evaluate import predict
from fedprompt.methods.base import Method
from fedprompt.records.adapter import Adapter

UNFITTED = 0.5  # the decision threshold of a label without a fitted one
MEASURED = 4  # images on which it is measured whether probabilities depend on the candidates
SAME = 1e-3  # difference of two probabilities that is none: other batches round otherwise, by far less


@dataclass(frozen=True)
class Thresholds:
    """Per class the probability from which its label is present [C], and a sentence on where they are from.

    `fitted` says whether each was fitted. Without a sentence there is nothing to decide.
    """

    values: Tensor
    sentence: str = ""
    fitted: bool = True


def choose_thresholds(
    adapter: Adapter, trained: tuple[Method, Clip], images: Images, space: LabelSpace, probabilities: Tensor
) -> Thresholds:
    """The thresholds for labels of `space`, of which these images have `probabilities` [B, C].

    `UNFITTED` stands for a label whose own one does not hold. Fitted ones hold among other classes only if the
    probabilities of the labels that both have stay the same there, which is measured on the first images: those of a
    method may be shares among the candidates.
    """
    fitted = dict(zip(adapter.card.class_names, adapter.card.thresholds or (), strict=False))
    own = {name: fitted[name] for name in space.names if name in fitted}
    if space.kind == "single" or not len(images):
        return Thresholds(torch.full((len(space),), UNFITTED))
    if not own:
        return Thresholds(*_unfitted(space, "no threshold was fitted for these classes"), fitted=False)
    among = _fitted_among(adapter)
    if not _hold(among, trained, images, space, probabilities):
        which = "of the adapter" if len(among) == len(adapter.space) else "that the clients trained on"
        why = (
            f"the threshold that was fitted on training images, {_span(own)}, is one among the "
            f"{plural(len(among), 'class')} {which}, and with other classes these probabilities change"
        )
        return Thresholds(*_unfitted(space, why), fitted=False)
    values = torch.tensor([own.get(name, UNFITTED) for name in space.names])
    return Thresholds(values, _sentence(own, len(space) - len(own)), fitted=len(own) == len(space))


def _fitted_among(adapter: Adapter) -> LabelSpace:
    """The classes among which the thresholds of an adapter were fitted: all, or those that clients trained on."""
    return adapter.space.take(range(len(adapter.space))[: adapter.card.fitted_classes])


def _unfitted(space: LabelSpace, why: str) -> tuple[Tensor, str]:
    return torch.full((len(space),), UNFITTED), f"A label counts as present from {100 * UNFITTED:.1f}%; {why}."


def _sentence(own: Mapping[str, float], rest: int) -> str:
    span = _span(own) if len(set(own.values())) == 1 else f"its own threshold, {_span(own)}"
    others = f"; {plural(rest, 'label')} without a fitted threshold from {100 * UNFITTED:.1f}%" if rest else ""
    return f"A label counts as present from {span}, fitted on training images{others}."


def _span(own: Mapping[str, float]) -> str:
    low, high = (f"{100 * value:.1f}%" for value in (min(own.values()), max(own.values())))
    return low if low == high else f"{low} to {high}"


def _hold(
    fitted: LabelSpace, trained: tuple[Method, Clip], images: Images, space: LabelSpace, probabilities: Tensor
) -> bool:
    """Whether the labels of both have the same probabilities among the classes of either."""
    if set(fitted.names) == set(space.names):
        return True
    few = images.take(range(min(MEASURED, len(images))))
    own = class_probabilities(predict(*trained, few, fitted), fitted.kind)
    shared = [name for name in space.names if name in set(fitted.names)]
    here, there = ([one.names.index(name) for name in shared] for one in (space, fitted))
    return torch.allclose(probabilities[: len(few)][:, here], own[:, there], rtol=0, atol=SAME)
