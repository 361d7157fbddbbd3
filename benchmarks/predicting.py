"""Benchmarks of `predict`: its rate as a share of the image tower's own, and the growth of its memory."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from benchmarks.backbone import SIZES, make_clip, make_examples
from benchmarks.data import jpegs, memory, timed
from fedprompt import methods
from fedprompt.clip.feature_cache import FeatureCache
from fedprompt.clip.model import Clip
from fedprompt.data.file_source import FileSource
from fedprompt.experiments.predict import CACHE_GB, classify_files
from fedprompt.seeding import stream

PASSES = 32  # images by which the tower's own rate is measured, before and after


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
    before = _tower_rate(clip, SIZES[size][1])
    started, levels = time.perf_counter(), []
    for batch in classify_files(method, clip, source, space):
        assert not batch.unreadable
        levels.append(memory())
    rate = len(source) / (time.perf_counter() - started)
    tower = (before + _tower_rate(clip, SIZES[size][1])) / 2
    return {
        "images/s": rate,
        "the tower alone (images/s)": tower,
        "share of the tower's rate": rate / tower,
        "memory growth after the first tenth (MiB)": levels[-1] - levels[len(levels) // 10],
    }


@torch.no_grad()
def _tower_rate(clip: Clip, pixels: int) -> float:
    """Images per second of patch embedding and blocks, one image at a time as `predict` does."""
    image = torch.randn(1, 3, pixels, pixels)
    embed, encode = clip.model.vision_model.embeddings, clip.encode_image
    spent, _ = timed(lambda: [encode(embed(image)) for _ in range(PASSES)])
    return PASSES / spent
