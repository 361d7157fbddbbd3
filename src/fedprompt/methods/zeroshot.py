"""Zero-shot CLIP (Radford et al., 2021): class names in a hand-written template, without training; the baseline."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedprompt.clip.model import Clip
from fedprompt.data.labels import LabelSpace
from fedprompt.errors import UserError
from fedprompt.methods.base import Classifier, Method, cosine_classifier
from fedprompt.ops.layers import unit


class ZeroShot(Method):
    """logit_c = s <v, t_c>, with t_c the text feature of the class's template (Radford et al., 2021).

    template: template in place of the data set's; "" for that.
    ensemble: take the mean of unit text features over all wordings of a class (further templates, synonyms) instead.
    """

    reads = ("template",)

    def __init__(
        self, clip: Clip, *, template: str = "", ensemble: bool = False, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if template and "{}" not in template:
            raise UserError(f'The option template = "{template}" has no {{}} where the class name goes; add it.')
        self.template, self.ensemble = template, ensemble

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Compare frozen image features with the template's text of every class."""
        space = self._with_template(space)
        if not self.ensemble:
            return cosine_classifier(clip, clip.text_features(space.texts()), space.kind)
        wordings = space.ensemble_texts()
        features = clip.text_features([text for own in wordings for text in own])  # [N, D]
        groups = torch.split(features, [len(own) for own in wordings])
        return cosine_classifier(clip, unit(torch.stack([own.mean(dim=0) for own in groups])), space.kind)

    def text_inputs(self, space: LabelSpace) -> str:
        """The template that it uses."""
        return super().text_inputs(self._with_template(space))

    def _with_template(self, space: LabelSpace) -> LabelSpace:
        return replace(space, template=self.template) if self.template else space
