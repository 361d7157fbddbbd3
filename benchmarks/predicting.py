"""Benchmarks of `predict`: its rate as a share of the image tower's own, and the growth of its memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.backbone import SIZES, make_clip, make_examples
from benchmarks.data import jpegs, memory, timed
from fedprompt import methods
from fedprompt.clip.feature_cache import FeatureCache
from fedprompt.clip.model import Clip
from fedprompt.data.file_source import FileSource
from fedprompt.experiments.adapters import CACHE_GB
from fedprompt.experiments.predict import BATCH, classify_files
from fedprompt.seeding import stream

PASSES = 4  # images by which the tower's own rate is measured after every batch, so that both see the same machine


def predicting(
    *, images: int = 1000, names: Sequence[str] = ("zeroshot", "fedvpt"), size: str = "vit-b-16"
) -> dict[str, float]:
    """Images per second from JPEG files to logits, as a share of the tower's rate, and memory after the first tenth."""
    found: dict[str, float] = {}
    with jpegs(images) as source:
        for name in names:
            found |= {f"{name}: {what}": value for what, value in _predict(name, source, size).items()}
    return found


def _predict(name: str, source: FileSource, size: str) -> dict[str, float]:
    clip = make_clip(size, "ours", batch=1)
    clip.cache = FeatureCache(memory_bytes=int(CACHE_GB * 2**30))
    method = methods.load(name)(clip, generator=stream(0, "method"))
    space = make_examples(1, 10, 2, SIZES[size][1]).space
    list(classify_files(method, clip, source.take(range(2)), space))  # texts are encoded, and libraries are loaded
    _tower_seconds(clip, SIZES[size][1])
    spent, alone, levels = 0.0, 0.0, []
    batches = classify_files(method, clip, source, space)
    for _ in range(0, len(source), BATCH):
        seconds, batch = timed(lambda: next(batches))
        assert not batch.unreadable
        spent += seconds
        alone += _tower_seconds(clip, SIZES[size][1])
        levels.append(memory())
    rate, tower = len(source) / spent, PASSES * len(levels) / alone
    return {
        "images/s": rate,
        "the tower alone (images/s)": tower,
        "share of the tower's rate": rate / tower,
        "memory growth after the first tenth (MiB)": levels[-1] - levels[len(levels) // 10],
    }


@torch.no_grad()
def _tower_seconds(clip: Clip, pixels: int) -> float:
    """Seconds of patch embedding and blocks of `PASSES` images, one at a time as `predict` does."""
    image = torch.randn(1, 3, pixels, pixels)
    embed, encode = clip.model.vision_model.embeddings, clip.encode_image
    spent, _ = timed(lambda: [encode(embed(image)) for _ in range(PASSES)])
    return spent
