"""The drawings that the package contains: the classes of `emoji` by six artists, and distractors."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedprompt.demo.render import SPRITE, Sprites

SEEN = ("noto", "fluent", "twemoji")  # the artists that pretraining drew
UNSEEN = ("emojione", "noto-v1", "contrast")
ARTISTS = SEEN + UNSEEN
MONO = "contrast"
DISTRACTORS = "distractors"
COLUMNS = 12  # drawings per row of a sheet


def sheet_path(name: str) -> Path:
    """The sheet of an artist, or of the distractors."""
    return Path(str(files("fedprompt.demo") / "sheets" / f"{name}.webp"))


def _read(name: str, side: int) -> Tensor:
    sheet = torch.from_numpy(np.array(Image.open(sheet_path(name)).convert("RGBA")))  # [R side, C side, 4]
    tiles = sheet.reshape(-1, side, COLUMNS, side, 4).permute(0, 2, 4, 1, 3)
    return tiles.flatten(0, 1).contiguous()  # [R C, 4, side, side]


@lru_cache(maxsize=1)
def class_sprites() -> Sprites:
    """Drawing `artist * 120 + class` of all artists and classes."""
    pixels = torch.cat([_read(artist, SPRITE) for artist in ARTISTS])
    mono = torch.tensor([artist == MONO for artist in ARTISTS]).repeat_interleave(len(pixels) // len(ARTISTS))
    return Sprites(pixels, mono)


@lru_cache(maxsize=1)
def distractor_sprites() -> Sprites:
    """Half-size drawings of things that are no class."""
    pixels = _read(DISTRACTORS, SPRITE // 2)
    return Sprites(pixels, torch.zeros(len(pixels), dtype=torch.bool))
