"""A quick look at a CLIP in training: zero-shot accuracy on `emoji` by name, by attribute sentences, by attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import CLIPModel

from fedprompt.data.labels import LabelSpace, with_attribute
from fedprompt.demo.emoji import BASE, emoji
from fedprompt.demo.pretraining.forward import TextEncoder, encode_images
from fedprompt.demo.sprites import SEEN
from fedprompt.seeding import stream

SEED = 999  # images that neither runs nor the card use


@dataclass(frozen=True, eq=False)
class Probe:
    """Two images per class and seen artist, read once."""

    per_class: int = 2

    @cached_property
    def _images(self) -> tuple[Tensor, Tensor, LabelSpace]:
        """Pixels [B, 3, 64, 64], classes [B], and the label space."""
        dataset = emoji(seed=SEED, train=0, test=self.per_class)
        rows = dataset.rows(split="test", domains=SEEN)
        pixels = [torch.from_numpy(np.array(dataset.source.open(int(row)))) for row in rows]
        return torch.stack(pixels).permute(0, 3, 1, 2), dataset.targets[rows], dataset.space

    @torch.no_grad()
    def measure(self, model: CLIPModel, text_encoder: TextEncoder) -> dict[str, float]:
        """Accuracy in percent: among all classes by three kinds of texts, and among the base and the new ones."""
        pixels, labels, space = self._images
        generator = stream(SEED, "patches")
        parts = [encode_images(model, part, generator, (64,))[0] for part in torch.split(pixels.to(model.device), 120)]
        image = torch.cat(parts).cpu()  # [B, D]

        def mean(texts: Sequence[Sequence[str]]) -> Tensor:
            found = text_encoder.encode(model, [text for own in texts for text in own]).cpu()
            return torch.stack(
                [F.normalize(part.mean(dim=0), dim=0) for part in torch.split(found, [len(own) for own in texts])]
            )

        names, sentences = mean([[text] for text in space.texts()]), mean(space.attribute_texts())
        bare = mean(
            [[with_attribute("a photo of a thing.", phrase) for phrase in own] for own in space.attributes.values()]
        )
        base, new = range(BASE), range(BASE, len(space))
        return {
            "names": _share(image, labels, names, range(len(space))),
            "sentences": _share(image, labels, sentences, range(len(space))),
            "bare": _share(image, labels, bare, range(len(space))),
            "base": _share(image, labels, names, base),
            "new": _share(image, labels, names, new),
            "new_sentences": _share(image, labels, sentences, new),
        }


def _share(image: Tensor, labels: Tensor, text: Tensor, classes: range) -> float:
    rows = (labels >= classes.start) & (labels < classes.stop)
    found = classes.start + (image[rows] @ text[classes.start : classes.stop].T).argmax(dim=1)
    return 100 * float((found == labels[rows]).float().mean())
