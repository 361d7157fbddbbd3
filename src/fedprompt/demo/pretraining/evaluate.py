"""Evaluate the embedded CLIP before tuning: zero-shot accuracy, tolerance of random prompts, localisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedprompt.clip.model import Clip
from fedprompt.data.dataset import Dataset
from fedprompt.demo.concepts import DOMAINS, SEEN
from fedprompt.demo.drawing import coverage
from fedprompt.demo.pretraining.samples import PATCH
from fedprompt.demo.world import BASE, Drawings, compose_scene, pictograms, scenes
from fedprompt.ops.layers import unit
from fedprompt.ops.metrics import mean_average_precision
from fedprompt.ops.scoring import region_scores
from fedprompt.seeding import stream

SEED = 1000  # images that no run with seed 0, 1, 2, ... sees


@dataclass(frozen=True)
class Evaluation:
    """Results in percent, by name, in the order of the model card."""

    results: Mapping[str, float]

    def table(self) -> str:
        """The results as a Markdown table."""
        lines = [f"| {name} | {value:.1f} |" for name, value in self.results.items()]
        return "\n".join(["| measured | percent |", "|---|---|", *lines])


@torch.inference_mode()
def evaluate(clip: Clip, *, test: int = 6, scenes_test: int = 120) -> Evaluation:
    """Measure everything on `test` images per class and icon style, and `scenes_test` per context."""
    single = pictograms(seed=SEED, train=0, test=test)
    multi = scenes(seed=SEED, train=0, test=scenes_test)
    facts = {**_zero_shot(clip, single), **_tolerance(clip, single)}
    return Evaluation({**facts, **_scenes(clip, multi), **_localisation(clip, multi)})


def _share(right: Tensor) -> float:
    return 100 * float(right.float().mean())


def _zero_shot(clip: Clip, single: Dataset) -> dict[str, float]:
    text = clip.text_features(single.space.texts())
    facts = {}
    for domain in DOMAINS:
        rows = single.rows(split="test", domains=(domain,))
        image = clip.image_features(single.examples(rows).images)
        facts[f"zero-shot {domain}, 77 classes"] = _share((image @ text.T).argmax(dim=1) == single.targets[rows])
    for name, classes in (("base", range(BASE)), ("new", range(BASE, len(single.space)))):
        seen = single.examples(single.rows(split="test", domains=SEEN, classes=classes), classes)
        scores = clip.image_features(seen.images) @ clip.text_features(seen.space.texts()).T
        facts[f"zero-shot {name} classes, seen styles"] = _share(scores.argmax(dim=1) == seen.targets)
    return facts


def _tolerance(clip: Clip, single: Dataset) -> dict[str, float]:
    """Points lost to four random tokens (std 0.02), once after the patches, once before the class names."""
    rows = single.rows(split="test", domains=SEEN)
    images, targets = single.examples(rows).images, single.targets[rows]
    text, generator = clip.text_features(single.space.texts()), stream(SEED, "stray")
    image = clip.image_features(images)
    before = _share((image @ text.T).argmax(dim=1) == targets)
    embeddings = clip.image_embeddings(images)
    appended, renamed = [], []
    for _ in range(3):
        stray = 0.02 * torch.randn(4, clip.image_width, generator=generator)
        tokens = torch.cat([embeddings, stray.expand(len(embeddings), -1, -1)], dim=1)  # [B, 1 + P + 4, W]
        moved = torch.cat([clip.encode_image(part).image for part in torch.split(tokens, 256)])
        appended.append(before - _share((moved @ text.T).argmax(dim=1) == targets))
        context = 0.02 * torch.randn(4, clip.text_width, generator=generator)
        prompts = clip.fill([f"<ctx> {name}." for name in single.space.names], ctx=context)
        renamed.append(before - _share((image @ unit(clip.encode_text(prompts)).T).argmax(dim=1) == targets))
    bare = clip.text_features([phrase for own in single.space.attributes.values() for phrase in own])
    sizes = [len(own) for own in single.space.attributes.values()]
    described = torch.stack([unit(part.mean(dim=0)) for part in torch.split(bare, sizes)])  # [C, D]
    sentences = clip.text_features([sentence for own in single.space.attribute_texts() for sentence in own])
    mean = torch.stack([part.mean(dim=0) for part in torch.split(sentences, sizes)])  # [C, D]
    return {
        "zero-shot seen styles, 77 classes": before,
        "points lost to 4 appended random tokens": float(np.mean(appended)),
        "points lost to a random text context": float(np.mean(renamed)),
        "seen styles, attribute sentences": _share((image @ mean.T).argmax(dim=1) == targets),
        "seen styles, bare attributes without names": _share((image @ described.T).argmax(dim=1) == targets),
    }


def _scenes(clip: Clip, multi: Dataset) -> dict[str, float]:
    text, facts = clip.text_features(multi.space.texts()), {}
    for split, name in (("test", "natural"), ("broken", "broken")):
        rows = multi.rows(split=split)
        images, targets = multi.examples(rows).images, multi.targets[rows]
        regions = region_scores(clip.patch_features(images), text)
        facts[f"scenes {name} mAP, patches"] = 100 * mean_average_precision(regions, targets)[0]
        whole = clip.image_features(images) @ text.T
        facts[f"scenes {name} mAP, class token"] = 100 * mean_average_precision(whole, targets)[0]
    return facts


def _localisation(clip: Clip, multi: Dataset) -> dict[str, float]:
    """How often the best patch for an object lies on it, in scenes of two objects; and how often by chance."""
    rows = [row for row in range(len(multi.targets)) if int(multi.targets[row].sum()) == 2]
    text = clip.text_features(multi.space.texts())
    best = (clip.patch_features(multi.examples(torch.tensor(rows)).images) @ text.T).argmax(dim=1)  # [B, C]
    assert isinstance(multi.source, Drawings)
    hits, by_chance = [], []
    for row, patches in zip(rows, best, strict=True):
        for icon in compose_scene(SEED, multi.source.addresses[row])[0]:
            side = PATCH
            touched = (coverage(icon).reshape(8, side, 8, side).max(axis=(1, 3)) > 0.5).flatten()  # [P]
            hits.append(bool(touched[int(patches[multi.space.names.index(icon.concept)])]))
            by_chance.append(float(touched.mean()))
    return {
        "best patch on its object, two-object scenes": 100 * float(np.mean(hits)),
        "the same by chance": 100 * float(np.mean(by_chance)),
    }
