"""Zero-shot CLIP (Radford et al., 2021): class names in a template, nothing trained; the floor of every comparison."""

from __future__ import annotations

import torch

from fedprompt.clip.model import Clip
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import Classifier, Method, cosine_classifier


class ZeroShot(Method):
    """logit_c = s <v, t_c>, with t_c the text feature of the class's template (Radford et al., 2021)."""

    def __init__(self, clip: Clip, *, generator: torch.Generator | None = None) -> None:
        super().__init__()

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Score images against the templates of the classes."""
        return cosine_classifier(clip, clip.text_features(space.texts()), space.kind)
