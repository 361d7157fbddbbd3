"""A toy method and a toy backbone: a linear classifier on random features per image, for tests of the rounds."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Examples
from fedprompt.data.images import Images
from fedprompt.data.labels import LabelSpace
from fedprompt.federated.client import Client
from fedprompt.methods.base import Method
from fedprompt.seeding import stream

WIDTH = 6
CLASSES = 4
SPACE = LabelSpace(tuple(f"class {number}" for number in range(CLASSES)))


class ToyClip(Clip):
    """A backbone with random image features, the same for a row each time."""

    def __init__(self) -> None:
        nn.Module.__init__(self)  # without towers
        self.dtype = torch.float32

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def image_features(self, images: Images) -> Tensor:
        return torch.stack([torch.randn(WIDTH, generator=stream(0, "picture", row)) for row in images.rows])


def fake_clip() -> ToyClip:
    return ToyClip()


class Toy(Method):
    """Shared matrix and bias, a personal vector, and a personal phase: odd epochs do not train the matrix."""

    personal: ClassVar[tuple[str, ...]] = ("own", "phase")

    def __init__(self, *, switch: bool = True) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(CLASSES, WIDTH, generator=stream(0, "toy")))
        self.bias = nn.Parameter(torch.zeros(CLASSES))
        self.own = nn.Parameter(torch.zeros(WIDTH))
        self.register_buffer("phase", torch.zeros((), dtype=torch.int64))
        self.switch = switch

    def classifier(self, clip: Clip, space: LabelSpace) -> Callable[[Images], Tensor]:
        rows = [int(name.split()[1]) for name in space.names]
        return lambda images: (clip.image_features(images) + self.own) @ self.matrix[rows].T + self.bias[rows]

    def loss(self, clip, images, targets, space, *, stream) -> Tensor:
        logits = self.classifier(clip, space)(images)
        noisy = logits + 0.01 * torch.randn(logits.shape, generator=stream)
        return nn.functional.cross_entropy(noisy, targets)

    def trainable(self) -> tuple[str, ...]:
        return ("bias", "own") if self.phase % 2 else ("matrix", "bias", "own")

    def end_epoch(self, epoch: int) -> None:
        self.phase += self.switch


def toy_client(number: int, *, examples: int = 5, test: int = 0, classes: tuple[int, ...] | None = None) -> Client:
    """A client of rows `100 * number ...`, over all classes or over its own candidate list."""
    space = SPACE if classes is None else SPACE.take(classes)

    def draw(offset: int, count: int) -> Examples:
        targets = torch.randint(len(space), (count,), generator=stream(0, "targets", number, offset))
        rows = range(100 * number + offset, 100 * number + offset + count)
        return Examples(Images(SimpleNamespace(), tuple(rows)), targets, space)

    return Client(number, f"site {number}", draw(0, examples), draw(50, test) if test else None)
