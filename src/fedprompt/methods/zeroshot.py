"""Zero-shot CLIP (Radford et al., 2021): class names in a hand-written template, without training; the baseline."""

from __future__ import annotations

import torch

from fedprompt.clip.model import Clip
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import Classifier, Method, cosine_classifier
from fedprompt.ops.layers import unit


class ZeroShot(Method):
    """logit_c = s <v, t_c>, with t_c the text feature of the class's template (Radford et al., 2021).

    ensemble: take the mean of unit text features over all wordings of a class (further templates, synonyms) instead.
    """

    def __init__(self, clip: Clip, *, ensemble: bool = False, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.ensemble = ensemble

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Compare frozen image features with the template's text of every class."""
        if not self.ensemble:
            return cosine_classifier(clip, clip.text_features(space.texts()), space.kind)
        wordings = space.ensemble_texts()
        features = clip.text_features([text for own in wordings for text in own])  # [N, D]
        groups = torch.split(features, [len(own) for own in wordings])
        return cosine_classifier(clip, unit(torch.stack([own.mean(dim=0) for own in groups])), space.kind)
