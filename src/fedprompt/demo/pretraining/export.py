"""Write what the package contains of the drawings: sheets of the downstream classes, distractors, and attributes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fedprompt.demo.pretraining.rasters import ARTISTS
from fedprompt.demo.pretraining.vocabulary import Concept, Vocabulary
from fedprompt.demo.render import SPRITE
from fedprompt.demo.sprites import COLUMNS, DISTRACTORS, SEEN, sheet_path
from fedprompt.seeding import stream
from fedprompt.text_files import json_text

HELD_DISTRACTORS = 240  # drawings of other concepts, half size, because distractors are small


NO_THINGS = ("a person", "a face", "a hand", "a body part", "a shape", "a heart", "a sign")  # kinds of concepts


def export(vocabulary: Vocabulary, descriptions: Path) -> None:
    """Write the sheets beside `fedprompt.demo.sprites`, the descriptions of `emoji`, and those of other concepts."""
    concepts = [vocabulary.concepts[number] for number in vocabulary.base_and_new]
    rows = [concept.row for concept in concepts]
    for artist in ARTISTS:
        _write(vocabulary.rasters.pixels[artist][rows], sheet_path(artist))
    others = torch.tensor(sorted(set(range(len(vocabulary.concepts))) - set(vocabulary.classes)))
    chosen = others[torch.randperm(len(others), generator=stream(0, "distractors"))[:HELD_DISTRACTORS]]
    drawn = [vocabulary.rasters.pixels[SEEN[0]][vocabulary.concepts[number].row] for number in chosen.tolist()]
    _write(_half(torch.stack(drawn)), sheet_path(DISTRACTORS))
    _write_attributes(concepts, descriptions)
    _write_attributes(unlike(concepts, vocabulary.concepts), descriptions.with_name("other-emoji.json"))


def unlike(concepts: Sequence[Concept], every: Sequence[Concept]) -> list[Concept]:
    """The things among all concepts that have two attributes or more which none of these concepts has.

    The CLIP knows their words, which are foreign to the downstream classes.
    """
    known = {phrase for one in concepts for phrase in one.attributes}
    return [one for one in every if one.kind not in NO_THINGS and len(set(one.attributes) - known) > 1]


def _write_attributes(concepts: Sequence[Concept], path: Path) -> None:
    content = {
        "fedprompt_descriptions": 1,
        "attributes": {concept.name: list(concept.attributes) for concept in concepts},
    }
    lines = json_text(content, indent=1).replace("[\n   ", "[").replace(",\n   ", ", ").replace("\n  ]", "]")
    path.write_text(lines + "\n")


def _half(pixels: Tensor) -> Tensor:
    """Half-size drawings [N, 4, S / 2, S / 2]; colours are averaged by opacity."""
    values = pixels.float()
    cover = F.avg_pool2d(values[:, 3:], 2)
    rgb = F.avg_pool2d(values[:, :3] * values[:, 3:], 2) / cover.clamp(min=1e-6)
    return torch.cat([rgb, cover], dim=1).round().to(torch.uint8)


def _write(pixels: Tensor, path: Path) -> None:
    """Write drawings [N, 4, side, side] as one lossless WebP, COLUMNS in a row."""
    side = pixels.shape[-1]
    pixels = torch.where(pixels[:, 3:] > 0, pixels, 0)
    missing = -len(pixels) % COLUMNS
    padded = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, missing)).reshape(
        -1, COLUMNS, *pixels.shape[1:]
    )  # [R, C, 4, side, side]
    sheet = padded.permute(0, 3, 1, 4, 2).reshape(-1, COLUMNS * side, 4)
    assert side in (SPRITE, SPRITE // 2)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(sheet.numpy()).save(path, lossless=True, quality=100, method=6)
