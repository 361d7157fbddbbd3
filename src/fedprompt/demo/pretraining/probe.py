"""A quick look at a CLIP in training: zero-shot accuracy on the downstream classes by name and by attributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import CLIPModel

from fedprompt.data.labels import with_attribute
from fedprompt.demo.pretraining.forward import TextEncoder, encode_images
from fedprompt.demo.pretraining.vocabulary import SEEN, Vocabulary
from fedprompt.demo.render import (
    Draws,
    Layer,
    at_border,
    draw_ground,
    draw_light,
    draw_placement,
    finish,
    gains,
    paint,
)
from fedprompt.seeding import stream

Encode = Callable[[Sequence[str]], Tensor]
REPEATS = 2  # images per class and seen hand


@dataclass(frozen=True, eq=False)
class Probe:
    """The downstream classes in the seen hands, on images of its own."""

    vocabulary: Vocabulary

    @cached_property
    def _images(self) -> tuple[Tensor, Tensor]:
        """Images [B, 3, 64, 64] and their classes [B], in the look of the data sets (two distractors)."""
        sprites, table = self.vocabulary.sprites()
        labels = torch.arange(len(self.vocabulary.classes)).repeat(len(SEEN) * REPEATS)
        hands = torch.arange(len(SEEN)).repeat_interleave(len(labels) // len(SEEN))
        draws = Draws(stream(0, "probe"), len(labels))
        ground = draw_ground(draws)
        canvas = ground.pixels
        for _ in range(2):
            rows = table[draws.integer(len(table)), 0]
            layer = Layer(
                sprites.premultiplied(rows, small=True),
                sprites.mono[rows],
                at_border(draws, (0.2, 0.38)),
                draws.uniform(0.6, 1) * draws.happens(0.6),
            )
            canvas, _ = paint(canvas, layer, ground.dark)
        rows = table[torch.tensor(self.vocabulary.classes)[labels], hands]
        placed, opacity = draw_placement(draws, (0.45, 0.85)), draws.uniform(0.8, 1)
        layer = Layer(sprites.premultiplied(rows), sprites.mono[rows], placed, opacity, gains(draws))
        canvas, _ = paint(canvas, layer, ground.dark)
        return finish(draws, canvas, draw_light(draws)), labels

    @torch.no_grad()
    def measure(self, model: CLIPModel, text_encoder: TextEncoder) -> dict[str, float]:
        """Accuracy in percent among all classes, and among the base and the new ones."""
        pixels, labels = self._images
        generator = stream(0, "probe", "patches")
        parts = [encode_images(model, part, generator, (64,))[0] for part in pixels.to(model.device).split(120)]
        scores = _Scores(torch.cat(parts).cpu(), labels)
        concepts = [self.vocabulary.concepts[number] for number in self.vocabulary.classes]
        names = text_encoder.encode(model, [f"a photo of a {one.name}." for one in concepts]).cpu()

        def mean(subjects: Sequence[str]) -> Tensor:
            texts = [
                [with_attribute(f"a photo of a {subject}.", phrase) for phrase in one.attributes]
                for subject, one in zip(subjects, concepts, strict=True)
            ]
            found = text_encoder.encode(model, [text for own in texts for text in own]).cpu()
            return torch.stack([F.normalize(part.mean(dim=0), dim=0) for part in found.split([len(o) for o in texts])])

        sentences, bare = mean([one.name for one in concepts]), mean(["thing"] * len(concepts))
        half = len(concepts) // 2
        return {
            "names": scores.share(names),
            "sentences": scores.share(sentences),
            "bare": scores.share(bare),
            "base": scores.share(names, range(half)),
            "new": scores.share(names, range(half, len(concepts))),
            "new sentences": scores.share(sentences, range(half, len(concepts))),
        }


@dataclass(frozen=True)
class _Scores:
    image: Tensor  # [B, D]
    labels: Tensor  # [B]

    def share(self, text: Tensor, classes: range | None = None) -> float:
        chosen = torch.tensor(list(classes if classes is not None else range(len(text))))
        rows = torch.isin(self.labels, chosen)
        found = chosen[(self.image[rows] @ text[chosen].T).argmax(dim=1)]
        return 100 * float((found == self.labels[rows]).float().mean())
