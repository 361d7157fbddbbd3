"""Zero-shot CLIP with attributes (Menon and Vondrick, 2023): class names with attributes in sentences, no training."""

from __future__ import annotations

import torch

from fedprompt.clip.model import Clip
from fedprompt.data.labels import LabelSpace
from fedprompt.methods.base import Classifier, Method, class_texts, cosine_classifier


class ZeroShotAttributes(Method):
    """logit_c = s mean_j <v, t_cj> over the attribute sentences of c (Menon and Vondrick, 2023, arXiv 2210.07183).

    The sentences are those of FedMVP, "a photo of a dog, which has four legs.", so this is FedMVP before anything is
    learned: what the words are worth by themselves. A class without attributes has its template.
    """

    reads = ("template", "attributes")

    # differs: the paper's sentences name the class without a template, "dog, which has four legs"
    def __init__(self, clip: Clip, *, generator: torch.Generator | None = None) -> None:
        super().__init__()

    def classifier(self, clip: Clip, space: LabelSpace) -> Classifier:
        """Compare frozen image features with the mean of each class's sentences."""
        return cosine_classifier(clip, class_texts(clip, space), space.kind)
